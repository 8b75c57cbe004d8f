"""Every command's paths: what cannot be written is refused before any work, what cannot be read is one line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from anomseg_ros import cli
from anomseg_ros.command_table import COMMANDS
from anomseg_ros.commands import options
from anomseg_ros.commands.drift_options import POINTS, SHARES

OUTPUT_NAMES = {"output", "json", "html", "plot", "keep", "state"}
BUNDLE = "enet-synthetic"
WITHOUT_PATHS = {"node", "datasets list", "models list", "models fetch", "share", "doctor", "completion"}
"""Commands that read nothing which is given by its path."""

INPUTS: dict[str, tuple[str, ...]] = {
    "run": (f"{BUNDLE} MISSING --output out", "MISSING frame.png --output out"),
    "demo": ("MISSING.mcap --output out", "MISSING.mp4 --output out", "--bundle MISSING --output out"),
    "policy": ("--cameras MISSING",),
    "bag write": ("--images MISSING --output out", "--dataset camvid=MISSING --output out"),
    "bag evaluate": (f"{BUNDLE} MISSING", "MISSING --recorded", f"{BUNDLE} MISSING.mcap"),
    "bag play": ("MISSING", "MISSING.db3"),
    "datasets check": ("camvid=MISSING",),
    "datasets import": ("cvat MISSING --output out", "coco MISSING --output out"),
    "datasets cut-paste": (
        "camvid=MISSING --output out",
        "synthetic=5:1 --output out --objects MISSING",
    ),
    "datasets pseudo-label": (f"--frames folder=MISSING --teacher {BUNDLE} --output out",),
    "models show": ("MISSING",),
    "models verify": ("MISSING",),
    "export": ("--network enet --checkpoint MISSING.pth --num-classes 20 --void-class 19 --output out",),
    "evaluate": (f"{BUNDLE} --dataset camvid=MISSING", "MISSING --dataset synthetic=5:1"),
    "calibrate threshold": (f"{BUNDLE} --dataset camvid=MISSING --output out",),
    "calibrate score": (f"{BUNDLE} --dataset camvid=MISSING --score sml --checkpoint MISSING.pth --output out",),
    "calibrate temperature": (f"{BUNDLE} --dataset camvid=MISSING --checkpoint MISSING.pth --output out",),
    "train": ("MISSING.yaml",),
    "adapt": (
        "enet-camvid --frames MISSING --output out",
        "MISSING --frames MISSING.mp4 --output out",
        "enet-camvid --frames . --output out --labels camvid=MISSING",
    ),
    "papers": ("--weights MISSING --data MISSING --output out.md", "--tables out.md --measured eomt=MISSING.json"),
    "report": ("MISSING.json",),
    "compare": ("MISSING.json MISSING.json",),
    "quantize": (f"{BUNDLE} --frames MISSING --output out", "MISSING --frames MISSING --output out"),
    "convert": (f"{BUNDLE} --frames MISSING --output out", "MISSING --frames MISSING --output out"),
    "build": ("MISSING --check", "MISSING --dry-run"),
    "prune": (f"{BUNDLE} --frames MISSING --checkpoint MISSING.pth --output out",),
    "compress": (f"MISSING.yaml {BUNDLE} --frames MISSING --output out",),
    "bench": ("MISSING", f"{BUNDLE} --accuracy MISSING.json"),
    "tune": (f"{BUNDLE} --max-latency-ms 10 --frames MISSING --output out",),
}


CHECKED_BY_THE_LIBRARY = {"fail_below_auprc", *SHARES, *POINTS}
"""Numbers that the library refuses where they are not finite, in the words of the option."""


def parser_of(command: str) -> argparse.ArgumentParser:
    if command in ("node", "policy"):
        pytest.importorskip("rclpy", reason="needs ROS 2", exc_type=ImportError)
    return COMMANDS[command].argument_parser()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "a_file").write_text("")
    (tmp_path / "a_folder").mkdir()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_file", "a_folder"]


@pytest.mark.parametrize("command", COMMANDS)
def test_unwritable_outputs_are_refused_before_work(
    command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for action in parser_of(command)._actions:
        if action.type not in (options.output_file, options.output_folder):
            assert action.nargs == 0 or action.dest not in OUTPUT_NAMES, f"{action.dest} of {command}"
            continue
        taken = "a_folder" if action.type is options.output_file else "a_file"
        for path in (taken, "a_file/below", f"new/{'n' * 256}", "/proc/nowhere/x"):
            assert cli.main([*command.split(), action.option_strings[0], path]) == 1
            error = capsys.readouterr().err
            assert error.startswith(f"anomseg: error: cannot write {path!r}: ") and error.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_float_options_are_checked_to_be_finite(command: str) -> None:
    for action in parser_of(command)._actions:
        by_the_library = action.dest in CHECKED_BY_THE_LIBRARY or command == "node"  # see node/parameters.py
        assert action.type is not float or by_the_library, action.dest


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - WITHOUT_PATHS))
def test_missing_inputs_give_one_line_error(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if command in ("bag play", "demo"):
        pytest.importorskip("rclpy", reason="needs ROS 2", exc_type=ImportError)
    for words in INPUTS[command]:
        given = words.replace("MISSING", str(place / "not_there")).split()
        assert cli.main([*command.split(), *given]) == 1
        told = capsys.readouterr()
        error = told.out + told.err
        assert "not_there" in error and "Traceback" not in error
        for made in ("out", "out.md"):
            assert not (place / made).exists(), f"{command} {words}"
