"""Figures, curves and calibration derived from the measures."""

from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.evaluation.readout import reliability, timing
from anomseg_ros.metrics.pixel_curves import PixelCurves


@pytest.mark.parametrize("of_anomaly", [True, False])
def test_reliability_from_counts_equals_that_from_pixels(of_anomaly: bool) -> None:
    generator = np.random.default_rng(1)
    scores = generator.random((200, 300), dtype=np.float32) ** 2
    labels = (generator.random((200, 300)) < 0.3).astype(np.uint8)
    counted = PixelCurves(max_bins=2000)
    counted.add(scores, labels)
    probability, outcome = (scores, labels == 1) if of_anomaly else (1 - scores, labels == 0)
    bins = np.maximum(np.ceil(probability * 15), 1)
    expected = sum(
        (inside := bins == number).mean() * abs(outcome[inside].mean() - probability[inside].mean())
        for number in range(1, 16)
    )
    read = reliability(counted, score_is_probability_of_anomaly=of_anomaly)
    assert read is not None
    assert read.ece == pytest.approx(expected, abs=2e-3)
    assert sum(read.share) == pytest.approx(1)


def test_timing_gives_percentiles_without_missing_times() -> None:
    read = timing([1.0, 2.0, None, 3.0])
    assert read is not None
    assert (read["mean"], read["p50"]) == (2.0, 2.0)
    assert timing([None]) is None
