"""Work that all processes of one test run share: the first that needs a result makes it, the others copy it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

VARIABLE = "ANOMSEG_TEST_RUN"


def begin() -> None:
    """Make the folder of the run; the processes that this one starts find it in their environment."""
    os.environ.setdefault(VARIABLE, tempfile.mkdtemp(prefix="anomseg-tests-"))


def end() -> None:
    """Remove the folder, in the process that made it."""
    shutil.rmtree(os.environ.pop(VARIABLE), ignore_errors=True)


def copy_of(name: str, make: Callable[[Path], object], target: Path) -> Path:
    """Copy the folder that make(folder) makes to `target`, and return that. It is made once per run."""
    made = Path(os.environ[VARIABLE], name)
    with Path(os.environ[VARIABLE], f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            unfinished = made.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(made)
    return Path(shutil.copytree(made, target, dirs_exist_ok=True))
