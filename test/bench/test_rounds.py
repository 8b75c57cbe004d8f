"""Every candidate runs once per round, in a changing order."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

from anomseg_ros.bench.rounds import MIN_ROUNDS, WARM_UP_RUNS, Stop, measure_rounds, round_order
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError


class RecordingRunner:
    """A runner that takes a fixed time and records its runs."""

    requested = actual = "here"

    def __init__(self, name: int, log: list[tuple[int, int]], duration_s: float) -> None:
        self.name, self.log, self.duration_s = name, log, duration_s

    def __call__(self, frame: RgbImage) -> None:
        self.log.append((self.name, int(frame[0, 0, 0])))
        time.sleep(self.duration_s)

    def facts(self) -> dict[str, str]:
        return {}

    def stages_ms(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Nothing to release."""


def frames(count: int) -> list[RgbImage]:
    return [np.full((2, 2, 3), index, np.uint8) for index in range(count)]


def run(
    durations_s: Sequence[float], stop: Stop, frame_count: int = 1
) -> tuple[list[list[float]], list[list[tuple[int, int]]]]:
    """Return the times, and the runs of each round without the warm-up."""
    log: list[tuple[int, int]] = []
    runners = [RecordingRunner(index, log, duration_s) for index, duration_s in enumerate(durations_s)]
    rows = measure_rounds(runners, [frames(frame_count)] * len(runners), stop)
    count = len(runners)
    assert [name for name, _ in log[: WARM_UP_RUNS * count]] == [i for i in range(count) for _ in range(WARM_UP_RUNS)]
    timed = log[WARM_UP_RUNS * count :]
    return rows, [timed[start : start + count] for start in range(0, len(timed), count)]


def test_each_candidate_runs_once_per_round_on_the_same_frame() -> None:
    rows, turns = run([0.0, 0.0, 0.0, 0.0], Stop(rounds=12), frame_count=5)
    assert len(rows) == len(turns) == 12
    for number, turn in enumerate(turns):
        assert sorted(name for name, _ in turn) == [0, 1, 2, 3]
        assert {frame for _, frame in turn} == {number % 5}
    assert len({tuple(name for name, _ in turn) for turn in turns}) > 6


def test_order_depends_on_the_seed_and_is_balanced() -> None:
    assert round_order(5, 3, 7) == round_order(5, 3, 7)
    orders = [round_order(3, 0, number) for number in range(600)]
    for candidate in range(3):
        first = sum(order[0] == candidate for order in orders)
        assert 150 < first < 250


def test_times_are_assigned_to_their_candidate() -> None:
    rows, _ = run([0.008, 0.001], Stop(rounds=8))
    slow, fast = (float(np.median([row[index] for row in rows])) for index in (0, 1))
    assert slow >= 8.0 and 1.0 <= fast < slow


def test_seconds_end_the_rounds_after_the_minimum() -> None:
    rows, _ = run([0.002], Stop(seconds=0.2))
    assert MIN_ROUNDS < len(rows) <= 100
    rows, _ = run([0.001], Stop(seconds=1e-6))
    assert len(rows) == MIN_ROUNDS


@pytest.mark.parametrize(("rounds", "seconds"), [(0, 1.0), (-3, 1.0), (None, 0.0), (None, float("nan"))])
def test_invalid_stop_is_refused(rounds: int | None, seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"above 0|at least 1"):
        Stop(rounds, seconds)
