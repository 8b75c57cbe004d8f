"""`anomseg adapt`: options, messages and exit status."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from adaptation_runs import SMALL, adaptable_bundle, street_drive

from anomseg_ros.adaptation import adapt as adaptation
from anomseg_ros.adaptation.request import LEVELS
from anomseg_ros.cli import main
from anomseg_ros.core.bundle import load_bundle


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    bundle, frames = adaptable_bundle(tmp_path / "given"), street_drive(tmp_path / "street")
    return ["adapt", str(bundle), "--frames", str(frames), "--output", str(tmp_path / "out"), "--threads", "1"]


def test_a_dry_run_says_what_would_be_done(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "given would be adapted on 11 frames, with thresholds of 3 others, and judged on 7 held back" in said
    assert "bn: 50 batches of 6 frames" in said and "self: 1 x 150 steps on 11 frames" in said
    assert main([*words, "--dry-run", "--stages", "bn", "--level", "full", "--every", "1"]) == 0
    assert "self" not in capsys.readouterr().err.replace(str(tmp_path), "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "street"]


def test_wrong_options_are_one_line(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, message in (
        (("--target-fpr", "2"), "target_fpr 2.0: expected a share above 0 and below 1"),
        (("--min-alarm-px", "0"), "--min-alarm-px is 0; expected at least 1 pixel"),
        (("--labels", "camvid"), "'camvid' is not of the form NAME=PATH"),
        (("--teacher", "erfnet-camvid"), "give the teacher as NETWORK=CHECKPOINT"),
        (("--teacher", f"mide_net={tmp_path}/none.pth"), "none.pth"),
        (("--objects", f"{tmp_path}/none"), "none"),
        (("--every", "2"), "the drive has 11 frames; thresholds need at least 20"),
    ):
        assert main([*words, *more]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, more
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.adapt").exists()


def test_an_int8_bundle_is_refused_before_torch_is_asked_for(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "anomseg_ros.adaptation.request", None)  # as where torch is missing
    assert main(["adapt", "bisenet_lite-world-int8", *words[2:]]) == 1
    assert "'bisenet_lite-world-int8' is int8, whose weights cannot be trained" in capsys.readouterr().err


@pytest.mark.slow
def test_status_3_says_that_no_stage_helped_and_the_given_bundle_is_written(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEVELS, "quick", SMALL)  # type: ignore[arg-type]
    monkeypatch.setattr(adaptation, "LEAST_AGREEMENT", 1.1)
    assert main([*words, "--stages", "bn", "--fps", "10", "--min-alarm-px", "4"]) == 3
    said = capsys.readouterr()
    assert "no stage made it better" in said.out and "given" in said.out and "alarms a minute" in said.out
    assert "reading the bundle and the drive" in said.err and "bn: " in said.err and "not kept" in said.err
    assert not (tmp_path / "out" / "adapted.jpg").exists()
    contract, given = load_bundle(tmp_path / "out").contract, load_bundle(tmp_path / "given").contract
    assert contract.files == given.files and contract.adaptation["chosen"] == "given"
    assert [stage["kept"] for stage in contract.adaptation["stages"]] == [True, False]
    assert set(contract.thresholds) == {"void", "msp"}, "thresholds of the drive are written anyway"
    assert contract.provenance.training_data == "noise"
    command = contract.provenance.command
    assert command is not None and command.startswith("anomseg adapt ") and "--stages bn" in command
    assert main([*words, "--stages", "bn"]) == 1
    assert "exists; choose another output or pass --overwrite" in capsys.readouterr().err
