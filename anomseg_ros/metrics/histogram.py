"""A histogram over all float32 scores, with bins as fine as a fixed memory allows. Merging is exact.

A bin is a range of float32 numbers with equal upper bits. Bit patterns, read as sign and magnitude, have the order of
the numbers, so `bits >> shift` is a bin number that keeps the order. Every power of two has the same number of bins, so
bins are narrow near zero, where many probabilities are. `shift` starts at 0 (one bin per number, exact) and grows by
one whenever more than `max_bins` bins are occupied. The number of occupied bins only grows with the data and shrinks
with the shift. So the final shift is the smallest that fits the data, in whatever order or split the data came: merging
is associative and commutative.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from anomseg_ros.errors import MetricError

Keys = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]

# 16 MiB of keys. Sorting more at a time gains nothing; with less, most time goes into inserting counts.
_PENDING_KEYS = 1 << 22
_MAGNITUDE = np.int32(0x7FFFFFFF)
_LARGEST_KEY = 0x7F7FFFFF
_SMALLEST_KEY = -0x7F800000


def keys_from_scores(scores: npt.NDArray[np.floating]) -> Keys:
    """Return the int32 order-preserving keys of finite float16 or float32 scores; -0.0 and 0.0 share one."""
    # The sum is a copy, in which -0.0 has become 0.0.
    keys: Keys = np.asarray(np.add(scores, np.float32(0), dtype=np.float32)).view(np.int32)
    keys ^= (keys >> 31) & _MAGNITUDE
    return keys


def scores_from_keys(keys: Keys) -> npt.NDArray[np.float32]:
    """Return the float32 scores of int32 keys, the inverse of `keys_from_scores`."""
    return np.asarray(keys ^ ((keys >> 31) & _MAGNITUDE), np.int32).view(np.float32)


class ScoreHistogram:
    """int64 counts of the occupied bins, 12 bytes each, plus up to 16 MiB of scores not yet counted.

    max_bins: the largest number of bins. None means one exact bin per distinct score, without a memory limit.
    """

    def __init__(self, max_bins: int | None) -> None:
        if max_bins is not None and max_bins < 2:
            raise MetricError(f"max_bins is {max_bins!r}; expected at least 2, or None for one bin per distinct score")
        self.max_bins = max_bins
        self._shift = 0
        self._keys: Keys = np.empty(0, np.int32)
        self._counts: Counts = np.empty(0, np.int64)
        self._pending: Keys | None = None
        self._pending_size = 0

    @property
    def shift(self) -> int:
        """Number of low bits of a key that bins ignore; with 0 every bin is one score."""
        self._settle()
        return self._shift

    @property
    def keys(self) -> Keys:
        """int32 (K,) ascending bin numbers, `key >> shift`."""
        self._settle()
        return self._keys

    @property
    def counts(self) -> Counts:
        """int64 (K,) scores per bin, each at least 1."""
        self._settle()
        return self._counts

    @property
    def total(self) -> int:
        """Number of scores added."""
        return int(self._counts.sum()) + self._pending_size

    def add_keys(self, keys: Keys) -> None:
        """Count int32 (N,) keys of `keys_from_scores`, in any order; N at most a few million at a time."""
        if self._pending is None:
            self._pending = np.empty(_PENDING_KEYS, np.int32)
        done = 0
        while done < keys.size:
            taken = min(keys.size - done, _PENDING_KEYS - self._pending_size)
            self._pending[self._pending_size : self._pending_size + taken] = keys[done : done + taken]
            self._pending_size += taken
            done += taken
            if self._pending_size == _PENDING_KEYS:
                self._flush()

    def add_counts(self, keys: Keys, counts: Counts) -> None:
        """Count int32 (N,) keys, in any order, possibly repeated, with the multiplicities int64 (N,) `counts`."""
        order = np.argsort(keys, kind="stable")
        self._absorb(*_grouped(keys[order] >> self._shift, counts[order]))

    def merged(self, other: ScoreHistogram) -> ScoreHistogram:
        """Return a new histogram of the scores of both."""
        if self.max_bins != other.max_bins:
            raise MetricError(
                f"cannot merge histograms of max_bins {self.max_bins!r} and {other.max_bins!r}; use the same"
            )
        shift = max(self.shift, other.shift)
        union = self.coarsened(shift)
        added = other.coarsened(shift)
        union._absorb(added._keys, added._counts)
        return union

    def coarsened(self, shift: int) -> ScoreHistogram:
        """Return a copy whose bins ignore `shift` bits, at least as many as now."""
        copy = ScoreHistogram.from_arrays(self.keys, self.counts, self.shift, self.max_bins)
        copy._coarsen(shift - copy._shift)
        return copy

    @classmethod
    def from_arrays(cls, keys: Keys, counts: Counts, shift: int, max_bins: int | None) -> ScoreHistogram:
        """Return a histogram with copies of these `keys` and `counts`, and with this `shift`."""
        histogram = cls(max_bins)
        histogram._keys, histogram._counts, histogram._shift = keys.copy(), counts.copy(), shift
        return histogram

    def highest_scores(self) -> npt.NDArray[np.float32]:
        """float32 (K,): the largest score that falls into each bin."""
        return bin_edges(self.keys, self.shift)[1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        return (
            (self.max_bins, self.shift) == (other.max_bins, other.shift)
            and np.array_equal(self.keys, other.keys)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, object]:
        self._settle()
        return dict(self.__dict__)

    def _settle(self) -> None:
        """Count the pending scores and free their memory."""
        self._flush()
        self._pending = None

    def _flush(self) -> None:
        """Sort the pending keys, group equal ones and add them to the counts."""
        if self._pending is None or self._pending_size == 0:
            return
        keys = self._pending[: self._pending_size]
        keys >>= self._shift
        keys.sort()
        # Coarsening before grouping keeps the group arrays small; the keys stay sorted.
        while self.max_bins is not None and np.count_nonzero(keys[1:] != keys[:-1]) >= self.max_bins:
            self._coarsen(1)
            keys >>= 1
        starts = _group_starts(keys)
        counts = np.diff(starts, append=keys.size)
        self._pending_size = 0
        self._absorb(keys[starts], counts)

    def _absorb(self, keys: Keys, counts: Counts) -> None:
        """Add sorted, distinct bins of the present shift, then coarsen until they fit."""
        index = np.searchsorted(self._keys, keys)
        new = np.ones(keys.size, bool)
        inside = index < self._keys.size
        new[inside] = self._keys[index[inside]] != keys[inside]
        self._counts[index[~new]] += counts[~new]
        if new.any():
            self._keys = np.insert(self._keys, index[new], keys[new])
            self._counts = np.insert(self._counts, index[new], counts[new])
        while self.max_bins is not None and self._keys.size > self.max_bins:
            self._coarsen(1)

    def _coarsen(self, bits: int) -> None:
        if bits > 0:
            self._keys, self._counts = _grouped(self._keys >> bits, self._counts)
            self._shift += bits


def bin_edges(keys: Keys, shift: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the smallest and the largest float32 score of each bin `key >> shift`, both finite."""
    lowest = np.asarray(keys, np.int64) << shift
    highest = lowest | ((1 << shift) - 1)
    highest[highest == -1] = -2  # -1 would be -0.0, which compares equal to the next bin's 0.0
    return (
        scores_from_keys(np.clip(lowest, _SMALLEST_KEY, _LARGEST_KEY).astype(np.int32)),
        scores_from_keys(np.clip(highest, _SMALLEST_KEY, _LARGEST_KEY).astype(np.int32)),
    )


def _group_starts(keys: Keys) -> Counts:
    """Return where each run of equal keys starts in sorted keys."""
    starts: Counts = np.flatnonzero(np.concatenate([np.ones(min(keys.size, 1), bool), keys[1:] != keys[:-1]]))
    return starts


def _grouped(keys: Keys, counts: Counts) -> tuple[Keys, Counts]:
    """Return sorted keys without repeats, and the summed counts."""
    starts = _group_starts(keys)
    return keys[starts], np.add.reduceat(counts, starts) if starts.size else counts
