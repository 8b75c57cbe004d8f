"""Quantile bins equal the quantiles and histograms of numpy, and merge in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anomseg_ros.errors import MetricError
from anomseg_ros.metrics.smiyc_pixels import QuantileCurves, _counts_between, _quantiles, sorted_scores


@settings(max_examples=60, deadline=None, derandomize=True)
@given(hnp.arrays(st.sampled_from([np.float16, np.float32]), st.integers(1, 900), elements=st.floats(-4, 4, width=16)))
def test_quantiles_and_counts_equal_numpy(scores: Any) -> None:
    ordered = sorted_scores(scores)
    assert (ordered == np.array(sorted(scores.tolist()))).all()
    expected = np.quantile(ordered, np.linspace(0, 1, min(384, scores.size)))
    np.testing.assert_allclose(_quantiles(ordered), expected, rtol=0, atol=1e-15)
    edges = np.unique(np.concatenate([[-5], expected, [5]]))
    np.testing.assert_array_equal(_counts_between(ordered, edges), np.histogram(ordered.astype(np.float64), edges)[0])


def test_negative_zeros_are_sorted_correctly() -> None:
    scores = np.full(544, -0.0, np.float16)
    scores[272] = -1
    assert sorted_scores(scores)[0] == -1


def test_curve_of_few_pixels_has_every_score() -> None:
    curves = QuantileCurves()
    curves.add(np.array([[0.9, 0.8, 0.4, 0.1, 0.7]], np.float32), np.array([[1, 0, 1, 0, 255]], np.uint8))
    curve = curves.curve()
    assert (curve.positives, curve.negatives, curves.known_px, curves.anomaly_px) == (2, 2, 2, 2)
    assert curve.average_precision().value == pytest.approx((1 + 2 / 3) / 2)
    assert curve.fpr_at_recall().value == 0.5
    assert curve.best_f1().value == pytest.approx(0.8)
    assert curve.best_f1().threshold == pytest.approx(0.4)


def test_frames_with_equal_highest_score_merge_in_any_order() -> None:
    generator = np.random.default_rng(0)
    parts = []
    for _ in range(4):
        curves = QuantileCurves()
        scores = np.minimum(generator.random((40, 50)), 0.6).astype(
            np.float16
        )  # saturated like the output of a sigmoid
        curves.add(scores, generator.integers(0, 2, (40, 50)).astype(np.uint8))
        parts.append(curves)
    forward, backward = QuantileCurves.merged(parts), QuantileCurves.merged(parts[::-1])
    assert forward == backward
    assert forward.frames == 4
    curve = forward.curve()
    assert (np.diff(curve.thresholds) < 0).all()
    # The shared highest score is one point, not one point per frame.
    assert curve.thresholds[0] == np.float16(0.6)
    assert curve.true_positives[0] == sum(part.curve().true_positives[0] for part in parts) > 1000
    assert forward.curve().average_precision() == backward.curve().average_precision()


def test_void_frame_counts_nothing_and_damaged_file_is_refused(tmp_path: Path) -> None:
    curves = QuantileCurves()
    curves.add(np.zeros((4, 5), np.float16), np.full((4, 5), 255, np.uint8))
    assert (curves.frames, curves.known_px, curves.anomaly_px) == (1, 0, 0)
    np.savez(tmp_path / "bad.npz", kind=np.array("anomseg smiyc curves 1"), frames=1, thresholds=[1.0], counts=[1])
    with pytest.raises(MetricError, match="damaged"):
        QuantileCurves.load(tmp_path / "bad.npz")
