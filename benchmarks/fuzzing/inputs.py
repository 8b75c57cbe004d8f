"""One input after another through a target in this process, and what became of each."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from anomseg_ros.bench.peak_memory import peak_resident_kib
from fuzzing.targets import Target

INPUT_LIMIT_S = 20.0
INPUT_LIMIT_MIB = 512
"""What a single input may add to the most memory that was ever resident."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
}
"""Python's audit events that change files -> which arguments are paths, and which the folders that these start from."""


class InputTimeout(BaseException):
    """An input took longer than INPUT_LIMIT_S; no `except Exception` may take it."""


class WrittenOutside(BaseException):
    """An input had a file written or changed outside the target's folder."""


@dataclass(frozen=True)
class Fault:
    """An input that broke what must hold. where: the innermost line of this package in the traceback."""

    index: int
    error: str
    where: str


@dataclass
class Tally:
    """What became of a target's inputs."""

    accepted: int = 0
    refused: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """How many there were."""
        return self.accepted + self.refused + len(self.faults)


def generator_of(seed: int, name: str, index: int) -> Random:
    """Return the generator of one input, which depends on nothing else."""
    return Random(f"{seed}/{name}/{index}")


def run_inputs(
    target: Target, name: str, seed: int, count: int, *, first: int = 0, until: float | None = None
) -> Tally:
    """Run inputs `first` to `first + count`, or until a time of time.monotonic(); return what became of them."""
    tally = Tally()
    with writing_only_in(target.folder):
        for index in range(first, first + count):
            if until is not None and time.monotonic() >= until:
                break
            result = run_input(target, generator_of(seed, name, index), index)
            if isinstance(result, Fault):
                tally.faults.append(result)
            else:
                tally.accepted += result
                tally.refused += not result
    return tally


def run_input(target: Target, rng: Random, index: int) -> bool | Fault:
    """Return whether one input was accepted rather than refused, or what it broke."""
    case = target.make(rng)
    before = peak_mib()
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, INPUT_LIMIT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # of numpy: what comes of such values is not looked at
            target.check(case)
        accepted = True
    except target.refusals:
        accepted = False
    except (Exception, InputTimeout, WrittenOutside) as error:
        return Fault(index, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", where(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if (grown := peak_mib() - before) > INPUT_LIMIT_MIB:
        return Fault(index, f"MemoryGrowth: {grown:.0f} MiB more than before, allowed {INPUT_LIMIT_MIB}", "")
    return accepted


def where(error: BaseException) -> str:
    """Return file, line and function of the innermost frame of the package, or of all where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "anomseg_ros" in Path(frame.filename).parts] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else ""


def peak_mib() -> float:
    """Return the most that was ever resident of this process, MiB (Linux)."""
    return peak_resident_kib() / 1024


_folders: list[str] = []


@contextmanager
def writing_only_in(folder: Path) -> Iterator[None]:
    """Raise WrittenOutside in whatever writes, moves or removes a file outside `folder` meanwhile, by way of Python."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_on_event)  # for good: Python cannot take one back
    _folders.append(str(folder.resolve()))
    try:
        yield
    finally:
        _folders.pop()


_hooked: list[bool] = []


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if not _folders:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = flags & WRITES if mode is None else set(mode) & set("wax+")
        changed = [path] if writes else []
    else:
        changed = [
            _from_folder(arguments[path], -1 if folder is None else arguments[folder])
            for path, folder in CHANGES.get(event, ())
        ]
    for path in changed:
        if isinstance(path, (str, bytes, os.PathLike)) and not _is_inside(os.fsdecode(path)):
            raise WrittenOutside(f"{event} of {os.fsdecode(path)!r}, outside {_folders[-1]!r}")


def _from_folder(path: Any, folder: int) -> Any:
    """Return a path that was given from an open folder as an absolute one."""
    return path if folder < 0 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))


def _is_inside(path: str) -> bool:
    whole = os.path.realpath(path)
    return path == os.devnull or whole == _folders[-1] or whole.startswith(_folders[-1] + os.sep)


def _on_alarm(signum: int, frame: object) -> None:
    raise InputTimeout(f"no end within {INPUT_LIMIT_S:g} s")
