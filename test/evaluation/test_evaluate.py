"""evaluate(): one process, several and Ray give equal results; a failing part does not stop the others."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from flat_dataset import write_flat_dataset

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import load_bundle, save_bundle
from anomseg_ros.core.labels import CAMVID, CITYSCAPES
from anomseg_ros.core.thresholds import ThresholdTable
from anomseg_ros.datasets import open_named
from anomseg_ros.errors import DatasetError
from anomseg_ros.evaluation.evaluate import Outcome, Request, evaluate
from anomseg_ros.evaluation.measures import Measures
from anomseg_ros.evaluation.results import Result
from anomseg_ros.evaluation.saved_state import JobState
from anomseg_ros.evaluation.workers import LOCAL_RAY, Workers

ALL = ("seeds", "fishyscapes", "smiyc")


@pytest.fixture
def request_(tiny_bundle: Path, tmp_path: Path) -> Request:
    dataset = write_flat_dataset(tmp_path / "flat")
    return Request((tiny_bundle,), (dataset, "synthetic=4:3"), ("void", "msp"), ALL, allow_partial=True)


def results_without_times(outcome: Outcome) -> list[Result]:
    bare = {"inference_ms": None, "network_ms": None}
    return [
        replace(result, wall_ms=None, **bare, per_frame=tuple(replace(frame, **bare) for frame in result.per_frame))
        for result in outcome.results
    ]


@pytest.mark.slow
def test_all_datasets_scores_and_protocols_are_measured_in_one_run(request_: Request) -> None:
    outcome = evaluate(replace(request_, pictures=True))
    assert outcome.errors == ()
    assert [result.key[1:] for result in outcome.results] == [
        (dataset, score, protocol)
        for dataset in ("road_anomaly_21", "synthetic")
        for protocol in ALL
        for score in ("void", "msp")
    ]
    flat = next(r for r in outcome.results if r.key[1:] == ("road_anomaly_21", "void", "seeds"))
    assert (flat.frames, flat.frames_skipped, flat.miou) == (5, 1, None)
    assert flat.auprc is not None and flat.auprc_error is not None and flat.auprc_error < 1e-5
    assert len(flat.curves.histogram_edges) == len(flat.curves.histogram_known) + 1
    assert sum(flat.curves.histogram_known) == flat.known_px
    assert flat.ece is not None and flat.network_ms is not None and flat.wall_ms is not None
    drawn = next(r for r in outcome.results if r.key[1:] == ("synthetic", "msp", "smiyc"))
    assert drawn.miou is not None and drawn.iou is not None and drawn.ece is not None
    key = (*flat.key, flat.per_frame[0].frame_id)
    picture = outcome.pictures[key]
    height, width, _ = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape
    assert width == 640 and 340 < height < 400  # the frame and the colour bar


@pytest.mark.slow
def test_processes_give_exactly_the_same_results(request_: Request) -> None:
    assert results_without_times(evaluate(replace(request_, workers=Workers(2)))) == results_without_times(
        evaluate(request_)
    )


@pytest.mark.slow
def test_ray_gives_exactly_the_same_results(request_: Request) -> None:
    ray = pytest.importorskip("ray")
    try:
        assert results_without_times(
            evaluate(replace(request_, workers=Workers(2, LOCAL_RAY)))
        ) == results_without_times(evaluate(request_))
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_interrupted_run_resumes_from_its_state(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = replace(request_, state=tmp_path / "state", save_every_s=0.0)
    keep, snapshots = JobState.save, []

    def stop_after_four(self: JobState, measures: object) -> None:
        keep(self, measures)  # type: ignore[arg-type]
        snapshots.append(measures)
        if len(snapshots) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(JobState, "save", stop_after_four)
        evaluate(saved)
    assert list((tmp_path / "state").glob("*/0*"))
    seen: list[int] = []
    outcome = evaluate(saved, lambda what, done, total: seen.append(done) if what.endswith("road_anomaly_21") else None)
    assert 5 in seen and 1 not in seen[6:]
    assert results_without_times(outcome) == results_without_times(evaluate(request_))
    assert not (tmp_path / "state").exists()


def test_failing_dataset_does_not_stop_the_others(request_: Request, tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    write_flat_dataset(blank, frames=2)
    for path in (blank / "labels_masks").iterdir():
        cv2.imwrite(str(path), np.zeros((48, 96), np.uint8))
    outcome = evaluate(replace(request_, datasets=(f"road_obstacle_21={blank}", request_.datasets[0])))
    assert {result.dataset for result in outcome.results} == {"road_anomaly_21"}
    (error,) = outcome.errors
    assert str(blank) in error and "0 anomaly pixels" in error


def test_label_of_another_size_is_refused_before_work_starts(request_: Request, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "flat/labels_masks/3.png"), np.zeros((10, 10), np.uint8))
    with pytest.raises(DatasetError, match=r"3\.png"):
        evaluate(request_)


def write_camvid(folder: Path) -> str:
    """Write one frame of the 11 classes; return the command line's NAME=PATH."""
    for part in ("val", "valannot"):
        (folder / part).mkdir(parents=True)
    generator = np.random.default_rng(3)
    cv2.imwrite(str(folder / "val/a.png"), generator.integers(0, 256, (48, 96, 3), dtype=np.uint8))
    cv2.imwrite(str(folder / "valannot/a.png"), generator.integers(0, 12, (48, 96), dtype=np.uint8))
    return f"camvid={folder}"


