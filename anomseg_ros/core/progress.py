"""Progress reports of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, "int | None"], None]
"""Called with (what is counted, number done, total number or None if unknown)."""


def no_progress(what: str, done: int, total: int | None) -> None:
    """Report nothing."""
