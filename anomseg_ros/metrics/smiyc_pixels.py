"""The pixel curve of SegmentMeIfYouCan's official code, which differs from the curve of the pooled pixels.

Each image gives one confusion count per bin. The bin edges are the quantiles of its anomalous and of its known scores
(384 each, or as many as it has pixels) and two outer edges. The curve consists of the bins of all images, sorted by
lower edge. Source: github.com/SegmentMeIfYouCan/road-anomaly-benchmark, metrics/pixel_classification.py and
pixel_classification_curves.py, the configuration PixBinaryClass (768 percentile bins); Chan et al., NeurIPS 2021.

One deviation: bins of several images with the same lower edge are always one point here. The official code keeps, for
the highest threshold alone, one more point, from the image that an unstable sort puts first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import LabelImage
from anomseg_ros.errors import MetricError
from anomseg_ros.metrics.curve import ScoreCurve
from anomseg_ros.metrics.pixel_curves import ANOMALY, KNOWN, check_frame_pair
from anomseg_ros.metrics.storage import load_arrays, save_arrays

QUANTILES_PER_SIDE = 384
_KIND = "anomseg smiyc curves 1"

Edges = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class QuantileCurves:
    """Counts per quantile bin of each image. Memory grows by at most 18 KiB per image; merging is exact."""

    def __init__(self) -> None:
        self.frames = 0
        self._thresholds: Edges = np.empty(0)
        self._counts: Counts = np.empty((0, 2), np.int64)  # columns: known, anomalous

    @property
    def known_px(self) -> int:
        """Known pixels counted."""
        return int(self._counts[:, KNOWN].sum())

    @property
    def anomaly_px(self) -> int:
        """Anomalous pixels counted."""
        return int(self._counts[:, ANOMALY].sum())

    def add(self, scores: npt.NDArray[np.floating], labels: LabelImage) -> None:
        """Count one frame, as `PixelCurves.add`; the official benchmark stores scores as float16."""
        check_frame_pair(scores, labels)
        known, anomaly = sorted_scores(scores[labels == KNOWN]), sorted_scores(scores[labels == ANOMALY])
        self.frames += 1
        if known.size + anomaly.size:
            edges = _bin_edges(known, anomaly)
            counts = np.stack([_counts_between(known, edges), _counts_between(anomaly, edges)], axis=1)
            self._absorb(edges[:-1], counts)

    def merge(self, other: QuantileCurves) -> QuantileCurves:
        """Return a new accumulator of the frames of both."""
        union = QuantileCurves()
        union.frames = self.frames + other.frames
        union._thresholds, union._counts = self._thresholds, self._counts
        union._absorb(other._thresholds, other._counts)
        return union

    @classmethod
    def merged(cls, parts: Iterable[QuantileCurves]) -> QuantileCurves:
        """Return the merge of any number of accumulators; the order makes no difference."""
        union = cls()
        for part in parts:
            union = union.merge(part)
        return union

    def curve(self) -> ScoreCurve:
        """Return the cumulative counts from the highest lower edge down; exact by this protocol's definition."""
        counts = np.cumsum(self._counts[::-1], axis=0)
        return ScoreCurve(self._thresholds[::-1], counts[:, ANOMALY], counts[:, KNOWN])

    def save(self, path: str | Path) -> None:
        """Write the counts to an npz file, beside and then renamed. Raises MetricError where that fails."""
        arrays: dict[str, npt.ArrayLike] = {
            "frames": self.frames,
            "thresholds": self._thresholds,
            "counts": self._counts,
        }
        save_arrays(path, _KIND, arrays)

    @classmethod
    def load(cls, path: str | Path) -> QuantileCurves:
        """Read what `save` wrote. Raises MetricError for a missing, damaged or other file."""
        arrays = load_arrays(path, _KIND, ["frames", "thresholds", "counts"])
        curves = cls()
        curves.frames = int(arrays["frames"])
        curves._thresholds = np.asarray(arrays["thresholds"], np.float64)
        curves._counts = np.asarray(arrays["counts"], np.int64)
        if curves._counts.shape != (curves._thresholds.size, 2):
            raise MetricError(f"{str(path)!r} holds counts of shape {curves._counts.shape}; it is damaged")
        return curves

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantileCurves):
            return NotImplemented
        return (
            self.frames == other.frames
            and np.array_equal(self._thresholds, other._thresholds)
            and np.array_equal(self._counts, other._counts)
        )

    __hash__ = None  # type: ignore[assignment]

    def _absorb(self, thresholds: Edges, counts: Counts) -> None:
        """Add bins; those with the same lower edge become one."""
        everything = np.concatenate([self._thresholds, thresholds])
        self._thresholds, place = np.unique(everything, return_inverse=True)
        summed = np.zeros((self._thresholds.size, 2), np.int64)
        np.add.at(summed, place.reshape(-1), np.concatenate([self._counts, counts]))
        self._counts = summed


def _bin_edges(known: npt.NDArray[np.floating], anomaly: npt.NDArray[np.floating]) -> Edges:
    """Return the ascending, distinct float64 edges for one image's sorted scores."""
    sides = [side for side in (anomaly, known) if side.size]
    lowest, highest = float(min(side[0] for side in sides)), float(max(side[-1] for side in sides))
    margin = max((highest - lowest) * 1e-2, 1e-2)
    return np.unique(np.concatenate([[lowest - margin, highest + margin], *map(_quantiles, sides)]))


def sorted_scores(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return scores in ascending order, with positive zeros only.

    numpy's AVX-512 sort of float16 misplaces values among negative zeros (numpy 2.4.6, from 513 values on).
    """
    return np.sort(scores + scores.dtype.type(0))


def _quantiles(ordered: npt.NDArray[np.floating]) -> Edges:
    """Return numpy.quantile's linear quantiles of sorted scores, at the official number of even steps.

    numpy versions differ in these, so they are computed here: differences in the scores' type, weights in float64.
    """
    place = np.linspace(0, 1, min(QUANTILES_PER_SIDE, ordered.size)) * (ordered.size - 1)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, ordered.size - 1)
    weight = place - below
    step = ordered[above] - ordered[below]
    return np.where(weight < 0.5, ordered[below] + step * weight, ordered[above] - step * (1 - weight))


def _counts_between(ordered: npt.NDArray[np.floating], edges: Edges) -> Counts:
    """Return int64 (len(edges) - 1,) counts of sorted scores. A bin contains its lower edge but not its upper edge."""
    return np.diff(np.searchsorted(ordered.astype(np.float64), edges))
