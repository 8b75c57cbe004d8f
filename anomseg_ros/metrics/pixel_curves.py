"""The accumulator of the pixel metrics: how many known and how many anomalous pixels have each score.

Average precision, AUROC, FPR95 and F1 follow from these counts. They are whole numbers per bin of the score, so adding
frames and merging accumulators is associative and commutative, and memory does not grow with the number of frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import LabelImage
from anomseg_ros.errors import MetricError
from anomseg_ros.metrics.curve import ScoreCurve
from anomseg_ros.metrics.histogram import Keys, ScoreHistogram, bin_edges, keys_from_scores
from anomseg_ros.metrics.storage import load_arrays, save_arrays

KNOWN, ANOMALY = 0, 1
"""Label values that count; any other value (255 by convention) is ignored."""

DEFAULT_MAX_BINS = 1 << 20
"""Bins per side (known, anomalous) of the default mode: 12 MiB each, error bounds of 1e-6 to 5e-6 on real frames."""

# Small enough for a core's cache, large enough for numpy's overhead not to count.
_CHUNK_PX = 1 << 17
_KIND = "anomseg pixel curves 1"
_HALF_VALUES = 1 << 16


def check_frame_pair(scores: npt.NDArray[np.floating], labels: LabelImage) -> None:
    """Raise MetricError unless scores are finite float16 or float32 and labels uint8 of the same non-empty shape."""
    if scores.dtype not in (np.float16, np.float32):
        raise MetricError(f"scores are {scores.dtype}; expected float16 or float32: cast them, knowing what it rounds")
    if labels.dtype != np.uint8:
        raise MetricError(f"labels are {labels.dtype}; expected uint8 with 0 known, 1 anomaly, else ignored")
    if scores.shape != labels.shape or scores.size == 0:
        raise MetricError(
            f"scores are {scores.shape}, labels {labels.shape}; expected the same size (H, W): resize one as the "
            "protocol says"
        )
    _check_finite(scores)


class PixelCurves:
    """Counts of known and anomalous pixels per score. Not safe for several threads: give each its own, then merge.

    float16 scores are always exact, and so are float32 scores up to `max_bins` distinct values per side. With more
    values the bins coarsen, and the figures of `curve()` have error bounds.
    exact: one bin per distinct score, 12 bytes each, without a memory limit. max_bins: bins per side otherwise.
    """

    def __init__(self, *, exact: bool = False, max_bins: int = DEFAULT_MAX_BINS) -> None:
        limit = None if exact else max_bins
        self.known = ScoreHistogram(limit)
        self.anomaly = ScoreHistogram(limit)
        self.frames = 0
        self._curve: ScoreCurve | None = None

    @property
    def known_px(self) -> int:
        """Known pixels counted."""
        return self.known.total

    @property
    def anomaly_px(self) -> int:
        """Anomalous pixels counted."""
        return self.anomaly.total

    def add(self, scores: npt.NDArray[np.floating], labels: LabelImage) -> None:
        """Count one frame: scores float16 or float32 (H, W), higher = more anomalous; labels uint8 (H, W).

        Labels: 0 known, 1 anomaly, any other value ignored. Raises MetricError, with nothing counted, for other types,
        different sizes, or a score (of any pixel, ignored ones too) that is NaN or infinite.
        """
        check_frame_pair(scores, labels)
        self._curve = None
        self.frames += 1
        count = self._count_half if scores.dtype == np.float16 else self._count_single
        count(scores.reshape(-1), labels.reshape(-1))

    def merge(self, other: PixelCurves) -> PixelCurves:
        """Return a new accumulator of the frames of both. Raises MetricError where their modes differ."""
        return self._of(self.known.merged(other.known), self.anomaly.merged(other.anomaly), self.frames + other.frames)

    @classmethod
    def merged(cls, parts: Iterable[PixelCurves]) -> PixelCurves:
        """Return the merge of one or more accumulators; the order makes no difference."""
        union: PixelCurves | None = None
        for part in parts:
            union = part if union is None else union.merge(part)
        if union is None:
            raise MetricError("no accumulators to merge; expected at least one")
        return union

    def curve(self) -> ScoreCurve:
        """Return the cumulative counts over all bins, cached until the next `add`.

        A threshold is the lowest score of its bin, so `score >= threshold` selects whole bins.
        """
        if self._curve is None:
            self._curve = self._read_curve()
        return self._curve

    def save(self, path: str | Path) -> None:
        """Write the counts to an npz file, beside and then renamed. Raises MetricError where that fails."""
        max_bins = self.known.max_bins
        arrays: dict[str, npt.ArrayLike] = {"max_bins": -1 if max_bins is None else max_bins, "frames": self.frames}
        for name, side in (("known", self.known), ("anomaly", self.anomaly)):
            arrays |= {f"{name}_keys": side.keys, f"{name}_counts": side.counts, f"{name}_shift": side.shift}
        save_arrays(path, _KIND, arrays)

    @classmethod
    def load(cls, path: str | Path) -> PixelCurves:
        """Read what `save` wrote. Raises MetricError for a missing, damaged or other file."""
        sides = [f"{side}_{array}" for side in ("known", "anomaly") for array in ("keys", "counts", "shift")]
        arrays = load_arrays(path, _KIND, ["max_bins", "frames", *sides])
        stored = int(arrays["max_bins"])
        max_bins = None if stored < 0 else stored
        known, anomaly = (
            ScoreHistogram.from_arrays(
                np.asarray(arrays[f"{side}_keys"], np.int32),
                np.asarray(arrays[f"{side}_counts"], np.int64),
                int(arrays[f"{side}_shift"]),
                max_bins,
            )
            for side in ("known", "anomaly")
        )
        return cls._of(known, anomaly, int(arrays["frames"]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PixelCurves):
            return NotImplemented
        return (self.frames, self.known, self.anomaly) == (other.frames, other.known, other.anomaly)

    __hash__ = None  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_curve": None}

    @classmethod
    def _of(cls, known: ScoreHistogram, anomaly: ScoreHistogram, frames: int) -> PixelCurves:
        curves = cls(exact=known.max_bins is None, max_bins=known.max_bins or DEFAULT_MAX_BINS)
        curves.known, curves.anomaly, curves.frames = known, anomaly, frames
        return curves

    def _count_single(self, scores: npt.NDArray[np.floating], labels: LabelImage) -> None:
        for start in range(0, scores.size, _CHUNK_PX):
            keys = keys_from_scores(scores[start : start + _CHUNK_PX])
            chunk = labels[start : start + _CHUNK_PX]
            self.known.add_keys(keys[chunk == KNOWN])
            self.anomaly.add_keys(keys[chunk == ANOMALY])

    def _count_half(self, scores: npt.NDArray[np.floating], labels: LabelImage) -> None:
        """Count the 65536 bit patterns directly: faster than sorting."""
        counts = np.zeros((2, _HALF_VALUES), np.int64)
        for start in range(0, scores.size, _CHUNK_PX):
            bits = scores[start : start + _CHUNK_PX].view(np.uint16)
            chunk = labels[start : start + _CHUNK_PX]
            for value in (KNOWN, ANOMALY):
                counts[value] += np.bincount(bits[chunk == value], minlength=_HALF_VALUES)
        for value, side in ((KNOWN, self.known), (ANOMALY, self.anomaly)):
            seen = np.flatnonzero(counts[value])
            side.add_counts(keys_from_scores(seen.astype(np.uint16).view(np.float16)), counts[value][seen])

    def _read_curve(self) -> ScoreCurve:
        shift = max(self.known.shift, self.anomaly.shift)
        known, anomaly = self.known.coarsened(shift), self.anomaly.coarsened(shift)
        keys = _merged(known.keys, anomaly.keys)
        false, true = np.zeros(keys.size, np.int64), np.zeros(keys.size, np.int64)
        false[np.searchsorted(keys, known.keys)] = known.counts
        true[np.searchsorted(keys, anomaly.keys)] = anomaly.counts
        thresholds = bin_edges(keys, shift)[0].astype(np.float64)
        return ScoreCurve(thresholds[::-1], np.cumsum(true[::-1]), np.cumsum(false[::-1]), exact=shift == 0)


def _merged(one: Keys, other: Keys) -> Keys:
    """Return the values of two sorted arrays, sorted, each once. np.union1d hashes integers: a hundred times slower."""
    merged = np.concatenate([one, other])
    merged.sort(kind="stable")  # merges two sorted runs
    return merged[np.append(True, merged[1:] != merged[:-1])] if merged.size else merged


def _check_finite(scores: npt.NDArray[np.floating]) -> None:
    rows = max(1, _CHUNK_PX // max(1, scores[0].size))
    if all(np.isfinite(scores[start : start + rows]).all() for start in range(0, len(scores), rows)):
        return
    bad = ~np.isfinite(scores)
    first = tuple(int(index) for index in np.argwhere(bad)[0])
    nan_px = int(np.isnan(scores).sum())
    raise MetricError(
        f"{int(bad.sum())} of {scores.size} scores are not finite ({nan_px} NaN, {int(bad.sum()) - nan_px} infinite), "
        f"the first at (row, column) {first}; expected finite scores: mend what computes them"
    )
