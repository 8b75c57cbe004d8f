"""Bundles on datasets from Python: one process, several and Ray agree; what is wrong is said, the rest is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from flat_dataset import write_flat_dataset

from anomseg_ros.errors import DatasetError
from anomseg_ros.evaluation.evaluate import Outcome, Request, evaluate
from anomseg_ros.evaluation.results import Result
from anomseg_ros.evaluation.state import JobState
from anomseg_ros.evaluation.workers import LOCAL_RAY, Workers

ALL = ("seeds", "fishyscapes", "smiyc")


@pytest.fixture
def request_(tiny_bundle: Path, tmp_path: Path) -> Request:
    dataset = write_flat_dataset(tmp_path / "flat")
    return Request((tiny_bundle,), (dataset, "synthetic=4:3"), ("void", "msp"), ALL, allow_partial=True)


def timeless(outcome: Outcome) -> list[Result]:
    bare = {"inference_ms": None, "network_ms": None}
    return [
        replace(result, wall_ms=None, **bare, per_frame=tuple(replace(frame, **bare) for frame in result.per_frame))
        for result in outcome.results
    ]


def test_everything_is_measured_in_one_run(request_: Request) -> None:
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
    picture = outcome.pictures[(*flat.key, flat.per_frame[0].frame_id)]
    assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape == (320, 640, 3)


@pytest.mark.slow
def test_processes_give_the_same_to_the_last_digit(request_: Request) -> None:
    assert timeless(evaluate(replace(request_, workers=Workers(2)))) == timeless(evaluate(request_))


@pytest.mark.slow
def test_ray_gives_the_same_to_the_last_digit(request_: Request) -> None:
    ray = pytest.importorskip("ray")
    try:
        assert timeless(evaluate(replace(request_, workers=Workers(2, LOCAL_RAY)))) == timeless(evaluate(request_))
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_an_interrupted_run_goes_on(request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert timeless(outcome) == timeless(evaluate(request_))
    assert not (tmp_path / "state").exists()


def test_a_dataset_that_fails_does_not_lose_the_others(request_: Request, tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    write_flat_dataset(blank, frames=2)
    for path in (blank / "labels_masks").iterdir():
        cv2.imwrite(str(path), np.zeros((48, 96), np.uint8))
    outcome = evaluate(replace(request_, datasets=(f"road_obstacle_21={blank}", request_.datasets[0])))
    assert {result.dataset for result in outcome.results} == {"road_anomaly_21"}
    (error,) = outcome.errors
    assert str(blank) in error and "0 anomaly pixels" in error


def test_a_label_of_another_size_stops_before_work_and_names_the_file(request_: Request, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "flat/labels_masks/3.png"), np.zeros((10, 10), np.uint8))
    with pytest.raises(DatasetError, match=r"3\.png"):
        evaluate(request_)


def test_classes_that_do_not_fit_are_said(request_: Request, tmp_path: Path) -> None:
    for part in ("val", "valannot"):
        (tmp_path / "camvid" / part).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "camvid/val/a.png"), np.zeros((48, 96, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "camvid/valannot/a.png"), np.zeros((48, 96), np.uint8))
    outcome = evaluate(replace(request_, datasets=(f"camvid={tmp_path / 'camvid'}",)))
    (error,) = outcome.errors
    assert "19 classes are not the 11 of camvid" in error and "--label-set camvid" in error


def test_network_only_measures_time_alone(request_: Request) -> None:
    outcome = evaluate(replace(request_, network_only=True, datasets=("synthetic=4:3",)))
    assert all(result.auprc is None and result.network_ms for result in outcome.results)
    assert {result.frames for result in outcome.results} == {3}
