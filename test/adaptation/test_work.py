"""The folder of unfinished work belongs to one request."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomseg_ros.adaptation.judge import Figures
from anomseg_ros.adaptation.work import Stage, WorkFolder
from anomseg_ros.errors import ConfigError, OutputError

STAGE = Stage("bn", "somewhere", 0.5, 0.01, Figures(4, 2, 0.4, 0.02, 7, 20, None), facts={"steps": 3})


def test_a_stage_that_is_done_is_found_again(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work", {"seed": 1}, overwrite=False)
    assert work.done("bn") is None and work.finish(STAGE) == STAGE
    again = WorkFolder(tmp_path / "work", {"seed": 1}, overwrite=False)
    assert again.done("bn") == STAGE
    again.remove()
    assert not (tmp_path / "work").exists()


def test_work_of_another_request_is_refused_or_replaced(tmp_path: Path) -> None:
    WorkFolder(tmp_path / "work", {"seed": 1}, overwrite=False).finish(STAGE)
    with pytest.raises(ConfigError, match="holds the work of another call; pass --overwrite"):
        WorkFolder(tmp_path / "work", {"seed": 2}, overwrite=False)
    assert WorkFolder(tmp_path / "work", {"seed": 2}, overwrite=True).done("bn") is None


def test_damage_is_told(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "work", {}, overwrite=False)
    work.finish(STAGE)
    for text in ("{", '{"name": "bn"}', "[]"):
        (tmp_path / "work" / "bn" / "stage.json").write_text(text)
        with pytest.raises(ConfigError, match=r"stage\.json is damaged .*--overwrite"):
            work.done("bn")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        WorkFolder(tmp_path / "file" / "work", {}, overwrite=False)
