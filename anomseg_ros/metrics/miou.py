"""Semantic quality: a confusion matrix, with IoU per class, mIoU and pixel accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.labels import KNOWN_UNCERTAIN, UNLABELLED, counted_labels
from anomseg_ros.core.types import LabelImage
from anomseg_ros.errors import MetricError
from anomseg_ros.metrics.storage import load_arrays, save_arrays

_KIND = "anomseg confusion matrix 1"


@dataclass(frozen=True)
class SemanticMetrics:
    """Fractions.

    miou: mean IoU of the classes in the truth. iou: per class, TP / (TP + FP + FN); NaN for a class that is neither in
    the truth nor predicted.
    """

    miou: float
    iou: tuple[float, ...]
    pixel_accuracy: float


class ConfusionMatrix:
    """int64 counts of (true class, predicted class or void). Pixels of truth 255 or 252 do not count."""

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= KNOWN_UNCERTAIN:
            raise MetricError(f"num_classes is {num_classes!r}; expected 1 to {KNOWN_UNCERTAIN}; 255 is void")
        self.num_classes = num_classes
        # The last column is void.
        self.counts: npt.NDArray[np.int64] = np.zeros((num_classes, num_classes + 1), np.int64)

    def add(self, predicted: LabelImage, truth: LabelImage) -> None:
        """Count one frame of uint8 (H, W) train ids. Raises MetricError, nothing counted, for values of no class."""
        if predicted.shape != truth.shape or predicted.dtype != np.uint8 or truth.dtype != np.uint8:
            raise MetricError(
                f"predicted labels are {predicted.dtype} {predicted.shape}, true ones {truth.dtype} {truth.shape}; "
                "expected uint8 of the same size (H, W)"
            )
        codes = counted_labels(truth).astype(np.uint16) << 8 | predicted
        pairs = np.bincount(codes.reshape(-1), minlength=256 * 256).reshape(256, 256)
        self._check_values("true", pairs.sum(axis=1))
        self._check_values("predicted", pairs.sum(axis=0))
        known = slice(self.num_classes)
        self.counts[:, known] += pairs[known, known]
        self.counts[:, self.num_classes] += pairs[known, UNLABELLED]

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Return a new matrix of the frames of both."""
        if self.num_classes != other.num_classes:
            raise MetricError(f"cannot merge matrices of {self.num_classes} and {other.num_classes} classes")
        union = ConfusionMatrix(self.num_classes)
        union.counts = self.counts + other.counts
        return union

    def metrics(self) -> SemanticMetrics:
        """Return the figures. Raises MetricError where no labelled pixel was counted."""
        total = int(self.counts.sum())
        if total == 0:
            raise MetricError("0 labelled pixels were counted; expected at least 1: check labels and label values")
        square = self.counts[:, : self.num_classes]
        hits, in_truth = np.diag(square), self.counts.sum(axis=1)
        union = in_truth + square.sum(axis=0) - hits
        iou = np.divide(hits, union, out=np.full(self.num_classes, np.nan), where=union > 0)
        return SemanticMetrics(
            miou=float(iou[in_truth > 0].mean()),
            iou=tuple(float(value) for value in iou),
            pixel_accuracy=int(hits.sum()) / total,
        )

    def save(self, path: str | Path) -> None:
        """Write the counts to an npz file, beside and then renamed. Raises MetricError where that fails."""
        save_arrays(path, _KIND, {"counts": self.counts})

    @classmethod
    def load(cls, path: str | Path) -> ConfusionMatrix:
        """Read what `save` wrote. Raises MetricError for a missing, damaged or other file."""
        counts = np.asarray(load_arrays(path, _KIND, ["counts"])["counts"], np.int64)
        if counts.ndim != 2 or counts.shape[1] != counts.shape[0] + 1:
            raise MetricError(f"{str(path)!r} holds counts of shape {counts.shape}; it is damaged")
        matrix = cls(len(counts))
        matrix.counts = counts
        return matrix

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfusionMatrix) and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]

    def _check_values(self, which: str, pixels: npt.NDArray[np.int64]) -> None:
        unknown = [int(v) for v in np.flatnonzero(pixels) if self.num_classes <= v != UNLABELLED]
        if unknown:
            raise MetricError(
                f"{which} labels contain {unknown}; expected train ids below {self.num_classes}, or {UNLABELLED} for "
                "none: map them to the model's classes first"
            )
