"""The choice of a tune: the most accurate candidate within a time, or the fastest above an accuracy."""

from __future__ import annotations

import pytest

from anomseg_ros.bench.figures import Accuracy, Entry
from anomseg_ros.errors import ConfigError
from anomseg_ros.tuning.choice import TuneGoal, choose, nearest


def entry(name: str, p95_ms: float, value: float | None) -> Entry:
    accuracy = None if value is None else Accuracy(value, "auprc", "d", "here")
    times = {"p50": 0.5 * p95_ms, "p95": p95_ms, "p99": 2 * p95_ms}
    return Entry(name, name, "onnxruntime", "", 1, 8, 8, "fp32", "void", times, 1.0, 9, accuracy=accuracy)


ENTRIES = [
    entry("fast", 10, 0.1),
    entry("good", 50, 0.4),
    entry("same", 40, 0.4),
    entry("best", 90, 0.6),
    entry("?", 5, None),
]


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (TuneGoal(max_latency_ms=20), "fast"),
        (TuneGoal(max_latency_ms=10), "fast"),  # the limit itself is allowed
        (TuneGoal(max_latency_ms=60), "same"),  # the faster one of equal accuracy
        (TuneGoal(max_latency_ms=60, percentile=50), "best"),
        (TuneGoal(max_latency_ms=60, percentile=99), "fast"),
        (TuneGoal(max_latency_ms=9), None),  # the only fast candidate has no accuracy
        (TuneGoal(min_auprc=0.4), "same"),
        (TuneGoal(min_auprc=0.05), "fast"),
        (TuneGoal(min_auprc=0.7), None),
    ],
)
def test_choice_meets_the_goal(goal: TuneGoal, expected: str | None) -> None:
    chosen = choose(ENTRIES, goal)
    assert (chosen and chosen.name) == expected


def test_more_accurate_candidate_of_equal_times_is_chosen() -> None:
    chosen = choose([entry("a", 10, 0.3), entry("b", 10, 0.5)], TuneGoal(min_auprc=0.2))
    assert chosen is not None and chosen.name == "b"


def test_nearest_candidate_is_named_with_a_remedy() -> None:
    said = nearest(ENTRIES, TuneGoal(max_latency_ms=2))
    assert "the nearest is ?, p95 5.0 ms" in said and "smaller sizes" in said
    said = nearest(ENTRIES, TuneGoal(min_auprc=0.9))
    assert "an AuPRC of at least 90 %" in said and "the nearest is best, AuPRC 60.00 %" in said
    assert "of no candidate could be measured" in nearest(ENTRIES[-1:], TuneGoal(min_auprc=0.9))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "not neither"),
        ({"max_latency_ms": 10, "min_auprc": 0.2}, "not both"),
        ({"max_latency_ms": 0}, "above 0"),
        ({"max_latency_ms": -5}, "above 0"),
        ({"max_latency_ms": float("nan")}, "above 0"),
        ({"min_auprc": 20}, "at most 1"),
        ({"min_auprc": 0}, "above 0"),
        ({"min_auprc": 0.2, "percentile": 90}, "50, 95, 99"),
    ],
)
def test_invalid_goals_are_refused(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TuneGoal(**arguments)  # type: ignore[arg-type]
