from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")

from bag_scenes import FRAMES, Drawn, frames, image_message, stamp_ns, write_bag, write_flat

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.bags.write import BagWriter
from anomseg_ros.commands.bag_write import main as bag_write
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.temporal_filter import EXPONENTIAL, NO_FILTER, FilterSpec
from anomseg_ros.errors import BagError, ConfigError, MetricError
from anomseg_ros.evaluation.bag_evaluate import differences, evaluate_bags
from anomseg_ros.evaluation.bag_plan import BagRequest, BagSource
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.recorded import RecordedSource
from anomseg_ros.evaluation.results import Evaluation, Result, load_evaluation, save_evaluation

DRAWN = frames()
PROTOCOLS = ("seeds", "fishyscapes", "smiyc")
SCORES = ("void", "max_logit")
ONE_THREAD = BackendOptions(threads=1)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


def request_of(path: Path, bundle: Bundle | None, **changed: Any) -> BagRequest:
    made = {"bags": (BagSource(str(path)),), "scores": SCORES, "protocols": PROTOCOLS, "threshold": 0.05, **changed}
    return BagRequest(bundle=bundle, options=ONE_THREAD, **made)


def comparable(result: Result) -> Result:
    """Return a result without names and times, and without the figures that only bags have."""
    rows = tuple(replace(frame, frame_id="", inference_ms=None, network_ms=None) for frame in result.per_frame)
    bare: dict[str, Any] = {
        "dataset": "",
        "inference_ms": None,
        "network_ms": None,
        "wall_ms": None,
        "backend": None,
        "drive": None,
        "consistency": None,
        "streaming": None,
    }
    return replace(result, per_frame=rows, **bare)


def dataset_results(bundle: Bundle, dataset: str) -> list[Result]:
    outcome = evaluate(Request((bundle.directory,), (dataset,), SCORES, PROTOCOLS, options=ONE_THREAD))
    assert not outcome.errors
    return [comparable(result) for result in outcome.results]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_bag_gives_exactly_the_figures_of_its_images(tmp_path: Path, bundle: Bundle, storage: str) -> None:
    source = f"synthetic={write_flat(tmp_path / 'flat', DRAWN)}"
    words = ["--dataset", source, "--output", str(tmp_path / "drive"), "--storage", storage]
    assert bag_write([*words, *(["--compressed"] if storage == "mcap" else [])]) == 0
    outcome = evaluate_bags(request_of(tmp_path / "drive", bundle))
    assert not outcome.errors
    assert [comparable(result) for result in outcome.results] == dataset_results(bundle, source)
    assert all(result.auprc is not None and result.frames == FRAMES for result in outcome.results)
    assert outcome.results[0].drive is not None and outcome.results[1].drive is None  # alarms come from the first score
    assert {result.components is not None for result in outcome.results if result.protocol == "smiyc"} == {True}


@pytest.mark.slow
def test_labelled_bag_gives_exactly_the_semantic_figures(tmp_path: Path, bundle: Bundle) -> None:
    assert bag_write(["--dataset", "synthetic=7:2", "--output", str(tmp_path / "drive")]) == 0
    results = evaluate_bags(request_of(tmp_path / "drive", bundle)).results
    assert [comparable(result) for result in results] == dataset_results(bundle, "synthetic=7:2")
    assert all(result.miou is not None for result in results)


@pytest.mark.slow
def test_miou_needs_a_label_set(tmp_path: Path, bundle: Bundle) -> None:
    path = write_bag(tmp_path / "drive", DRAWN[:2])
    result = evaluate_bags(request_of(path, bundle)).results[0]
    assert result.miou is None and any("--label-set" in note for note in result.notes)
    for name, measured in (("cityscapes", True), ("camvid", False)):
        source = BagSource(str(path), label_set=name)
        result = evaluate_bags(request_of(path, bundle, bags=(source,))).results[0]
        assert (result.miou is not None) == measured
        assert measured or any("classes are not those" in note for note in result.notes)


@pytest.mark.slow
def test_filter_and_alarm_frames_change_the_results(tmp_path: Path, bundle: Bundle) -> None:
    path = write_bag(tmp_path / "drive", DRAWN)
    asked = request_of(path, bundle, scores=("void",), protocols=("seeds", "fishyscapes"), threshold=0.0492)
    plain = evaluate_bags(asked).results
    slow = FilterSpec(EXPONENTIAL, 0.5)
    smooth = evaluate_bags(replace(asked, filter=slow, options=BackendOptions(threads=1))).results
    assert [one.auprc for one in plain] != [one.auprc for one in smooth]
    assert all(one.consistency is not None and one.consistency.pairs == FRAMES - 1 for one in (*plain, *smooth))
    assert evaluate_bags(replace(asked, filter=FilterSpec(NO_FILTER, 3.0))).results[1].auprc == plain[1].auprc
    several = evaluate_bags(replace(asked, alarm_frames=(2, 3))).results[0].drive
    assert several is not None and plain[0].drive is not None and several.alarm_frames == (2, 3)
    assert several.alarms <= plain[0].drive.alarms
    with pytest.raises(ConfigError, match="alarm_frames_n is 4, alarm_frames_m 3"):
        replace(asked, alarm_frames=(4, 3))


