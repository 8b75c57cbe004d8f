"""A line on standard error while a command says nothing, because torch takes seconds to import."""

from __future__ import annotations

import sys
import threading

PATIENCE_S = 1.5
"""How long a command may say nothing, seconds."""

_timer: threading.Timer | None = None


def announce_if_slow(command: str) -> None:
    """Print a line on a terminal after PATIENCE_S, unless announced() is called before."""
    global _timer
    announced()
    if not sys.stderr.isatty():
        return
    text = f"anomseg {command}: loading libraries and reading files"
    _timer = threading.Timer(PATIENCE_S, lambda: print(text, file=sys.stderr, flush=True))
    _timer.daemon = True
    _timer.start()


def announced() -> None:
    """Print no such line any more: the command shows its progress, or has ended."""
    if _timer is not None:
        _timer.cancel()
