from __future__ import annotations

from pathlib import Path

import pytest

from anomseg_ros.core.file_kinds import foreign_content, foreign_file

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (LFS, "is a Git LFS pointer, not an image; get the file itself with `git lfs pull`"),
        (b"/annex/objects/SHA256E-s1--abc.png\n", "is a git-annex pointer"),
        (b"../.git/annex/objects/xx/yy/SHA256E-s1", "is a git-annex pointer"),
        (b"<!DOCTYPE html><html><title>Virus scan warning</title></html>", "is an HTML or XML page of 999 bytes"),
        (b"\n<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is an HTML or XML page"),
        ("404: für niemanden".encode(), "is a text of 999 bytes, not an image"),
        (b"x" * 511 + "ü".encode()[:1], "is a text"),  # a character that the inspected part cuts
    ],
)
def test_foreign_content_is_described(start: bytes, said: str) -> None:
    assert (foreign_content(start, 999, "an image") or "").startswith(said)


@pytest.mark.parametrize(
    "start", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\x89MCAP0\r\n", b"PK\x03\x04", b"\0\0"]
)
def test_data_is_not_foreign_content(start: bytes) -> None:
    assert foreign_content(start, 999, "an image") is None


def test_foreign_file_describes_pointers_and_accepts_missing_files(tmp_path: Path) -> None:
    (tmp_path / "lfs").write_bytes(LFS)
    assert "git lfs pull" in (foreign_file(tmp_path / "lfs", "a bag") or "")
    assert foreign_file(tmp_path / "absent", "a bag") is None and foreign_file(tmp_path, "a bag") is None
