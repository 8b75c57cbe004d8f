"""Standardized max logits (Jung et al., ICCV 2021, arXiv 2107.11264), with boundary suppression and dilated smoothing.

Formula and constants are those of the authors' code (github.com/shjung13/Standardized-max-logits, network/deepv3.py and
eval.py). The sign is changed, so that higher is more anomalous.

Deviation: a class that is predicted in fewer than 2 pixels of the training frames has no statistics in the paper. Here
it gets those of all pixels together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.errors import ConfigError
from anomseg_ros.scores.score import Array, FeatureMaps, Fit, Given, Score

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS_PX = (3, 2, 1, 0)
"""Pixels (L1) by which the boundary is widened in each of the 4 iterations."""
SMOOTHING_SIZE, SMOOTHING_SIGMA, SMOOTHING_DILATION = 7, 1.0, 6
LEAST_STD = 1e-6


class Sml(Score):
    """-(max z - mean of its class) / standard deviation of its class, suppressed at boundaries and smoothed."""

    name = "sml"
    meaning = "-(max z - mean) / std of the predicted class, without its boundaries, smoothed"
    uses_temperature = False
    label_reach_px = 3 + 1 + len(WIDTHS_PX) + SMOOTHING_DILATION * (SMOOTHING_SIZE // 2)

    def drawn_range(self, known: int) -> tuple[float, float]:
        return (-5.0, 5.0)

    def start_fit(self, known: int) -> Fit:
        return _ClassStatistics(known)

    def fitted_shapes(self, known: int, widths: Sequence[int]) -> dict[str, tuple[int | None, ...]]:
        return {"mean": (known,), "std": (known,)}

    def steepness(self, fitted: Mapping[str, Array]) -> float:
        return float(1.0 / fitted["std"].min())

    def reference(self, given: Given[Array]) -> Array:
        labels = given.known.argmax(axis=0)
        standardized = (given.known.max(axis=0) - given.fitted["mean"][labels]) / given.fitted["std"][labels]
        return -smoothed(without_boundaries(standardized, labels.astype(np.uint8)))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        """Return standardized max logits and predicted classes."""
        best, labels = given.known.max(dim=1)
        standardized = (best - given.fitted["mean"][labels]) / given.fitted["std"][labels]
        return standardized, labels.to(best.dtype)

    def frame_graph(
        self, maps: tuple[Tensor, ...], fitted: Mapping[str, Tensor], features: FeatureMaps[Tensor]
    ) -> Tensor:
        """Return the score by max and average pooling and sums of shifted maps."""
        values, labels = (one.unsqueeze(1) for one in maps)
        return -_smoothed_graph(_without_boundaries_graph(values, labels)).squeeze(1)


class _ClassStatistics(Fit):
    """Count, sum and sum of squares of the largest logits, by predicted class."""

    def __init__(self, known: int) -> None:
        self._sums = np.zeros((3, known))

    def add(self, given: Given[Array]) -> None:
        labels, best = given.known.argmax(axis=0).ravel(), given.known.max(axis=0).ravel().astype(np.float64)
        for row, weights in zip(self._sums, (None, best, best**2), strict=True):
            row += np.bincount(labels, weights, minlength=len(row))

    def tensors(self) -> dict[str, Array]:
        if self._sums[0].sum() < 2:
            raise ConfigError("standardized max logits need at least 2 pixels to be fitted on; give more frames")
        few = self._sums[0] < 2
        count, total, squares = np.where(few, self._sums.sum(axis=1, keepdims=True), self._sums)
        mean = total / count
        variance = (squares - count * mean**2) / (count - 1)
        std = np.sqrt(np.maximum(variance, LEAST_STD**2))
        return {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}


def without_boundaries(values: Array, labels: npt.NDArray[np.uint8]) -> Array:
    """Return (H, W) values; values near class boundaries are replaced by means of neighbours away from the boundary.

    A pixel is a boundary if the largest label among itself and its 4 neighbours differs from the smallest among itself
    and its 8 neighbours. Each iteration widens the boundary and gives each of its pixels the mean of those of the 3 x 3
    around it that lie outside the boundary, if there are any.
    """
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    boundary = (cv2.dilate(labels, cross) != cv2.erode(labels, np.ones((3, 3), np.uint8))).astype(np.uint8)
    values = values.astype(np.float64)
    for width in WIDTHS_PX:
        outside = 1.0 - cv2.dilate(boundary, cross, iterations=width).astype(np.float64) if width else 1.0 - boundary
        total = cv2.blur(values * outside, (3, 3), borderType=cv2.BORDER_REPLICATE)
        share = cv2.blur(outside, (3, 3), borderType=cv2.BORDER_REPLICATE)
        replaced = (outside == 0) & (share > 1e-3)
        values = np.where(replaced, total / np.maximum(share, 1e-3), values)
    return values


def smoothed(values: Array) -> Array:
    """Return (H, W) values after a Gaussian of 7 x 7 taps that are 6 pixels apart; sigma 1, repeated border."""
    height, width = values.shape
    taps, half = _taps(), SMOOTHING_DILATION * (SMOOTHING_SIZE // 2)
    padded = np.pad(values, half, mode="edge")
    result = np.zeros_like(values)
    for row, down in enumerate(taps):
        for column, across in enumerate(taps):
            top, left = row * SMOOTHING_DILATION, column * SMOOTHING_DILATION
            result += down * across * padded[top : top + height, left : left + width]
    return result


def _taps() -> Array:
    """Return one axis of the Gaussian, which is separable; its sum is 1."""
    taps = np.exp(-((np.arange(SMOOTHING_SIZE) - SMOOTHING_SIZE // 2) ** 2) / (2 * SMOOTHING_SIGMA**2))
    return np.asarray(taps / taps.sum())


def _without_boundaries_graph(values: Tensor, labels: Tensor) -> Tensor:
    """without_boundaries of maps (1, 1, H, W)."""
    from torch import maximum, where
    from torch.nn.functional import avg_pool2d, max_pool2d, pad

    def widened(map_: Tensor) -> Tensor:
        return maximum(max_pool2d(map_, (3, 1), 1, (1, 0)), max_pool2d(map_, (1, 3), 1, (0, 1)))

    def averaged(map_: Tensor) -> Tensor:
        return avg_pool2d(pad(map_, (1, 1, 1, 1), mode="replicate"), 3, 1)

    boundary = (widened(labels) != -max_pool2d(-labels, 3, 1, 1)).to(values.dtype)
    boundaries = [boundary]
    for _ in range(max(WIDTHS_PX)):
        boundaries.append(widened(boundaries[-1]))
    for width in WIDTHS_PX:
        outside = 1.0 - boundaries[width]
        share = averaged(outside)
        mean = averaged(values * outside) / share.clamp(min=1e-3)
        values = where((boundaries[width] > 0) & (share > 1e-3), mean, values)
    return values


def _smoothed_graph(values: Tensor) -> Tensor:
    """`smoothed` of maps (1, 1, H, W), one axis after the other."""
    from torch.nn.functional import pad

    taps, middle, step = _taps(), SMOOTHING_SIZE // 2, SMOOTHING_DILATION
    half = step * middle
    for axis, pads in ((2, (0, 0, half, half)), (3, (half, half, 0, 0))):
        size, padded = values.shape[axis], pad(values, pads, mode="replicate")
        total = float(taps[middle]) * values
        for away in range(1, middle + 1):
            before = padded.narrow(axis, half - away * step, size)
            after = padded.narrow(axis, half + away * step, size)
            total = total + float(taps[middle + away]) * (before + after)
        values = total
    return values
