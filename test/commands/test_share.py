from __future__ import annotations

from pathlib import Path

import pytest

from anomseg_ros.cli import main


def test_shipped_file_prints_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["share", "config/fastdds.xml"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.is_absolute() and path.read_text().startswith("<?xml")


def test_without_argument_lists_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["share"]) == 0
    assert capsys.readouterr().out.strip()


def test_unknown_file_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["share", "config/nothing.xml"]) == 1
    assert "config/nothing.xml was not found in" in capsys.readouterr().err