def bundle_with_renamed_class(bundle: Path, output: Path) -> Path:
    """Return a copy of a bundle whose first class has another name."""
    opened = load_bundle(bundle)
    first, *others = opened.contract.classes
    contract = replace(opened.contract, classes=(replace(first, name="carriageway"), *others))
    return save_bundle(contract, {"model.onnx": opened.graph_path}, output).directory


def test_incompatible_classes_are_an_error(request_: Request, tmp_path: Path) -> None:
    bundle = bundle_with_renamed_class(request_.bundles[0], tmp_path / "renamed")
    outcome = evaluate(replace(request_, bundles=(bundle,), datasets=(write_camvid(tmp_path / "camvid"),)))
    (error,) = outcome.errors
    assert "19 classes are not the 11 of camvid" in error and "--label-set camvid" in error


def test_finer_classes_are_mapped_to_the_dataset_classes(request_: Request, tmp_path: Path) -> None:
    dataset = write_camvid(tmp_path / "camvid")
    request_ = replace(request_, datasets=(dataset,), protocols=("fishyscapes",), require_miou=True)
    outcome = evaluate(request_)
    assert not outcome.errors
    void, msp = outcome.results
    assert "19 are mapped" in void.notes[0] and msp.ece is None
    frame = open_named(dataset).load(0)
    labels = open_detector(request_.bundles[0]).detect(frame.image, source_size=True).labels
    assert labels is not None and frame.labels is not None
    names = np.array([info.name for info in CITYSCAPES] + ["void"] * 237)
    grouped = {"wall": "building", "terrain": "tree", "truck": "car", "rider": "bicyclist", "vegetation": "tree"}
    spelled = {"sidewalk": "pavement", "person": "pedestrian", "traffic sign": "sign symbol", "bicycle": "bicyclist"}
    others = {"traffic light": "sign symbol", "motorcycle": "bicyclist", "bus": "car", "train": "car"}
    groups = grouped | spelled | others
    predicted = np.vectorize(lambda name: groups.get(name, name))(names[labels])
    known = frame.labels != 255
    ious = []
    for info in CAMVID:
        ours, theirs = (predicted == info.name) & known, frame.labels == info.train_id
        ious.append((ours & theirs).sum() / (ours | theirs).sum())
    assert void.miou == pytest.approx(np.mean(ious))


@pytest.mark.slow
def test_rates_at_the_threshold_of_the_bundle_are_measured(request_: Request, tmp_path: Path) -> None:
    opened = load_bundle(request_.bundles[0])
    image = open_named(request_.datasets[0]).load(0).image  # type: ignore[arg-type]
    middle = float(np.median(open_detector(opened).detect(image, ("void",)).scores["void"]))
    table = ThresholdTable("elsewhere", {0.01: 2 * middle, 0.05: middle})
    contract = replace(opened.contract, thresholds={"void": table})
    bundle = save_bundle(contract, {"model.onnx": opened.graph_path}, tmp_path / "calibrated").directory
    datasets = (request_.datasets[0], write_camvid(tmp_path / "camvid"))
    request_ = replace(request_, bundles=(bundle,), datasets=datasets, target_fpr=0.05)
    outcome = evaluate(request_)
    results = outcome.results
    assert results_without_times(evaluate(replace(request_, workers=Workers(2)))) == results_without_times(outcome)
    detector = open_detector(bundle)
    for name in map(str, datasets):
        dataset, pixels = open_named(name), []
        for index in range(len(dataset)):
            frame = dataset.load(index)
            truth = frame.anomaly if frame.anomaly is not None else np.where(frame.labels == 255, 255, 0)
            scores = detector.detect(frame.image, ("void",), source_size=True).scores["void"]
            pixels.append((truth.ravel(), scores.ravel()))
        truth, scores = (np.concatenate(parts) for parts in zip(*pixels, strict=True))
        own = [one for one in results if one.dataset == dataset.name and one.protocol != "seeds"]
        for found in (one.at_threshold for one in own if one.score == "void"):
            assert found is not None and (found.threshold, found.source) == (middle, "target_fpr 0.05 on elsewhere")
            assert found.fpr == (scores[truth == 0] > middle).mean()
            assert found.tpr == ((scores[truth == 1] > middle).mean() if dataset.has_anomalies else None)
        assert 0 < own[0].at_threshold.fpr < 1
        assert all(one.at_threshold is None for one in own if one.score == "msp"), "its default 0.5 is not calibrated"
    # There is no threshold for a rate below every calibrated one.
    assert all(one.at_threshold is None for one in evaluate(replace(request_, target_fpr=0.001)).results)


@pytest.mark.slow
def test_network_only_measures_only_times(request_: Request) -> None:
    outcome = evaluate(replace(request_, network_only=True, datasets=("synthetic=4:3",)))
    assert all(result.auprc is None and result.network_ms for result in outcome.results)
    assert {result.frames for result in outcome.results} == {3}


@pytest.mark.slow
def test_results_are_kept_if_the_state_cannot_be_saved(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "curves-0.npz")

    with monkeypatch.context() as patched:
        patched.setattr(Measures, "save", full)
        outcome = evaluate(replace(request_, state=tmp_path / "state", save_every_s=0.0))
    assert results_without_times(evaluate(request_)) == [
        replace(result, notes=result.notes[:-1]) for result in results_without_times(outcome)
    ]
    (note,) = {result.notes[-1] for result in outcome.results}
    assert note.startswith("the state was not saved") and "'curves-0.npz': No space left on device" in note
