"""`anomseg calibrate threshold --frames`: what it writes and prints, and what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import write
from drives import write_pictures, write_unlabelled_bag, write_video
from flat_dataset import write_flat_dataset

from anomseg_ros.cli import main
from anomseg_ros.core.bundle import change_bundle, load_bundle
from anomseg_ros.core.thresholds import ThresholdTable


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with thresholds for two rates of one score."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    tables = {"void": ThresholdTable("camvid val", {0.01: 0.5, 0.2: 0.1}), "msp": ThresholdTable("else", {0.3: 0.5})}
    change_bundle(load_bundle(folder), partial(replace, thresholds=tables))
    return folder


def calibrate(bundle: Path, *words: object) -> int:
    return main(["calibrate", "threshold", str(bundle), "--score", "void", *map(str, words)])


def test_thresholds_of_a_drive_replace_those_of_the_bundle(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    street, ring = write_pictures(tmp_path / "street", 20), write_video(tmp_path / "ring.avi", 8)
    (tmp_path / "strange.txt").write_text("street/3\nring/ring_000001\n")
    inputs = (street, ring, write_unlabelled_bag(tmp_path / "night", 3))
    assert (
        calibrate(
            bundle, "--frames", *inputs, "--leave-out", tmp_path / "strange.txt", "--page", tmp_path / "page.html"
        )
        == 0
    )
    tables = load_bundle(bundle).contract.thresholds
    assert tables["void"].calibrated_on == "unlabelled drive street, ring, night (18 frames, 9 held back)"
    assert list(tables["void"].by_target_fpr) == [0.01, 0.2] and tables["void"].calibrated_elsewhere is None
    assert tables["msp"] == ThresholdTable("else", {0.3: 0.5})
    said = capsys.readouterr()
    assert "thresholds from 18 frames, checked on 9 held back" in said.out and " x │" in said.out
    assert "calibration" in said.err and "held back" in said.err
    assert f"the frames are shown in {tmp_path / 'page.html'}" in said.out
    assert (tmp_path / "page.html").read_text().count("data-names") == 27


def test_alarms_per_minute_are_calibrated(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    street = write_pictures(tmp_path / "street", 30)
    words = ("--frames", street, "--target-fpr", "0.01", "--target-alarms-per-minute", "60,600", "--min-alarm-px", "9")
    assert calibrate(bundle, *words, "--fps", "10") == 0
    table = load_bundle(bundle).contract.thresholds["void"]
    found = table.by_target_alarms_per_minute
    assert found is not None and list(found) == [60, 600] and found[60].threshold >= found[600].threshold
    assert found[60].calibrated_on == "unlabelled drive street (20 frames, 10 held back)"
    assert "thresholds from 2.0 s, checked on 1.0 s held back" in capsys.readouterr().out
    for more, message in (
        ((), "street' have no times, which alarms per minute need: give the rate at which they were taken"),
        (("--fps", "1000"), "60 alarms per minute allow no alarm in the 0.0 s"),
        (("--fps", "-1"), "the rate is -1.0 Hz; expected a number above 0"),
        (("--fps", "10", "--min-alarm-px", "0"), "--min-alarm-px is 0; expected at least 1 pixel"),
    ):
        assert calibrate(bundle, *words, *more) == 1
        said = capsys.readouterr().err
        assert message in said and "calibration" not in said  # before any frame is detected
    with pytest.raises(SystemExit):
        calibrate(bundle, "--frames", street, "--target-alarms-per-minute", "0")
    assert "'0': expected numbers above 0, such as 1 or 0.5,2" in capsys.readouterr().err


def test_tables_are_not_cut_in_a_narrow_terminal(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    words = ("--target-fpr", "0.001,0.01", "--target-alarms-per-minute", "60", "--fps", "10")
    assert calibrate(bundle, "--frames", write_pictures(tmp_path / "street", 30), *words) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed and "FPR held back" in printed and "alarms held back" in printed
    thresholds = load_bundle(bundle).contract.thresholds["void"].by_target_fpr
    assert all(f"{thresholds[rate]:.6g} " in printed for rate in (0.001, 0.01))


def test_thresholds_that_fall_far_are_warned_of(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle that knows the road has fewer alarms than asked for; a person should not make it worse unawares."""
    street = write_pictures(tmp_path / "street", 20)
    tables = {"void": ThresholdTable("camvid val", {0.01: 0.999, 0.2: 0.998})}
    change_bundle(load_bundle(bundle), partial(replace, thresholds=tables))
    assert calibrate(bundle, "--frames", street) == 0
    said = capsys.readouterr().err
    assert said.count("There will be more alarms") == 1
    assert "warning: void at 0.01: the threshold falls from 0.999 to" in said
    assert "only 0.000 % of this road's pixels are above the old one" in said
    assert calibrate(bundle, "--frames", street) == 0
    assert "more alarms" not in capsys.readouterr().err


def test_rates_that_do_not_hold_are_warned_of(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(30):  # the part held back is noise, the other part is plain
        plain = np.full((48, 96, 3), 30, np.uint8)
        noisy = np.random.default_rng(number).integers(0, 256, plain.shape, np.uint8)
        write(tmp_path / "street" / f"{number}.png", noisy if 10 <= number < 20 else plain)
    assert calibrate(bundle, "--frames", tmp_path / "street", "--target-fpr", "0.01") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: void at 0.01: on the frames held back the rate is" in said
    assert "calibrate on more frames, and on other stretches of road as well" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ego-mask", "HERE/absent.png"), "--ego-mask: 'HERE/absent.png' cannot be read as an image"),
        (("--leave-out", "HERE/absent.txt"), "the list of frames cannot be read: 'HERE/absent.txt': No such file"),
        (("--leave-out", "HERE/names.txt"), "1 of 1 frames to leave out are not in HERE/street, the first is '99'"),
        (("--every", "2"), "the drive has 10 frames; thresholds need at least 20"),
        (("--page", "HERE"), "cannot write 'HERE': Is a directory"),
        (("--every", "0"), "every is 0; expected a whole number of frames"),
        (("--image-topic", "/image"), "topic '/image' was given, but 'HERE/street' is not a bag"),
        (("HERE/absent",), "'HERE/absent' does not exist; give a folder of pictures, a video or a bag"),
        (("HERE/damaged",), "1 × unreadable: HERE/damaged/0.png"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], message: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    street = write_pictures(tmp_path / "street", 20)
    (write_pictures(tmp_path / "damaged", 1) / "0.png").write_bytes(b"\x89PNG")
    (tmp_path / "names.txt").write_text("99")
    before = load_bundle(bundle).contract
    assert calibrate(bundle, "--frames", street, *(word.replace("HERE", str(tmp_path)) for word in words)) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("anomseg: error:")]
    assert len(errors) == 1 and message.replace("HERE", str(tmp_path)) in errors[0]
    assert load_bundle(bundle).contract == before


def test_either_labelled_or_unlabelled_frames(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, street = write_flat_dataset(tmp_path / "flat"), write_pictures(tmp_path / "street", 20)
    for words in ((), ("--frames", street, "--dataset", dataset)):
        with pytest.raises(SystemExit):
            calibrate(bundle, *words)
    assert "not allowed with argument --frames" in capsys.readouterr().err
    for option in (
        ("--every", "2"),
        ("--image-topic", "/image"),
        ("--leave-out", "list"),
        ("--road-region", "road"),
        ("--fps", "10"),
    ):
        assert calibrate(bundle, "--dataset", dataset, *option) == 1
        assert f"{option[0]} needs --frames" in capsys.readouterr().err
