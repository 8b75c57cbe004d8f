"""Time candidates in rounds. In every round each candidate runs once, in a new random order.

If the machine is busy for a second, all candidates are slowed alike. And no candidate always follows the same other
one and finds that one's data in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from anomseg_ros.bench.candidates import Runner
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError

WARM_UP_RUNS = 3
MIN_ROUNDS = 7

Clock = Callable[[], float]


@dataclass(frozen=True)
class Stop:
    """When to stop: after `rounds`, or, where that is None, after `seconds` and at least MIN_ROUNDS."""

    rounds: int | None = None
    seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.rounds is not None and self.rounds < 1:
            raise ConfigError(f"rounds is {self.rounds!r}; give at least 1, better 30")
        if not self.seconds > 0:
            raise ConfigError(f"seconds is {self.seconds!r}; give a time above 0")


def measure_rounds(
    runners: Sequence[Runner],
    frames: Sequence[Sequence[RgbImage]],
    stop: Stop,
    *,
    seed: int = 0,
    on_round: Callable[[list[float]], None] = lambda times: None,
    after_run: Callable[[int], None] = lambda index: None,
    progress: Progress = no_progress,
) -> list[list[float]]:
    """Return one row per round: the milliseconds of each runner.

    Args:
        runners: what to time.
        frames: the frames of each runner, uint8 (H, W, 3) RGB; in a round all runners get the frame of the same index.
        stop: when to stop.
        seed: of the orders.
        on_round: called with each finished row.
        after_run: called with the runner's index after each of its timed runs.
        progress: called after each round.
    """
    _warm_up(runners, frames, progress)
    rows: list[list[float]] = []
    started = time.perf_counter()
    while not _enough(len(rows), time.perf_counter() - started, stop):
        row = [0.0] * len(runners)
        for index in round_order(len(runners), seed, len(rows)):
            own = frames[index]
            row[index] = timed_ms(runners[index], own[len(rows) % len(own)])
            after_run(index)
        rows.append(row)
        on_round(row)
        progress("rounds", len(rows), _expected(len(rows), time.perf_counter() - started, stop))
    return rows


def round_order(count: int, seed: int, number: int) -> list[int]:
    """Return the order of `count` candidates in round `number`; the same arguments give the same order."""
    order: list[int] = np.random.default_rng([seed, number]).permutation(count).tolist()
    return order


def timed_ms(runner: Runner, frame: RgbImage) -> float:
    """Return how long one frame takes, milliseconds."""
    started = time.perf_counter()
    runner(frame)
    return (time.perf_counter() - started) * 1e3


def _warm_up(runners: Sequence[Runner], frames: Sequence[Sequence[RgbImage]], progress: Progress) -> None:
    """Run each candidate a few times: the first runs allocate memory and choose kernels."""
    for index, (runner, own) in enumerate(zip(runners, frames, strict=True)):
        for number in range(WARM_UP_RUNS):
            runner(own[number % len(own)])
        progress("warm-up", index + 1, len(runners))


def _enough(done: int, elapsed_s: float, stop: Stop) -> bool:
    if stop.rounds is not None:
        return done >= stop.rounds
    return done >= MIN_ROUNDS and elapsed_s >= stop.seconds


def _expected(done: int, elapsed_s: float, stop: Stop) -> int:
    if stop.rounds is not None:
        return stop.rounds
    return max(MIN_ROUNDS, done, round(stop.seconds * done / max(elapsed_s, 1e-9)))
