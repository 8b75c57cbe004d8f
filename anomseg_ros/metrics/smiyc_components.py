"""SegmentMeIfYouCan's component metrics: is each obstacle found as a whole, and is each alarm an obstacle?

Predicted and true anomalies are 8-connected components. The sIoU of a true component is its overlap with the
predictions that touch it, divided by their union without what these predictions cover of other true components. The PPV
of a predicted component is its anomalous share. A true component is found if sIoU >= tau; a predicted one is a false
alarm if PPV < tau. F1 is the mean over tau = 0.25, 0.30, ..., 0.75. Sources: Chan et al., NeurIPS 2021, section 3.2,
and github.com/SegmentMeIfYouCan/road-anomaly-benchmark, metrics/instance_segmentation.py, with the same figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import LabelImage, Mask
from anomseg_ros.errors import MetricError
from anomseg_ros.metrics.pixel_curves import ANOMALY, KNOWN

TAUS = np.linspace(0.25, 0.75, 11, endpoint=True)

# Sums of fractions are kept as whole multiples of 2^-40, so that their order makes no difference.
_ONE = 1 << 40

Ids = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ComponentSizes:
    """The smallest components that count, in pixels. Smaller predictions are no alarms; smaller truth is ignored."""

    predicted_px: int
    truth_px: int


ANOMALY_TRACK = ComponentSizes(predicted_px=500, truth_px=100)
OBSTACLE_TRACK = ComponentSizes(predicted_px=50, truth_px=10)

_OBSTACLE_DATASETS = {"road_obstacle_21", "lost_and_found", "fs_lost_found"}


def mask_above(scores: npt.NDArray[np.floating], threshold: float) -> Mask:
    """Return the uint8 (H, W) mask, 255 where score > threshold, compared in the scores' own type as officially."""
    return np.asarray(np.where(scores > scores.dtype.type(threshold), 255, 0), np.uint8)


def component_sizes(dataset: str) -> ComponentSizes:
    """Return the sizes for a dataset: the obstacle track's where anomalies are small obstacles on the road."""
    return OBSTACLE_TRACK if dataset in _OBSTACLE_DATASETS else ANOMALY_TRACK


@dataclass(frozen=True)
class ComponentMetrics:
    """Fractions, NaN where there are no components.

    siou: mean over true components. siou_predicted, ppv: means over predicted ones. f1: mean over TAUS. f1_by_tau: at
    each of TAUS.
    """

    siou: float
    siou_predicted: float
    ppv: float
    f1: float
    f1_by_tau: tuple[float, ...]
    true_components: int
    predicted_components: int


@dataclass
class ComponentSums:
    """Mergeable sums over frames. Fractions are in units of 2^-40; `found` and `false_alarms` are per tau."""

    sizes: ComponentSizes
    siou: int = 0
    siou_predicted: int = 0
    ppv: int = 0
    true_components: int = 0
    predicted_components: int = 0
    found: tuple[int, ...] = (0,) * len(TAUS)
    false_alarms: tuple[int, ...] = (0,) * len(TAUS)

    def add(self, mask: Mask, labels: LabelImage) -> None:
        """Count one frame: mask uint8 (H, W), non-zero where predicted anomalous; labels 0 known, 1 anomaly, else void.

        For the official figures the mask is `mask_above(scores, best_f1_threshold)`, the scores float16, the
        threshold that of protocol smiyc over the whole dataset.
        """
        truth, predicted = _components(mask, labels, self.sizes)
        siou, siou_predicted, ppv = _overlaps(truth, predicted)
        frame = ComponentSums(
            sizes=self.sizes,
            siou=_fixed(siou),
            siou_predicted=_fixed(siou_predicted),
            ppv=_fixed(ppv),
            true_components=siou.size,
            predicted_components=ppv.size,
            found=tuple(int(np.count_nonzero(siou >= tau)) for tau in TAUS),
            false_alarms=tuple(int(np.count_nonzero(ppv < tau)) for tau in TAUS),
        )
        vars(self).update(vars(self.merge(frame)))

    def merge(self, other: ComponentSums) -> ComponentSums:
        """Return the sums over the frames of both."""
        if self.sizes != other.sizes:
            raise MetricError(f"cannot merge component sums of sizes {self.sizes!r} and {other.sizes!r}; use the same")
        return ComponentSums(
            sizes=self.sizes,
            siou=self.siou + other.siou,
            siou_predicted=self.siou_predicted + other.siou_predicted,
            ppv=self.ppv + other.ppv,
            true_components=self.true_components + other.true_components,
            predicted_components=self.predicted_components + other.predicted_components,
            found=tuple(a + b for a, b in zip(self.found, other.found, strict=True)),
            false_alarms=tuple(a + b for a, b in zip(self.false_alarms, other.false_alarms, strict=True)),
        )

    def metrics(self) -> ComponentMetrics:
        """Return the means and F1 over all frames added."""
        f1_by_tau = tuple(
            _ratio(2 * found, found + self.true_components + false_alarms)
            for found, false_alarms in zip(self.found, self.false_alarms, strict=True)
        )
        return ComponentMetrics(
            siou=_ratio(self.siou, self.true_components * _ONE),
            siou_predicted=_ratio(self.siou_predicted, self.predicted_components * _ONE),
            ppv=_ratio(self.ppv, self.predicted_components * _ONE),
            f1=float(np.mean(f1_by_tau)),
            f1_by_tau=f1_by_tau,
            true_components=self.true_components,
            predicted_components=self.predicted_components,
        )


