"""Read average precision, AUROC, FPR95, best F1 and curves to plot from counts per threshold, with error bounds.

A pixel is called anomalous where its score is at least the threshold. If the thresholds are all distinct scores, the
figures equal those of scikit-learn. A step of the curve may hold several scores whose order is not known. The figure
then treats them as tied; the bound is how far the best and the worst order could move it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from anomseg_ros.errors import ConfigError, MetricError, unknown_name

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

FprRule = Literal["interpolated", "first_at_least", "first_above", "nearest"]


@dataclass(frozen=True)
class Bounded:
    """A figure and the largest possible difference from the exact figure."""

    value: float
    bound: float


@dataclass(frozen=True)
class BestF1:
    """The highest F1 of any threshold, and that threshold; `bound` as in `Bounded`."""

    value: float
    threshold: float
    bound: float


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """Cumulative counts from the highest threshold down.

    thresholds: float64 (N,), descending. true_positives, false_positives: int64 (N,), anomalous and known pixels with
    a score at or above the threshold. exact: every step is one score, or the protocol defines the figures on these
    steps; the bounds are then 0.
    """

    thresholds: Floats
    true_positives: Counts
    false_positives: Counts
    exact: bool = True

    @property
    def positives(self) -> int:
        """Number of anomalous pixels."""
        return int(self.true_positives[-1]) if self.true_positives.size else 0

    @property
    def negatives(self) -> int:
        """Number of known pixels."""
        return int(self.false_positives[-1]) if self.false_positives.size else 0

    @cached_property
    def recall(self) -> Floats:
        """float64 (N,): share of the anomalous pixels at or above each threshold (also called TPR)."""
        if self.positives == 0:
            raise MetricError("0 anomalous pixels were counted; expected at least 1: check labels and label values")
        return np.asarray(self.true_positives / self.positives)

    @cached_property
    def fpr(self) -> Floats:
        """float64 (N,): share of the known pixels at or above each threshold."""
        if self.negatives == 0:
            raise MetricError("0 known pixels were counted; expected at least 1: check labels and label values")
        return np.asarray(self.false_positives / self.negatives)

    @cached_property
    def precision(self) -> Floats:
        """float64 (N,): anomalous share of the pixels at or above each threshold; 1 where there are none."""
        flagged = self.true_positives + self.false_positives
        return np.asarray(np.divide(self.true_positives, flagged, out=np.ones(flagged.shape), where=flagged > 0))

    def average_precision(self) -> Bounded:
        """AuPRC as the step sum of (recall step) * precision, scikit-learn's average_precision_score.

        Bounds: within a step of p anomalous and n known pixels, all anomalous ones first is best, last is worst.
        """
        value = float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))
        if self.exact:
            return Bounded(value, 0.0)
        tp, fp = self.true_positives.astype(np.float64), self.false_positives.astype(np.float64)
        step = np.diff(tp, prepend=0.0)
        fp_before = np.concatenate([[0.0], fp[:-1]])
        best = np.divide(step * tp, tp + fp_before, out=np.zeros_like(tp), where=step > 0)
        # Worst: sum over the step of (t + i) / (t + i + fp), by the midpoint bound of the harmonic sum.
        worst = step - fp * np.log1p(step / (tp - step + fp + 0.5))
        highest, lowest = float(best.sum()) / self.positives, float(worst.sum()) / self.positives
        return Bounded(value, max(highest - value, value - lowest, 0.0))

    def auroc(self) -> Bounded:
        """Area under the ROC curve by trapezoids: ties count half."""
        value = _trapezoid(np.concatenate([[0.0], self.fpr]), np.concatenate([[0.0], self.recall]))
        if self.exact:
            return Bounded(value, 0.0)
        mixed = np.diff(self.fpr, prepend=0.0) * np.diff(self.recall, prepend=0.0)
        return Bounded(value, float(mixed.sum()) / 2)

    def fpr_at_recall(self, recall: float = 0.95, rule: FprRule = "first_at_least") -> Bounded:
        """False-positive rate at a recall, by one of `FPR_RULES`."""
        if rule not in FPR_RULES:
            raise ConfigError(unknown_name("FPR rule", rule, FPR_RULES))
        tpr, fpr = np.concatenate([[0.0], self.recall]), np.concatenate([[0.0], self.fpr])
        value = FPR_RULES[rule](tpr, fpr, recall)
        if self.exact:
            return Bounded(value, 0.0)
        # The curve passes this recall within one step, from `before` to `after`.
        before = max(int(np.searchsorted(tpr, recall)) - 1, 0)
        after = before + 1
        if rule == "nearest" or (tpr[after] == recall and rule != "first_at_least"):
            # These rules may follow the flat part that comes next, up to the next rise.
            after = min(int(np.searchsorted(tpr, tpr[after], side="right")), tpr.size - 1)
        return Bounded(value, max(float(fpr[after]) - value, value - float(fpr[before])))

    def best_f1(self) -> BestF1:
        """Highest 2 TP / (2 TP + FP + FN); of equal values that of the highest threshold."""
        tp, fp = self.true_positives, self.false_positives
        f1 = 2 * tp / np.maximum(tp + fp + self.positives, 1)
        if self.positives == 0:
            raise MetricError("0 anomalous pixels were counted; F1 needs at least 1: check labels and label values")
        best = int(np.argmax(f1))
        value = float(f1[best])
        if self.exact:
            return BestF1(value, float(self.thresholds[best]), 0.0)
        fp_before = np.concatenate([[0], fp[:-1]])
        highest = float((2 * tp / (tp + fp_before + self.positives)).max())
        return BestF1(value, float(self.thresholds[best]), highest - value)

    def precision_recall_points(self, max_points: int = 400) -> tuple[Floats, Floats]:
        """Return recall and precision, float64 (M,) each, M at most `max_points`, from (0, 1) on, for plotting."""
        return _thinned(np.concatenate([[0.0], self.recall]), np.concatenate([[1.0], self.precision]), max_points)

    def roc_points(self, max_points: int = 400) -> tuple[Floats, Floats]:
        """Return FPR and TPR, float64 (M,) each, M at most `max_points`, from (0, 0) on, for plotting."""
        return _thinned(np.concatenate([[0.0], self.fpr]), np.concatenate([[0.0], self.recall]), max_points)


def _interpolated(tpr: Floats, fpr: Floats, recall: float) -> float:
    return float(np.interp(recall, tpr, fpr))


def _first_at_least(tpr: Floats, fpr: Floats, recall: float) -> float:
    return float(fpr[np.searchsorted(tpr, recall)])


def _first_above(tpr: Floats, fpr: Floats, recall: float) -> float:
    return float(fpr[min(int(np.searchsorted(tpr, recall, side="right")), tpr.size - 1)])


def _nearest(tpr: Floats, fpr: Floats, recall: float) -> float:
    # Of equally near points the one of the lowest threshold, as in the published code.
    last = int(np.searchsorted(tpr, 1.0))
    return float(fpr[last - int(np.argmin(np.abs(tpr[last::-1] - recall)))])


FPR_RULES: dict[str, Callable[[Floats, Floats, float], float]] = {
    "interpolated": _interpolated,
    "first_at_least": _first_at_least,
    "first_above": _first_above,
    "nearest": _nearest,
}
"""interpolated: linear between the ROC's points (the course code of ENet, ERFNet and MiDE-Net, Mask2Anomaly).
first_at_least: first TPR >= recall (Fishyscapes, SegmentMeIfYouCan). first_above: first TPR > recall (RbA,
DenseHybrid). nearest: TPR nearest to recall (Hendrycks' anomaly-seg, PEBAL)."""


def _trapezoid(x: Floats, y: Floats) -> float:
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)


def _thinned(x: Floats, y: Floats, max_points: int) -> tuple[Floats, Floats]:
    """Return at most `max_points` points: half evenly along x, half evenly along the curve, and both ends."""
    if max_points < 4:
        raise MetricError(f"max_points is {max_points!r}; expected at least 4 for a curve's shape to show")
    if x.size <= max_points:
        return x, y
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    half = max_points // 2
    even_x = np.searchsorted(x, np.linspace(x[0], x[-1], half))
    even_length = np.searchsorted(length, np.linspace(0.0, length[-1], half))
    chosen = np.unique(np.concatenate([even_x[:-1], even_length[:-1], [0, x.size - 1]]))
    return x[chosen], y[chosen]
