"""Counts of pixels in two masks of the same place, mergeable, and the overlap that is read off them."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MaskPairs:
    """Pixels by what two masks say of them, summed over pairs of masks."""

    pairs: int = 0
    both_px: int = 0
    first_px: int = 0
    second_px: int = 0
    neither_px: int = 0

    @staticmethod
    def of(first: _Bools, second: _Bools, counted: _Bools) -> MaskPairs:
        """Return the counts of one pair: bool (H, W) each, and which pixels are counted."""
        total, ones, twos = (int(np.count_nonzero(pixels & counted)) for pixels in (counted, first, second))
        both = int(np.count_nonzero(first & second & counted))
        return MaskPairs(1, both, ones - both, twos - both, total - ones - twos + both)

    def plus(self, other: MaskPairs) -> MaskPairs:
        """Return the sums."""
        return MaskPairs(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def iou(self) -> float | None:
        """Intersection over union of what the masks mark; None where neither marks anything."""
        union = self.both_px + self.first_px + self.second_px
        return self.both_px / union if union else None

    @property
    def miou(self) -> float | None:
        """Mean of that and of the same of what they do not mark; None where one of the two is not defined."""
        union = self.neither_px + self.first_px + self.second_px
        return None if self.iou is None or not union else (self.iou + self.neither_px / union) / 2


NO_PAIRS = MaskPairs()