def _components(mask: Mask, labels: LabelImage, sizes: ComponentSizes) -> tuple[Ids, Ids]:
    """Return int32 (N,) ids of the true and of the predicted component of every pixel that counts; 0 for none."""
    if mask.shape != labels.shape or mask.dtype != np.uint8 or labels.dtype != np.uint8:
        raise MetricError(
            f"mask is {mask.dtype} {mask.shape}, labels {labels.dtype} {labels.shape}; expected uint8 (H, W) both"
        )
    counted = (labels == KNOWN) | (labels == ANOMALY)
    truth, true_px = _connected(labels == ANOMALY)
    # Predictions on void are dropped before connecting, so void can split a predicted component.
    predicted, predicted_px = _connected((mask != 0) & counted)
    predicted[(predicted_px < sizes.predicted_px)[predicted]] = 0
    # Small true components become void. The background goes the same way where it is that small, as officially.
    counted &= ~(true_px < sizes.truth_px)[truth]
    return truth[counted], predicted[counted]


def _connected(foreground: npt.NDArray[np.bool_]) -> tuple[Ids, Counts]:
    """Return the id of every pixel's 8-connected component and the sizes by id, the background's at 0."""
    count, ids = cv2.connectedComponents(foreground.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    return np.asarray(ids, np.int32), np.bincount(ids.reshape(-1), minlength=count)


def _overlaps(
    truth: Ids, predicted: Ids
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return sIoU of the true components, sIoU and PPV of the predicted ones, from the pixels' ids."""
    true_px, predicted_px = np.bincount(truth, minlength=1), np.bincount(predicted, minlength=1)
    both = (truth > 0) & (predicted > 0)
    pairs, pair_px = np.unique(truth[both].astype(np.int64) * predicted_px.size + predicted[both], return_counts=True)
    pair_true, pair_predicted = pairs // predicted_px.size, pairs % predicted_px.size
    true_overlap = _summed(pair_true, pair_px, true_px.size)
    predicted_overlap = _summed(pair_predicted, pair_px, predicted_px.size)
    # Union less the parts on other components: the component itself and what its partners cover of the background.
    true_union = true_px + _summed(pair_true, (predicted_px - predicted_overlap)[pair_predicted], true_px.size)
    predicted_union = predicted_px + _summed(pair_predicted, (true_px - true_overlap)[pair_true], predicted_px.size)
    is_true, is_predicted = _present(true_px), _present(predicted_px)
    return (
        true_overlap[is_true] / true_union[is_true],
        predicted_overlap[is_predicted] / predicted_union[is_predicted],
        predicted_overlap[is_predicted] / predicted_px[is_predicted],
    )


def _summed(ids: Counts, values: Counts, size: int) -> Counts:
    sums = np.zeros(size, np.int64)
    np.add.at(sums, ids, values)
    return sums


def _present(pixels: Counts) -> npt.NDArray[np.bool_]:
    present = np.asarray(pixels > 0)
    present[0] = False  # the background
    return present


def _fixed(fractions: npt.NDArray[np.float64]) -> int:
    return int(np.rint(fractions * _ONE).astype(np.int64).sum())


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")
