"""Temperature and thresholds compared with their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from anomseg_ros.errors import MetricError
from anomseg_ros.metrics.pixel_curves import PixelCurves
from anomseg_ros.metrics.reliability import TemperatureFit, threshold_at_fpr


def curves_of(scores: Any, labels: Any, **options: Any) -> PixelCurves:
    curves = PixelCurves(**options)
    curves.add(scores, labels)
    return curves


@pytest.mark.parametrize("target", [0.001, 0.01, 0.05, 0.5, 0.999])
@pytest.mark.parametrize("tied", [False, True])
def test_threshold_is_the_smallest_within_the_target_rate(target: float, tied: bool) -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(0, 1, (50, 60)).astype(np.float32)
    scores = np.round(scores, 1) if tied else scores
    labels = generator.choice(np.array([0, 1, 255], np.uint8), scores.shape)
    known = scores[labels == 0]
    found = threshold_at_fpr(curves_of(scores, labels), target)
    assert found.achieved_fpr == (known > found.threshold).mean() <= target
    below = known[known < found.threshold]
    if below.size:
        assert (known > below.max()).mean() > target
    assert found.threshold in known
    assert found.known_px == known.size


def test_threshold_with_coarse_bins_stays_within_the_target_rate() -> None:
    scores = np.random.default_rng(0).random((100, 100)).astype(np.float32)
    labels = np.zeros(scores.shape, np.uint8)
    exact = threshold_at_fpr(curves_of(scores, labels), 0.01)
    coarse = threshold_at_fpr(curves_of(scores, labels, max_bins=200), 0.01)
    assert coarse.achieved_fpr == (scores > coarse.threshold).mean() <= 0.01
    assert exact.threshold <= coarse.threshold < exact.threshold + 0.02


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, 5.0])
def test_invalid_target_rates_and_missing_known_pixels_are_refused(target: float) -> None:
    scores = np.zeros((2, 2), np.float32)
    with pytest.raises(MetricError, match="target_fpr is"):
        threshold_at_fpr(curves_of(scores, np.zeros((2, 2), np.uint8)), target)
    with pytest.raises(MetricError, match="0 known pixels"):
        threshold_at_fpr(curves_of(scores, np.ones((2, 2), np.uint8)), 0.01)


def logits_and_labels(scale: float, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 7, (40, 50)).astype(np.uint8)
    z = generator.normal(0, 1, (7, 40, 50))
    np.put_along_axis(z, labels[None].astype(np.int64), np.take_along_axis(z, labels[None].astype(int), 0) + 1.5, 0)
    labels[generator.random(labels.shape) < 0.1] = 255
    return (z * scale + 20).astype(np.float32), labels


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_minimises_the_nll(scale: float) -> None:
    z, labels = logits_and_labels(scale)
    fit = TemperatureFit()
    fit.add(z, labels)
    used = labels != 255
    logits, truth = z[:, used].astype(np.float64), labels[used]

    def nll(log_t: float) -> float:
        scaled = (logits - 20) / np.exp(log_t)
        return float((np.log(np.exp(scaled).sum(0)) - scaled[truth, np.arange(truth.size)]).mean())

    best = minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    found = fit.fit()
    assert found.temperature == pytest.approx(np.exp(best.x), rel=1e-3)
    assert found.nll == pytest.approx(best.fun, abs=1e-4)
    assert found.nll_before == pytest.approx(nll(0.0), abs=1e-5)
    assert found.nll <= found.nll_before + 1e-6
    assert found.pixels == used.sum()


def test_temperature_fit_with_stride_equals_subsampling() -> None:
    z, labels = logits_and_labels(2.0)
    whole, strided, cut = TemperatureFit(), TemperatureFit(), TemperatureFit()
    whole.add(z, labels)
    strided.add(z, labels, stride_px=3)
    cut.add(z[:, ::3, ::3], labels[::3, ::3])
    assert strided.fit() == cut.fit() != whole.fit()


def test_invalid_temperature_input_is_refused() -> None:
    z, labels = logits_and_labels(1.0)
    fit = TemperatureFit()
    with pytest.raises(MetricError, match="0 labelled pixels"):
        fit.fit()
    for ignored in (252, 255):
        fit.add(z, np.full_like(labels, ignored))
    assert fit.pixels == 0
    with pytest.raises(MetricError, match="labels contain 9"):
        fit.add(z, np.where(labels == 0, 9, labels).astype(np.uint8))
    with pytest.raises(MetricError, match="expected"):
        fit.add(z, labels[1:])
    with pytest.raises(MetricError, match="not finite"):
        fit.add(np.full_like(z, np.nan), labels)
    perfect = np.zeros_like(z)
    np.put_along_axis(perfect, np.minimum(labels, 6)[None].astype(np.int64), 5, 0)
    fit.add(perfect, labels)
    with pytest.raises(MetricError, match="below the range"):
        fit.fit()
