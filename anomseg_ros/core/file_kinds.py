"""What a file is that is not what its name says: a pointer to the real one, a page, text."""

from __future__ import annotations

import re
from pathlib import Path

SNIFFED_BYTES = 512
"""So much of a file's beginning tells what it is."""

_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = re.compile(rb"^(\.\./)*(\.git)?/?annex/objects/")
_TAGS = re.compile(rb"^\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body|\?xml|title|script)", re.I | re.DOTALL)


def foreign_content(start: bytes, size_bytes: int, expected: str) -> str | None:
    """Return in words what a file is instead of data, and what to do: `is a Git LFS pointer, …`; None if it is data.

    start: its first SNIFFED_BYTES. size_bytes: of all of it. expected: what it should be, such as "a checkpoint".
    """
    if start.startswith(_LFS):
        return f"is a Git LFS pointer, not {expected}; get the file itself with `git lfs pull`"
    if _ANNEX.match(start):
        return f"is a git-annex pointer, not {expected}; get the file itself with `git annex get`"
    if _TAGS.match(start):
        return f"is an HTML or XML page of {size_bytes} bytes, not {expected}: a failed download? Download it again"
    if start and _is_text(start):
        return f"is a text of {size_bytes} bytes, not {expected}; copy or download it again"
    return None


def foreign_file(path: Path, expected: str) -> str | None:
    """Return foreign_content of a file; None for data, and for what is no readable file."""
    try:
        with path.open("rb") as stream:
            return foreign_content(stream.read(SNIFFED_BYTES), path.stat().st_size, expected)
    except OSError:
        return None


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else a character that the sniffed part cuts
            return False
        text = start[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter in "\t\r\n" for letter in text)
