"""Writing to a temporary name, then moving to the final name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from anomseg_ros.core import staging
from anomseg_ros.core.staging import put_in_place, remove_leftovers, replace_text, staging_folder


def finished_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_leftovers_of_ended_processes_are_removed(tmp_path: Path) -> None:
    host, gone = socket.gethostname(), finished_process()
    names = {
        f".a.x1.{host}.{gone}.part": False,
        f".a.x1.{host}.{os.getpid()}.part": True,
        f".a.x1.elsewhere.{gone}.part": True,
        f".b.x1.{host}.{gone}.part": True,
        f".a.x1.{host}.mine.part": True,
        "a.part": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    remove_leftovers(tmp_path, ".a.")
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_failed_replacement_keeps_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_text(tmp_path / "file", "old")

    def full(path: Path, *_: object, **__: object) -> None:
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        replace_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_folder_replaces_another(can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_exchange:
        monkeypatch.setattr(staging, "_exchanged", lambda one, other: False)
    target = tmp_path / "deep" / "target"
    for text in ("first", "second"):
        beside = staging_folder(target)
        (beside / "file").write_text(text)
        put_in_place(beside, target)
        assert (target / "file").read_text() == text
    assert (beside / "file").read_text() == "first"


def test_failed_folder_replacement_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_exchanged", lambda one, other: False)
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("old")
    with pytest.raises(OSError):
        put_in_place(tmp_path / "absent", target)
    assert (target / "file").read_text() == "old" and os.listdir(tmp_path) == ["target"]
