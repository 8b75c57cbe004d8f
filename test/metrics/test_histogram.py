"""Keys preserve the order of scores, and bins count the scores between their edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anomseg_ros.errors import MetricError
from anomseg_ros.metrics import histogram as module
from anomseg_ros.metrics.histogram import ScoreHistogram, bin_edges, keys_from_scores, scores_from_keys

SCORES = hnp.arrays(
    np.float32, st.integers(1, 100), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
LIMITS = settings(max_examples=80, deadline=None, derandomize=True)


@LIMITS
@given(SCORES)
def test_keys_preserve_order_and_values(scores: Any) -> None:
    keys = keys_from_scores(scores)
    np.testing.assert_array_equal(scores_from_keys(keys), scores)
    order = np.argsort(keys, kind="stable")
    assert (np.diff(scores[order]) >= 0).all()
    np.testing.assert_array_equal(keys[:, None] == keys, scores[:, None] == scores)


@LIMITS
@given(SCORES, st.integers(2, 20))
def test_bins_count_the_scores_between_their_edges(scores: Any, max_bins: int) -> None:
    histogram = ScoreHistogram(max_bins)
    histogram.add_keys(keys_from_scores(scores))
    lowest, highest = bin_edges(histogram.keys, histogram.shift)
    assert np.isfinite(lowest).all()
    assert np.isfinite(highest).all()
    counts = [np.count_nonzero((scores >= low) & (scores <= high)) for low, high in zip(lowest, highest, strict=True)]
    np.testing.assert_array_equal(histogram.counts, counts)
    assert histogram.total == scores.size
    # The shift is minimal: a shift smaller by one gives too many bins.
    if histogram.shift:
        assert np.unique(keys_from_scores(scores) >> (histogram.shift - 1)).size > max_bins


def test_keys_beyond_the_buffer_and_counts_give_equal_histograms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PENDING_KEYS", 64)
    keys = keys_from_scores(np.random.default_rng(0).integers(-50, 50, 1000).astype(np.float32))
    by_keys, by_counts = ScoreHistogram(None), ScoreHistogram(None)
    by_keys.add_keys(keys)
    by_counts.add_counts(keys[:500], np.ones(500, np.int64))
    by_counts.add_counts(*np.unique(keys[500:], return_counts=True))
    assert by_keys == by_counts
    assert by_keys.total == 1000
    assert ScoreHistogram(None) != by_keys


def test_too_few_bins_are_refused() -> None:
    with pytest.raises(MetricError, match="max_bins is 1"):
        ScoreHistogram(1)
