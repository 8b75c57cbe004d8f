"""Input files that cannot be read: one line that names the path and the reason, in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomseg_ros.cli import main

READERS = {
    "report": ["report", "FILE", "--html", "page.html"],
    "compare": ["compare", "FILE", "FILE"],
    "train": ["train", "FILE", "--output", "run"],
    "compress": ["compress", "FILE", "enet-synthetic", "--frames", "synthetic=5:1", "--output", "bundle"],
}


@pytest.mark.parametrize("words", READERS.values(), ids=READERS)
@pytest.mark.parametrize("kind", ["folder", "not utf-8", "cut"])
def test_unreadable_input_gives_one_line_without_error_numbers(
    words: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "input.yaml"
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\xfe" if kind == "not utf-8" else b"a: [1\nb: {")
    assert main([str(path) if word == "FILE" else word for word in words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count(str(path)) == 1 and "[Errno" not in line
