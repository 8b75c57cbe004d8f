"""What a command says before its first result."""

from __future__ import annotations

import sys
import time

import pytest

from anomseg_ros import cli
from anomseg_ros.command_table import Command
from anomseg_ros.commands import startup
from anomseg_ros.commands.progress_lines import ProgressLines

LINE = "anomseg run: loading libraries and reading files"


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "PATIENCE_S", 0.05)


@pytest.fixture()
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda stream: True)


def said_by(
    seconds_s: float, says: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> str:
    def main(argv: list[str]) -> int:
        if says is not None:
            with ProgressLines() as lines:
                if says:
                    lines(says, 0, 1)
                time.sleep(seconds_s)
        else:
            time.sleep(seconds_s)
        return 0

    monkeypatch.setattr(Command, "main", lambda command: main)
    assert cli.main(["run"]) == 0
    time.sleep(0.15)
    return capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("says", [None, ""])
def test_slow_command_is_announced_until_it_shows_something(
    terminal: None, says: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said_by(2.0, says, capsys, monkeypatch).count(LINE) == 1


@pytest.mark.parametrize(("seconds_s", "says"), [(0.0, None), (0.3, "frames")])
def test_fast_command_and_one_that_shows_progress_are_not(
    terminal: None,
    seconds_s: float,
    says: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert LINE not in said_by(seconds_s, says, capsys, monkeypatch)


def test_log_file_gets_no_such_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert LINE not in said_by(0.3, None, capsys, monkeypatch)
