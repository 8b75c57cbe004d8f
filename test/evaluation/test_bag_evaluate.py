from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")

from bag_scenes import FRAMES, Drawn, frames, image_message, stamp_ns, write_bag, write_flat

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.bags.write import BagWriter
from anomseg_ros.commands.bag_write import main as bag_write
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.errors import BagError, ConfigError, MetricError
from anomseg_ros.evaluation.bag_evaluate import BagRequest, differences, evaluate_bags
from anomseg_ros.evaluation.bag_measure import BagSource, RecordedSource
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.results import Evaluation, Result, load_evaluation, save_evaluation

DRAWN = frames()
PROTOCOLS = ("seeds", "fishyscapes", "smiyc")
SCORES = ("void", "max_logit")
ONE_THREAD = BackendOptions(threads=1)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


def request_of(path: Path, bundle: Bundle | None, **changed: object) -> BagRequest:
    made = {"bags": (BagSource(str(path)),), "scores": SCORES, "protocols": PROTOCOLS, "threshold": 0.05, **changed}
    return BagRequest(bundle=bundle, options=ONE_THREAD, **made)


def figures(result: Result) -> Result:
    """The result without names and clocks."""
    rows = tuple(replace(frame, frame_id="", inference_ms=None, network_ms=None) for frame in result.per_frame)
    bare = {"dataset": "", "inference_ms": None, "network_ms": None, "wall_ms": None, "backend": None, "drive": None}
    return replace(result, per_frame=rows, **bare)


def of_dataset(bundle: Bundle, dataset: str) -> list[Result]:
    outcome = evaluate(Request((bundle.directory,), (dataset,), SCORES, PROTOCOLS, options=ONE_THREAD))
    assert not outcome.errors
    return [figures(result) for result in outcome.results]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_gives_the_figures_of_its_images_to_the_last_digit(tmp_path: Path, bundle: Bundle, storage: str) -> None:
    source = f"synthetic={write_flat(tmp_path / 'flat', DRAWN)}"
    words = ["--dataset", source, "--output", str(tmp_path / "drive"), "--storage", storage]
    assert bag_write([*words, *(["--compressed"] if storage == "mcap" else [])]) == 0
    outcome = evaluate_bags(request_of(tmp_path / "drive", bundle))
    assert not outcome.errors
    assert [figures(result) for result in outcome.results] == of_dataset(bundle, source)
    assert all(result.auprc is not None and result.frames == FRAMES for result in outcome.results)
    assert outcome.results[0].drive is not None and outcome.results[1].drive is None  # the first score makes alarms
    assert {result.components is not None for result in outcome.results if result.protocol == "smiyc"} == {True}


def test_semantic_figures_too(tmp_path: Path, bundle: Bundle) -> None:
    assert bag_write(["--dataset", "synthetic=7:2", "--output", str(tmp_path / "drive")]) == 0
    results = evaluate_bags(request_of(tmp_path / "drive", bundle)).results
    assert [figures(result) for result in results] == of_dataset(bundle, "synthetic=7:2")
    assert all(result.miou is not None for result in results)


def test_what_the_labels_mean_must_be_known(tmp_path: Path, bundle: Bundle) -> None:
    path = write_bag(tmp_path / "drive", DRAWN[:2])
    result = evaluate_bags(request_of(path, bundle)).results[0]
    assert result.miou is None and any("--label-set" in note for note in result.notes)
    for name, measured in (("cityscapes", True), ("camvid", False)):
        source = BagSource(str(path), label_set=name)
        result = evaluate_bags(request_of(path, bundle, bags=(source,))).results[0]
        assert (result.miou is not None) == measured
        assert measured or any("classes are not those" in note for note in result.notes)


def record(path: Path, bundle: Bundle, drawn: list, kept: list[int], labels: bool = True) -> Path:
    """Write a bag as if recorded beside a running node: frames, ground truth, and the outputs of those `kept`."""
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


def test_recorded_outputs_give_what_the_model_gives(tmp_path: Path, bundle: Bundle) -> None:
    path = record(tmp_path / "drive", bundle, DRAWN, list(range(FRAMES)))
    source = BagSource(str(path), topic="/camera/image", label_set="cityscapes")
    asked = request_of(path, bundle, bags=(source,), scores=("void",), protocols=("fishyscapes",))
    (model,) = evaluate_bags(asked).results
    recorded = RecordedSource(str(path), "")
    (read,) = evaluate_bags(replace(asked, recorded=recorded)).results
    assert figures(read) == figures(model) and read.drive == model.drive
    assert read.inference_ms is None and read.per_frame[0].inference_ms is None and read.backend == "recorded"
    (alone,) = evaluate_bags(replace(asked, bundle=None, scores=(), recorded=recorded)).results
    assert (alone.bundle, alone.score, alone.network) == ("recorded", "recorded", None)
    assert (alone.auprc, alone.miou, alone.drive) == (model.auprc, model.miou, model.drive)


def test_frames_without_a_recorded_output_are_told_and_left_out(tmp_path: Path, bundle: Bundle) -> None:
    path = record(tmp_path / "drive", bundle, DRAWN, [0, 2, 3])
    asked = request_of(path, bundle, scores=("void",), protocols=("fishyscapes",))
    asked = replace(asked, bags=(BagSource(str(path), topic="/camera/image"),))
    (some,) = evaluate_bags(replace(asked, recorded=RecordedSource(str(path), ""))).results
    assert some.frames == 3 and any("2 of 5 labelled frames have no recorded output" in note for note in some.notes)
    assert some.drive is not None and some.drive.frames == 5
    assert all(seen.frames_detected <= 3 for seen in some.drive.objects)
    (full,) = evaluate_bags(asked).results
    told = differences(some, full)
    assert told["auprc"] == some.auprc - full.auprc and set(told) >= {"fpr95", "auroc", "alarms_per_minute"}


def test_a_bag_without_recorded_scores_names_its_topics(tmp_path: Path, bundle: Bundle) -> None:
    path = write_bag(tmp_path / "drive", DRAWN[:1])
    with pytest.raises(
        BagError, match=r"no recorded scores on '/detector/anomaly/score'.*/camera/image.*--score-topic"
    ):
        evaluate_bags(request_of(path, None, recorded=RecordedSource(str(path), "")))
    with pytest.raises(ConfigError, match=r"give one, or --recorded"):
        request_of(path, None)


def test_what_was_measured_before_a_bad_frame_is_told(tmp_path: Path, bundle: Bundle) -> None:
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


def test_the_threshold_comes_from_the_bundle_or_from_the_user(tmp_path: Path, bundle: Bundle) -> None:
    path = write_bag(tmp_path / "drive", DRAWN[:2])
    asked = request_of(path, bundle, protocols=("seeds",), threshold=None)
    drive = evaluate_bags(asked).results[0].drive
    assert drive is not None and (drive.threshold, drive.threshold_source) == (0.5, "default 0.5, not calibrated")
    without = evaluate_bags(replace(asked, scores=("max_logit",))).results[0]
    assert without.drive is None and any("no threshold" in note for note in without.notes)
    low = evaluate_bags(replace(asked, threshold=-1.0)).results[0].drive
    assert low is not None and low.objects_detected == len(low.objects) > 0


def test_results_are_read_back(tmp_path: Path, bundle: Bundle) -> None:
    results = evaluate_bags(request_of(write_bag(tmp_path / "drive", DRAWN[:3]), bundle)).results
    save_evaluation(Evaluation(1, results), tmp_path / "out.json")
    assert load_evaluation(tmp_path / "out.json").results == results
