"""What cannot be adapted is refused before any frame is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adaptation_runs import small_request
from dataset_trees import write
from drives import write_pictures
from tiny_runs import write_frames

from anomseg_ros.adaptation.adapt import adapt
from anomseg_ros.adaptation.request import LEVELS, AdaptRequest
from anomseg_ros.adaptation.result import require_adaptable
from anomseg_ros.adaptation.self_training import Teacher
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.resources import shipped_bundles
from anomseg_ros.datasets import open_dataset
from anomseg_ros.datasets.unlabelled_drive import UnlabelledDrive, open_drive
from anomseg_ros.errors import AnomsegError, CheckpointError


@pytest.fixture
def request_(tmp_path: Path) -> AdaptRequest:
    return small_request(tmp_path)


def refuse(request: AdaptRequest, message: str) -> None:
    with pytest.raises(AnomsegError, match=message):
        adapt(request)
    assert not request.work.exists()


def changed(request: AdaptRequest, **changes: object) -> AdaptRequest:
    """Return the request with another contract of the bundle."""
    bundle = request.bundle
    return replace(request, bundle=Bundle(bundle.directory, replace(bundle.contract, **changes)))  # type: ignore[arg-type]


def test_bundles_without_float_weights(request_: AdaptRequest, tmp_path: Path) -> None:
    refuse(changed(request_, precision="int8"), "is int8, whose weights cannot be trained; adapt the float bundle")
    refuse(changed(request_, void_class=3), "void class of bundle 'given' is output 3 of 20; adaptation wants it last")
    other = replace(request_.bundle.contract.provenance, source_sha256="0" * 64)
    refuse(changed(request_, provenance=other), "no checkpoint.safetensors is with bundle 'given'")
    refuse(replace(request_, checkpoint=tmp_path / "missing.pth"), "missing.pth does not exist")


def test_another_checkpoint_than_the_bundles(request_: AdaptRequest) -> None:
    wrong = request_.bundle.directory / "model.onnx"
    with pytest.raises(CheckpointError, match="is not what bundle 'given' was exported from"):
        require_adaptable(request_, wrong)


def test_scores_that_are_fitted_to_the_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    from fitted_networks import fitted_network

    from anomseg_ros.export import ExportConfig
    from anomseg_ros.networks.checkpoints import save_checkpoint

    config = ExportConfig("tiny", 20, 19, height_px=64, width_px=128)
    save_checkpoint(tmp_path / "c.safetensors", fitted_network(config), {})
    request = small_request(tmp_path, bundle=load_bundle(tiny_bundle), checkpoint=tmp_path / "c.safetensors")
    refuse(request, r"scores that are fitted to its weights \(.*sml.*\); .*calibrate score")


def test_wrong_numbers(request_: AdaptRequest) -> None:
    for rate in (0.0, 1.0, 2.0, -0.1, float("nan")):
        refuse(replace(request_, target_fpr=rate), "expected a share above 0 and below 1, such as 0.01")
    refuse(replace(request_, stages=()), "unknown stage ''")
    refuse(replace(request_, stages=("bn", "teach")), "unknown stage 'teach'")


def test_drives_that_are_too_short(request_: AdaptRequest, tmp_path: Path) -> None:
    short = open_drive([write_pictures(tmp_path / "short", 19)])
    refuse(replace(request_, drive=short), "the drive has 19 frames; thresholds need at least 20")
    with pytest.raises(AnomsegError, match="no drive was given"):
        UnlabelledDrive([])


def test_outputs(request_: AdaptRequest, tmp_path: Path) -> None:
    refuse(replace(request_, output=request_.bundle.directory), "is the bundle itself, which is never changed")
    refuse(replace(request_, output=next(iter(shipped_bundles().values())).parent / "new"), "in the package's models/")
    (tmp_path / "adapted").mkdir()
    refuse(request_, "exists; choose another output or pass --overwrite")
    refuse(replace(request_, overwrite=True), "exists and is not a bundle")


def test_labels_of_other_classes(request_: AdaptRequest, tmp_path: Path) -> None:
    camvid = open_dataset("camvid", write_frames(tmp_path / "CamVid"))
    refuse(replace(request_, labels=camvid), "camvid has the classes sky, .*; bundle 'given' has road, ")
    for number in range(3):
        write(tmp_path / "flat" / "images" / f"{number}.png", request_.drive.load(0).image)
        write(tmp_path / "flat" / "labels_masks" / f"{number}.png", request_.drive.load(0).image[..., 0] * 0)
    anomalies = open_dataset("road_anomaly_21", tmp_path / "flat")
    refuse(replace(request_, labels=anomalies), "has no class labels to learn from")


def test_a_teacher_of_other_classes(request_: AdaptRequest) -> None:
    file = request_.bundle.directory / "checkpoint.safetensors"
    refuse(replace(request_, teacher=Teacher("mide_net", file, 11)), "teacher has 11 outputs, bundle 'given' has 19")
    refuse(replace(request_, teacher=Teacher("mide_net", file, 19)), "19")


def test_levels_differ_in_work() -> None:
    quick, full = LEVELS["quick"], LEVELS["full"]
    assert quick.training.steps < full.training.steps and quick.rounds < full.rounds and quick.frames < full.frames


@pytest.mark.parametrize(("frames", "blocks"), [(20, 1), (100, 1), (1000, 4), (10_000, 10)])
def test_a_fifth_of_what_is_not_held_back_is_for_the_thresholds(
    request_: AdaptRequest, frames: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UnlabelledDrive, "__len__", lambda drive: frames)
    split = request_.split
    assert sorted((*split.adapted, *split.thresholds, *split.held_back)) == list(range(frames))
    rest = sorted((*split.adapted, *split.thresholds))
    assert len(split.thresholds) == pytest.approx(len(rest) / 5, abs=1 + frames / 100)
    places = [rest.index(frame) for frame in split.thresholds]
    assert sum(place - 1 not in places for place in places) == blocks


def test_what_decides_the_result(request_: AdaptRequest, tmp_path: Path) -> None:
    checkpoint = request_.check()
    facts = request_.facts(checkpoint)
    assert replace(request_, threads=2, overwrite=True).facts(checkpoint) == facts
    rest = replace(request_, drive=request_.drive.without(["000"]))
    changes: list[dict[str, Any]] = [{"seed": 1}, {"target_fpr": 0.02}, {"level": LEVELS["full"]}, {"stages": ("bn",)}]
    others = [rest, *(replace(request_, **change) for change in changes)]
    assert all(other.facts(checkpoint) != facts for other in others)
