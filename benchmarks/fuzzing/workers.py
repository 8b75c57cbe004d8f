"""A target in a process of its own, which is watched: what kills it, hangs it or eats the memory is a fault as well."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fuzzing.inputs import INPUT_LIMIT_S, Fault, Tally, generator_of, run_input, writing_only_in
from fuzzing.targets import TARGETS, open_target

MEMORY_MIB = 8192
"""Of address space beyond what the opened target has; an input that asks for more gets MemoryError."""
KILL_AFTER_S = 2 * INPUT_LIMIT_S
"""Code that is not Python does not take the alarm of an input: its process is killed then."""
OPEN_S = 300.0
POLL_S = 0.2
NEXT, ACCEPTED, REFUSED, OPENED = range(4)

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Job:
    """Inputs of one target: from `first` to before `end`."""

    name: str
    entry: str
    seed: int
    first: int
    end: int
    bundle: Path


def run_target(
    name: str, seed: int, first: int, end: int, bundle: Path, told: Callable[[Tally], None], until: float
) -> Tally:
    """Run inputs of a target of the table in processes of their own until a time of time.monotonic(); see run_job."""
    return run_job(Job(name, TARGETS[name], seed, first, end, bundle), told, until)


def run_job(job: Job, told: Callable[[Tally], None], until: float) -> Tally:
    """Run the inputs; a process that ends or hangs in one is replaced and goes on with the next.

    told: is called with what became of the inputs so far, now and then.
    """
    tally, first = Tally(), job.first
    while first < job.end and time.monotonic() < until:
        worker = _Worker(job, first)
        before = (tally.accepted, tally.refused)
        while worker.is_working:
            worker.watch(until)
            tally.accepted, tally.refused = (count + new for count, new in zip(before, worker.counts, strict=True))
            tally.faults += worker.new_faults()
            told(tally)
        if worker.fault is not None:
            tally.faults.append(worker.fault)
        first = worker.next
    return tally


class _Worker:
    """The process, what it counts in shared memory, and the fault that ended it, if one did."""

    def __init__(self, job: Job, first: int) -> None:
        self._numbers = _SPAWN.RawArray(ctypes.c_int64, [first, 0, 0, 0])
        self._ours, theirs = _SPAWN.Pipe(duplex=False)
        self._job = job
        self.fault: Fault | None = None
        self._process = _SPAWN.Process(target=_work, args=(job, first, self._numbers, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._since = time.monotonic()
        self._seen = first

    @property
    def is_working(self) -> bool:
        return self._process.is_alive()

    @property
    def next(self) -> int:
        """The input to go on with."""
        return self._numbers[NEXT]

    @property
    def counts(self) -> tuple[int, int]:
        return self._numbers[ACCEPTED], self._numbers[REFUSED]

    def watch(self, until: float) -> None:
        """Wait a moment; end the process at the time, or where an input does not end."""
        self._process.join(POLL_S)
        now = time.monotonic()
        if self._numbers[NEXT] != self._seen:
            self._seen, self._since = self._numbers[NEXT], now
        limit_s = KILL_AFTER_S if self._numbers[OPENED] else OPEN_S
        if not self._process.is_alive():
            if self._process.exitcode:
                self._end(f"ended with status {self._process.exitcode}")
        elif now - self._since > limit_s:
            self._process.kill()
            self._process.join()
            self._end(f"killed: no end within {limit_s:g} s")
        elif now >= until:
            self._process.terminate()
            self._process.join()

    def new_faults(self) -> list[Fault]:
        """Return the faults that the process has told since the last call."""
        found = []
        try:
            while self._ours.poll():
                found.append(self._ours.recv())
        except EOFError:  # the process has ended
            pass
        return found

    def _end(self, how: str) -> None:
        if not self._numbers[OPENED]:
            raise RuntimeError(f"target {self._job.name} could not be opened: its process {how}")
        self.fault = Fault(self._numbers[NEXT], f"the process {how}", "")
        self._numbers[NEXT] += 1


def _work(job: Job, first: int, numbers: Any, faults: Connection) -> None:
    """Run the inputs one after the other; the memory of one that took too much is given back with the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who watches
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    _be_quiet()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "inputs"
        folder.mkdir()
        target = open_target(job.entry, folder, job.bundle)
        _limit_memory()
        numbers[OPENED] = 1
        with writing_only_in(folder):
            for index in range(first, job.end):
                result = run_input(target, generator_of(job.seed, job.name, index), index)
                if isinstance(result, Fault):
                    faults.send(result)
                else:
                    numbers[ACCEPTED if result else REFUSED] += 1
                numbers[NEXT] = index + 1
        target.close()


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_MIB * 2**20,) * 2)


def _be_quiet() -> None:
    """Send to nowhere what libraries print of each bad input."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
