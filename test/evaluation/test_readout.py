"""Figures, curves and calibration as they are read off the measures."""

from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.evaluation.readout import reliability, timing
from anomseg_ros.metrics.calibration import Reliability
from anomseg_ros.metrics.pixel_curves import PixelCurves


@pytest.mark.parametrize("of_anomaly", [True, False])
def test_calibration_read_off_the_counts_equals_the_pixels_own(of_anomaly: bool) -> None:
    generator = np.random.default_rng(1)
    scores = generator.random((200, 300), dtype=np.float32) ** 2
    labels = (generator.random((200, 300)) < 0.3).astype(np.uint8)
    counted = PixelCurves(max_bins=2000)
    counted.add(scores, labels)
    pixelwise = Reliability()
    pixelwise.add(scores if of_anomaly else 1 - scores, labels == (1 if of_anomaly else 0))
    read = reliability(counted, score_is_probability_of_anomaly=of_anomaly)
    assert read is not None
    assert read.ece == pytest.approx(pixelwise.expected_calibration_error(), abs=2e-3)
    assert sum(read.share) == pytest.approx(1)


def test_times_in_percentiles() -> None:
    read = timing([1.0, 2.0, None, 3.0])
    assert read is not None
    assert (read["mean"], read["p50"]) == (2.0, 2.0)
    assert timing([None]) is None
