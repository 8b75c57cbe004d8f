"""Objects for tests of pasting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anomseg_ros.core.types import RgbImage
from anomseg_ros.outliers.objects import OutlierObject


class Counting:
    """A source that always returns the same object and counts the calls."""

    def __init__(self, mask: np.ndarray, value: int = 200) -> None:
        self.given = OutlierObject(np.full((*mask.shape, 3), value, np.uint8), mask, "test")
        self.draws = 0
        self.frames: Sequence[RgbImage] = ()

    def draw(self, rng: np.random.Generator, frames: Sequence[RgbImage]) -> OutlierObject:
        self.draws += 1
        self.frames = frames
        return self.given


def disc(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.asarray(x * x + y * y <= (side / 2) ** 2)
