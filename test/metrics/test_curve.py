"""Thinned curves keep their shape, and unknown rules are refused. The figures are tested in test_pixel_curves.py."""

from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.errors import ConfigError, MetricError
from anomseg_ros.metrics.curve import ScoreCurve
from anomseg_ros.metrics.pixel_curves import PixelCurves


@pytest.fixture(scope="module")
def long_curve() -> ScoreCurve:
    generator = np.random.default_rng(1)
    labels = (generator.random((300, 400)) < 0.1).astype(np.uint8)
    scores = (generator.normal(0, 1, labels.shape) + 1.5 * labels).astype(np.float32)
    curves = PixelCurves()
    curves.add(scores, labels)
    return curves.curve()


@pytest.mark.parametrize("max_points", [10, 100, 400])
def test_thinned_curve_stays_close_to_the_full_curve(long_curve: ScoreCurve, max_points: int) -> None:
    for (x, y), (all_x, all_y) in (
        (long_curve.roc_points(max_points), (long_curve.fpr, long_curve.recall)),
        (long_curve.precision_recall_points(max_points), (long_curve.recall, long_curve.precision)),
    ):
        assert max_points / 3 <= x.size == y.size <= max_points
        assert (np.diff(x) >= 0).all()
        assert (x[-1], y[-1]) == (all_x[-1], all_y[-1])
        settled = all_x > 0.05  # the start of a precision-recall curve is noise
        assert np.abs(np.interp(all_x[settled], x, y) - all_y[settled]).max() < 3 / max_points


def test_short_curve_is_not_thinned() -> None:
    curve = ScoreCurve(np.array([0.9, 0.1]), np.array([1, 2]), np.array([0, 3]))
    recall, precision = curve.precision_recall_points()
    np.testing.assert_allclose(recall, [0, 0.5, 1])
    np.testing.assert_allclose(precision, [1, 1, 0.4])
    fpr, tpr = curve.roc_points()
    np.testing.assert_allclose(fpr, [0, 0, 1])
    np.testing.assert_allclose(tpr, [0, 0.5, 1])


def test_unknown_rule_and_too_few_points_are_refused(long_curve: ScoreCurve) -> None:
    with pytest.raises(ConfigError, match=r"unknown FPR rule 'interpolate'; known: interpolated"):
        long_curve.fpr_at_recall(rule="interpolate")  # type: ignore[arg-type]
    with pytest.raises(MetricError, match="at least 4"):
        long_curve.roc_points(2)
