"""`anomseg prune`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pruning_place import CLASSES, arguments, make_place, zero_share
from small_bundles import street_frames
from tiny_runs import write_config

from anomseg_ros.backends import open_detector
from anomseg_ros.cli import main
from anomseg_ros.core.bundle import GRAPH_FILE, load_bundle, sha256_of
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.counting import count_parameters

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("prune"))


def prune(place: Path, output: Path, *more: str) -> int:
    return main(["prune", *arguments(place, output, "--rounds", "0", *more)])


def test_pruning_removes_channels_and_keeps_source(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.read_bytes() for path in (place / "whole").iterdir())
    output = tmp_path / "small"
    assert main(["prune", *arguments(place, output, "--rounds", "3", "--accept-drift")]) == 0
    printed = capsys.readouterr().out
    assert "measured in turns" in printed and "ESTIMATE" not in printed
    assert sorted(path.read_bytes() for path in (place / "whole").iterdir()) == before
    bundle = load_bundle(output)
    assert set(bundle.contract.files) == {GRAPH_FILE, "checkpoint.safetensors"}
    assert bundle.contract.name == "small" and bundle.contract.precision == "fp32"
    assert bundle.contract.provenance.source_sha256 == sha256_of(output / "checkpoint.safetensors")
    compression = bundle.contract.compression
    assert compression["parent"]["sha256"] == sha256_of(place / "whole" / GRAPH_FILE)
    assert compression["drift"]["frames"] == 2 and compression["drift"]["accepted"] is True
    assert compression["settings"]["fraction"] == 0.3 and "estimated_time_ratio" not in compression["settings"]
    cost = compression["settings"]["cost"]
    assert cost["after"]["parameters"] < 0.7 * cost["before"]["parameters"]
    assert (output / GRAPH_FILE).stat().st_size < (place / "whole" / GRAPH_FILE).stat().st_size
    assert open_detector(bundle).detect(street_frames(1)[0]).labels is not None
    # What was pruned is a bundle with a checkpoint like any other: it can be pruned again.
    assert main(["prune", str(output), "--frames", str(place / "frames"), "--output", str(tmp_path / "smaller"),
                 "--rounds", "0", "--accept-drift"]) == 0  # fmt: skip
    narrow, narrower = (
        count_parameters(load_checkpoint(tmp_path / name / "checkpoint.safetensors", "mide_net", CLASSES))
        for name in ("small", "smaller")
    )
    assert narrower < narrow


def test_unstructured_pruning_marks_time_as_estimate(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(place, tmp_path / "sparse", "--method", "unstructured", "--fraction", ".1", "--accept-drift") == 0
    assert "ESTIMATE" in capsys.readouterr().out
    settings = load_bundle(tmp_path / "sparse").contract.compression["settings"]
    assert settings["estimated_time_ratio"]["is"].startswith("estimate, not measured")
    assert 0.8 < settings["estimated_time_ratio"]["value"] < 1
    assert settings["scope"] == "global" and "of" not in settings
    network = load_checkpoint(tmp_path / "sparse" / "checkpoint.safetensors", "mide_net", CLASSES)
    assert zero_share(network) == pytest.approx(0.1, abs=1e-4)


def test_excessive_drift_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(place, tmp_path / "small", "--label-agreement", "1") == 1
    error = capsys.readouterr().err
    assert "too far from its parent" in error and "--fine-tune" in error and "--accept-drift" in error
    assert not (tmp_path / "small").exists()


FINE_TUNE = ("--set", "run.epochs=1", "--set", "run.threads=1", "--accept-drift")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["structured", "unstructured", "masked"])
def test_fine_tuning_changes_pruned_bundle(
    method: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = write_config(tmp_path / "tune.yaml", "", run={"ema_decay": 0.5}, optimizer={"kind": "adamw"})
    tuned, plain = tmp_path / "tuned", tmp_path / "plain"
    more = ("--fine-tune", str(recipe), "--data", str(place / "camvid"), "--method", method, *FINE_TUNE)
    assert prune(place, plain, "--method", method, "--accept-drift") == 0
    assert prune(place, tuned, *more) == 0, capfd.readouterr().err
    kept = load_bundle(tuned).contract.compression["settings"]["fine_tune"]
    assert kept["steps"] == 3 and kept["set"] == ["run.epochs=1", "run.threads=1"]
    before, after = (
        load_checkpoint(one / "checkpoint.safetensors", "mide_net", CLASSES).state_dict() for one in (plain, tuned)
    )
    assert {key: value.shape for key, value in before.items()} == {key: value.shape for key, value in after.items()}
    assert any(not torch.equal(before[key], after[key]) for key in before)
    if method != "structured":  # what pruning made 0 is still 0
        convolutions = [key for key, value in before.items() if value.dim() == 4]
        assert all(bool((after[key][before[key] == 0] == 0).all()) for key in convolutions)
    if method == "structured":
        # Another fraction begins afresh; the run of the first is not taken for its own.
        assert prune(place, tuned, *more, "--fraction", "0.5", "--overwrite") == 0
        more_pruned, less_pruned = (
            load_bundle(one).contract.compression["settings"]["cost"]["after"]["nonzero_parameters"]
            for one in (tuned, plain)
        )
        assert more_pruned < 0.85 * less_pruned


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--fraction", "0"), "more than 0 and less than 1"),
        (("--fraction", "30"), "more than 0 and less than 1"),
        (("--round-to", "0"), "round_to 0"),
        (("--label-agreement", "97"), "--label-agreement 97"),
        (("--frames", "nowhere"), "nowhere"),
        (("--held-out-frames", "0"), "0 to measure on"),
        (("--set", "run.epochs=1"), "--fine-tune CONFIG"),
        (("--fine-tune", "mide_net-camvi"), "mide_net-camvid"),
        (("--fine-tune", "enet-camvid", "--data", "."), "trains 'enet', the bundle is of 'mide_net'"),
        (("--checkpoint", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
        (("--rounds", "-1"), "--rounds -1"),
        (("--dataset", "nothing"), "NAME=PATH"),
    ],
)
def test_wrong_values_are_errors(
    more: tuple[str, ...], words: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(place, tmp_path / "small", *more) == 1
    error = capsys.readouterr().err
    assert words in " ".join(error.split()) and "Traceback" not in error
    assert not (tmp_path / "small").exists()


def test_checkpoint_of_other_bundle_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path / "other.safetensors", build_network("mide_net", CLASSES), {})
    assert prune(place, tmp_path / "small", "--checkpoint", str(tmp_path / "other.safetensors")) == 1
    assert "is not what bundle 'whole' was exported from" in capsys.readouterr().err


def test_source_as_output_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(place, place / "whole", "--overwrite") == 1
    assert "never changed" in capsys.readouterr().err


def test_int8_bundle_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint is the right one, so that nothing else is wrong."""
    assert prune(place, tmp_path / "float", "--accept-drift") == 0
    float_bundle, frames = str(tmp_path / "float"), ("--frames", str(place / "frames"), "--allow-few")
    small = str(tmp_path / "small")
    assert main(["quantize", float_bundle, *frames, "--output", small, "--keep-float=none", "--accept-drift"]) == 0
    capsys.readouterr()
    words = ["--checkpoint", f"{float_bundle}/checkpoint.safetensors", "--frames", str(place / "frames")]
    assert main(["prune", small, *words, "--output", str(tmp_path / "again")]) == 1
    assert "is int8; prune the float bundle that it was made from" in capsys.readouterr().err
