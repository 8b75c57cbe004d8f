"""Frames with figures of the official implementations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

Frame = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]


@pytest.fixture(scope="session")
def official_frames() -> list[Frame]:
    """Three frames with known figures of the official Fishyscapes and SegmentMeIfYouCan code."""
    y, x = np.mgrid[:96, :160]
    frames = []
    for i in range(3):
        labels = np.zeros((96, 160), np.uint8)
        labels[:16] = 255
        labels[30 + 8 * i : 60 + 8 * i, 20:60] = 1
        labels[70:85, 100 + 5 * i : 125 + 5 * i] = 1
        waves = 0.25 * np.sin(x / 9 + i) * np.cos(y / 7)
        scores = 0.35 + waves + 0.3 * (labels == 1) + 0.02 * ((7 * x + 13 * y + 5 * i) % 11)
        frames.append((scores.astype(np.float32), labels))
    assert sum(int((labels <= 1).sum()) for _, labels in frames) == 38_400
    assert sum(int((labels == 1).sum()) for _, labels in frames) == 4_725
    return frames
