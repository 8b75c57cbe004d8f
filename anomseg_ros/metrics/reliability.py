"""The temperature that calibrates probabilities, and thresholds that keep a false-positive rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.labels import UNLABELLED, counted_labels
from anomseg_ros.core.types import LabelImage
from anomseg_ros.errors import MetricError
from anomseg_ros.metrics.histogram import ScoreHistogram
from anomseg_ros.metrics.pixel_curves import PixelCurves

# Sums are whole multiples of 2^-20, so the order of frames does not change them.
_NLL_ONE = 1 << 20

TEMPERATURES = np.geomspace(0.05, 20.0, 41)
"""Temperatures at which `TemperatureFit` evaluates the NLL; the fit is between the first and the last."""


@dataclass(frozen=True)
class CalibratedThreshold:
    """A pixel is anomalous where score > threshold. achieved_fpr: share of the known pixels above the threshold."""

    threshold: float
    target_fpr: float
    achieved_fpr: float
    known_px: int


def threshold_at_fpr(curves: PixelCurves, target_fpr: float) -> CalibratedThreshold:
    """Return the smallest threshold such that the share of known pixels with score > threshold is <= `target_fpr`.

    The threshold is a known pixel's score where the counts are exact (float16 scores, exact mode, few distinct scores).
    Elsewhere it is the largest score of that pixel's bin: at most one bin's width too high, and never too low. Raises
    MetricError unless 0 < target_fpr < 1, or where no known pixel was counted.
    """
    if not 0 < target_fpr < 1:
        raise MetricError(f"target_fpr is {target_fpr!r}; expected a share between 0 and 1, such as 0.01")
    known: ScoreHistogram = curves.known
    total = known.total
    if total == 0:
        raise MetricError("0 known pixels were counted; a threshold needs frames with pixels labelled 0 (known)")
    above = total - np.cumsum(known.counts)
    # Compared as shares, not counts: target * total may round past a whole number.
    chosen = int(np.argmax(above / total <= target_fpr))
    return CalibratedThreshold(
        threshold=float(known.highest_scores()[chosen]),
        target_fpr=target_fpr,
        achieved_fpr=int(above[chosen]) / total,
        known_px=total,
    )


@dataclass(frozen=True)
class FittedTemperature:
    """The temperature of least NLL, and the mean NLL per pixel in nats at it and at 1 (before)."""

    temperature: float
    nll: float
    nll_before: float
    pixels: int


class TemperatureFit:
    """Sums of the NLL and its slope at fixed temperatures, from logits, in constant memory.

    Guo et al., ICML 2017, section 4.2: softmax(z / T) with one T > 0 of least negative log-likelihood. As a function of
    b = 1 / T, the NLL log sum exp(b z) - b z_y is convex with the slope E_p[z] - z_y. The minimum is between the two
    temperatures where the slope changes sign; the cubic through both values and slopes gives its place.
    """

    def __init__(self) -> None:
        self.pixels = 0
        # Columns: NLL and slope in 1 / T, in units of 2^-20; rows: TEMPERATURES, and last T = 1.
        self._sums: npt.NDArray[np.int64] = np.zeros((TEMPERATURES.size + 1, 2), np.int64)

    def add(self, logits: npt.NDArray[np.floating], labels: LabelImage, stride_px: int = 1) -> None:
        """Count one frame: logits float (C, H, W) of the known classes, labels uint8 (H, W) train ids.

        Labels 255 and 252 are ignored. stride_px: use every n-th row and column. Raises MetricError, nothing counted,
        for other shapes, labels of no class, or logits that are not finite.
        """
        if logits.ndim != 3 or logits.shape[1:] != labels.shape or labels.dtype != np.uint8:
            raise MetricError(
                f"logits are {logits.shape}, labels {labels.dtype} {labels.shape}; expected (C, H, W) and uint8 (H, W)"
            )
        labels, logits = labels[::stride_px, ::stride_px], logits[:, ::stride_px, ::stride_px]
        used = counted_labels(labels) != UNLABELLED
        z, truth = logits[:, used].astype(np.float32), labels[used].astype(np.int64)
        if truth.size and int(truth.max()) >= len(z):
            raise MetricError(f"labels contain {int(truth.max())}; expected train ids below {len(z)}, or 255 for none")
        if not np.isfinite(z).all():
            raise MetricError(f"{int((~np.isfinite(z)).sum())} of {z.size} logits are not finite; mend the network")
        z -= z.max(axis=0, initial=-np.inf) if truth.size else 0
        true_logit = z[truth, np.arange(truth.size)]
        sums = [_nll_and_slope(z, true_logit, 1 / temperature) for temperature in (*TEMPERATURES, 1.0)]
        self._sums += np.rint(np.array(sums) * _NLL_ONE).astype(np.int64)
        self.pixels += truth.size

    def fit(self) -> FittedTemperature:
        """Return the temperature of least NLL.

        Raises MetricError if no pixel was counted or the least NLL is outside the range of TEMPERATURES. That happens
        if every pixel is classified correctly: the NLL then falls as long as T goes to 0.
        """
        if self.pixels == 0:
            raise MetricError("0 labelled pixels were counted; a temperature needs at least 1")
        nll, slope = (self._sums / (_NLL_ONE * self.pixels)).T
        inverse = 1 / TEMPERATURES  # descending
        if slope[0] <= 0 or slope[-2] >= 0:
            side = "below" if slope[0] <= 0 else "above"
            raise MetricError(
                f"the temperature of least NLL is {side} the range {TEMPERATURES[0]:g} to {TEMPERATURES[-1]:g}; check "
                "that logits and labels belong together, and that the network is not perfect on these frames"
            )
        high = int(np.argmax(slope[:-1] <= 0))  # the first temperature too high, as seen from low ones
        ends = (high, high - 1)
        best, value = _cubic_minimum(*(float(a[i]) for i in ends for a in (inverse, nll, slope)))
        return FittedTemperature(1 / best, value, float(nll[-1]), self.pixels)


def _nll_and_slope(
    z: npt.NDArray[np.float32], true_logit: npt.NDArray[np.float32], inverse_temperature: float
) -> tuple[float, float]:
    """Return the summed NLL and its slope in 1 / T, for logits (C, N) whose maximum over classes is 0."""
    exponentials = np.exp(z * np.float32(inverse_temperature))
    total = exponentials.sum(axis=0)
    expected = (exponentials * z).sum(axis=0) / total
    nll = np.log(total).sum(dtype=np.float64) - inverse_temperature * true_logit.sum(dtype=np.float64)
    return float(nll), float((expected - true_logit).sum(dtype=np.float64))


def _cubic_minimum(
    x0: float, value0: float, slope0: float, x1: float, value1: float, slope1: float
) -> tuple[float, float]:
    """Return place and value of the minimum of the cubic with these values and slopes; slope0 <= 0 < slope1, x0 < x1.

    Nocedal and Wright, Numerical Optimization, eq. 3.59.
    """
    d1 = slope0 + slope1 - 3 * (value0 - value1) / (x0 - x1)
    d2 = np.sqrt(max(d1 * d1 - slope0 * slope1, 0.0))
    place = float(np.clip(x1 - (x1 - x0) * (slope1 + d2 - d1) / (slope1 - slope0 + 2 * d2), x0, x1))
    t, width = (place - x0) / (x1 - x0), x1 - x0
    value = (
        (1 + 2 * t) * (1 - t) ** 2 * value0
        + t * (1 - t) ** 2 * width * slope0
        + t * t * (3 - 2 * t) * value1
        + t * t * (t - 1) * width * slope1
    )
    return place, float(value)