def record_bag(path: Path, bundle: Bundle, drawn: Sequence[Any], kept: list[int], labels: bool = True) -> Path:
    """Write a bag as recorded with a running node: frames, ground truth, and the outputs for the frames in `kept`."""
    detector = open_detector(bundle, "onnxruntime", ONE_THREAD)
    with BagWriter(path) as bag:
        for index, frame in enumerate(drawn):
            bag.write_frame(stamp_ns(index), frame.image, labels=frame.labels, anomaly=frame.anomaly)
            if index not in kept:
                continue
            outputs = detector.detect(frame.image, ("void",))
            later = stamp_ns(index) + 12_345_678
            for topic, pixels, encoding in (
                ("/detector/anomaly/score", outputs.scores["void"], "32FC1"),
                ("/detector/labels", outputs.labels, "mono8"),
            ):
                if labels or encoding == "32FC1":
                    bag.write_serialized(later, topic, *image_message(stamp_ns(index), pixels, encoding))
    detector.close()
    return path


def test_recorded_outputs_give_the_figures_of_the_model(tmp_path: Path, bundle: Bundle) -> None:
    path = record_bag(tmp_path / "drive", bundle, DRAWN, list(range(FRAMES)))
    source = BagSource(str(path), topic="/camera/image", label_set="cityscapes")
    asked = request_of(path, bundle, bags=(source,), scores=("void",), protocols=("fishyscapes",))
    (model,) = evaluate_bags(asked).results
    recorded = RecordedSource(str(path), "")
    (read,) = evaluate_bags(replace(asked, recorded=recorded)).results
    assert comparable(read) == comparable(model) and read.drive == model.drive
    assert read.inference_ms is None and read.per_frame[0].inference_ms is None and read.backend == "recorded"
    (alone,) = evaluate_bags(replace(asked, bundle=None, scores=(), recorded=recorded)).results
    assert (alone.bundle, alone.score, alone.network) == ("recorded", "recorded", None)
    assert (alone.auprc, alone.miou, alone.drive) == (model.auprc, model.miou, model.drive)


def test_frames_without_a_recorded_output_are_noted_and_not_counted(tmp_path: Path, bundle: Bundle) -> None:
    path = record_bag(tmp_path / "drive", bundle, DRAWN, [0, 2, 3])
    asked = request_of(path, bundle, scores=("void",), protocols=("fishyscapes",))
    asked = replace(asked, bags=(BagSource(str(path), topic="/camera/image"),))
    (some,) = evaluate_bags(replace(asked, recorded=RecordedSource(str(path), ""))).results
    assert some.frames == 3 and any("2 of 5 labelled frames have no recorded output" in note for note in some.notes)
    assert some.drive is not None and some.drive.frames == 5
    assert all(seen.frames_detected <= 3 for seen in some.drive.objects)
    (full,) = evaluate_bags(asked).results
    told = differences(some, full)
    assert told["auprc"] == some.auprc - full.auprc and set(told) >= {"fpr95", "auroc", "alarms_per_minute"}


def test_missing_recorded_scores_error_lists_the_topics(tmp_path: Path, bundle: Bundle) -> None:
    path = write_bag(tmp_path / "drive", DRAWN[:1])
    with pytest.raises(
        BagError, match=r"no recorded scores on '/detector/anomaly/score'.*/camera/image.*--score-topic"
    ):
        evaluate_bags(request_of(path, None, recorded=RecordedSource(str(path), "")))
    with pytest.raises(ConfigError, match=r"give one, or --recorded"):
        request_of(path, None)


@pytest.mark.slow
def test_figures_of_frames_before_a_bad_frame_are_kept(tmp_path: Path, bundle: Bundle) -> None:
    bad = Drawn(DRAWN[3].image, None, np.full_like(DRAWN[3].anomaly, 9))
    path = write_bag(tmp_path / "drive", [*DRAWN[:3], bad, DRAWN[4]])
    outcome = evaluate_bags(request_of(path, bundle))
    before = evaluate_bags(request_of(write_bag(tmp_path / "before", DRAWN[:3]), bundle))
    (error,) = outcome.errors
    assert error.startswith("3 of 5 frames were measured, then: unknown label")
    assert "100.300000000 s" in error and all(error in result.notes for result in outcome.results)
    assert [r.auprc for r in outcome.results] == [r.auprc for r in before.results]
    assert outcome.results[0].drive == before.results[0].drive
    with pytest.raises(MetricError, match=r"nothing could be measured.*unknown label values"):
        evaluate_bags(request_of(write_bag(tmp_path / "worst", [bad]), bundle))


@pytest.mark.slow
def test_threshold_comes_from_bundle_or_request(tmp_path: Path, bundle: Bundle) -> None:
    path = write_bag(tmp_path / "drive", DRAWN[:2])
    asked = request_of(path, bundle, protocols=("seeds",), threshold=None)
    drive = evaluate_bags(asked).results[0].drive
    assert drive is not None and (drive.threshold, drive.threshold_source) == (0.5, "default 0.5, not calibrated")
    without = evaluate_bags(replace(asked, scores=("max_logit",))).results[0]
    assert without.drive is None and any("no threshold" in note for note in without.notes)
    low = evaluate_bags(replace(asked, threshold=-1.0)).results[0].drive
    assert low is not None and low.objects_detected == len(low.objects) > 0


@pytest.mark.slow
def test_results_of_bags_read_back(tmp_path: Path, bundle: Bundle) -> None:
    results = evaluate_bags(request_of(write_bag(tmp_path / "drive", DRAWN[:3]), bundle)).results
    save_evaluation(Evaluation(1, results), tmp_path / "out.json")
    assert load_evaluation(tmp_path / "out.json").results == results
