"""Times of candidates that take turns: each runs once per round, in an order drawn anew for every round.

A machine that is busy for a second then slows all candidates alike, and no candidate always follows the same other
one, whose data it would find in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from anomseg_ros.bench.candidates import Runner
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError

WARM_UP_RUNS = 3
MIN_ROUNDS = 7

Clock = Callable[[], float]
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@dataclass(frozen=True)
class Stop:
    """When to stop: after so many rounds, or, where that is None, after so many seconds and at least MIN_ROUNDS."""

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
    progress: Progress = lambda what, done, total: None,
) -> list[list[float]]:
    """Return one row per round: the milliseconds of each runner, in the order of `runners`.

    frames: for each runner, the frames it gets in turn, uint8 (H, W, 3) RGB; in one round, all runners get the frame
    of the same index. on_round is told of each finished round.
    """
    _warm_up(runners, frames, progress)
    rows: list[list[float]] = []
    started = time.perf_counter()
    while not _enough(len(rows), time.perf_counter() - started, stop):
        row = [0.0] * len(runners)
        for index in round_order(len(runners), seed, len(rows)):
            own = frames[index]
            row[index] = timed_ms(runners[index], own[len(rows) % len(own)])
        rows.append(row)
        on_round(row)
        progress("rounds", len(rows), _expected(len(rows), time.perf_counter() - started, stop))
    return rows


def round_order(count: int, seed: int, number: int) -> list[int]:
    """Return the order of `count` candidates in round `number`: a permutation that follows from the arguments."""
    order: list[int] = np.random.default_rng([seed, number]).permutation(count).tolist()
    return order


def timed_ms(runner: Runner, frame: RgbImage) -> float:
    """Return how long one frame takes, milliseconds."""
    started = time.perf_counter()
    runner(frame)
    return (time.perf_counter() - started) * 1e3


def _warm_up(runners: Sequence[Runner], frames: Sequence[Sequence[RgbImage]], progress: Progress) -> None:
    """The first runs allocate, and choose kernels."""
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
