from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.metrics.mask_pairs import NO_PAIRS, MaskPairs


def mask(*pixels: int) -> np.ndarray:
    return np.isin(np.arange(8), pixels).reshape(2, 4)


def test_counts_of_a_pair_equal_the_manual_result() -> None:
    told = MaskPairs.of(mask(0, 1, 2), mask(1, 2, 3, 7), counted=mask(0, 1, 2, 3, 4, 5))
    assert told == MaskPairs(pairs=1, both_px=2, first_px=1, second_px=1, neither_px=2)
    assert told.iou == 2 / 4 and told.miou == pytest.approx((2 / 4 + 2 / 4) / 2)


def test_sum_of_pairs_adds_pixel_counts() -> None:
    everything = mask(*range(8))
    one, two = MaskPairs.of(mask(0), mask(0), everything), MaskPairs.of(mask(4, 5), mask(6), everything)
    assert one.plus(two) == two.plus(one) == MaskPairs(2, 1, 2, 1, 12)
    assert one.plus(two).iou == 1 / 4
    assert NO_PAIRS.plus(one) == one


def test_figures_are_none_without_pixels_to_compare() -> None:
    assert NO_PAIRS.iou is None and NO_PAIRS.miou is None
    empty = MaskPairs.of(mask(), mask(), mask(*range(8)))
    assert empty.iou is None and empty.miou is None
    full = MaskPairs.of(mask(*range(8)), mask(*range(8)), mask(*range(8)))
    assert full.iou == 1.0 and full.miou is None
