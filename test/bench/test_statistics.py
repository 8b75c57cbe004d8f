"""Percentiles and ratios of inputs with known results."""

from __future__ import annotations

import pytest

from anomseg_ros.bench.statistics import percentiles, ratio


def test_percentiles_are_interpolated() -> None:
    found = percentiles([float(value) for value in range(1, 102)])
    assert found == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "mean": 51.0, "min": 1.0, "max": 101.0}


def test_ratio_is_computed_per_round() -> None:
    # The machine is ten times slower in every second round. Within a round, the candidate is twice as fast.
    reference, times = [20.0, 200.0] * 10, [10.0, 100.0] * 10
    found = ratio(reference, times)
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


def test_interval_contains_the_median_and_narrows_with_rounds() -> None:
    def spread(rounds: int) -> tuple[float, float, float]:
        found = ratio([30.0 + 3 * (index % 5) for index in range(rounds)], [10.0] * rounds)
        return found.low, found.median, found.high

    low, middle, high = spread(10)
    assert low < middle < high and middle == pytest.approx(3.6)
    less, _, more = spread(400)
    assert more - less < high - low


def test_ratio_of_a_slower_candidate_is_below_1() -> None:
    assert ratio([10.0, 11.0, 12.0], [40.0, 44.0, 48.0]).median == 0.25
