"""The figures of one frame equal those of an accumulator that saw only this frame."""

from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.evaluation.frame_figures import frame_auprc_fpr95
from anomseg_ros.metrics.curve import FPR_RULES
from anomseg_ros.metrics.pixel_curves import PixelCurves


@pytest.mark.parametrize("rule", sorted(FPR_RULES))
@pytest.mark.parametrize("levels", [3, 40, 100_000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_frame_figures_equal_the_accumulator_also_with_ties(rule: str, levels: int, dtype: type) -> None:
    for seed in range(8):
        generator = np.random.default_rng(seed)
        scores = (generator.integers(0, levels, (30, 50)) / levels).astype(dtype)
        labels = generator.choice(np.array([0, 0, 0, 1, 255], np.uint8), (30, 50))
        curves = PixelCurves(exact=True)
        curves.add(scores, labels)
        auprc, fpr95 = frame_auprc_fpr95(scores, labels, rule)  # type: ignore[arg-type]
        assert auprc == pytest.approx(curves.curve().average_precision().value, abs=1e-12)
        assert fpr95 == pytest.approx(curves.curve().fpr_at_recall(0.95, rule).value, abs=1e-12)  # type: ignore[arg-type]


def test_frame_without_anomaly_pixels_has_no_figures() -> None:
    assert frame_auprc_fpr95(np.ones((2, 2), np.float32), np.zeros((2, 2), np.uint8), "interpolated") == (None, None)
