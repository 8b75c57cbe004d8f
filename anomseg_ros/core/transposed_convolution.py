"""A transposed convolution as an ordinary one whose channels are the pixels of a block.

Pixel (s j + r) of the output sees, for r fixed, the same offsets from j everywhere: an ordinary convolution per r,
s x s of them side by side in the channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PhaseKernels:
    """weight: (s s C, D, h, w), in the order (row phase, column phase, class); the others: zeros around the input."""

    weight: Array
    top: int
    left: int
    bottom: int
    right: int


def phase_kernels(weight: Array, stride: int, begins: tuple[int, int]) -> PhaseKernels | None:
    """Return the ordinary convolution that equals a transposed one with weight (D, C, H, W), ungrouped, not dilated.

    begins: its padding at the top and left; the output is `stride` times as large as the input. None where the input
    would have to be cut instead of padded.
    """
    rows = _taps(weight.shape[2], stride, begins[0])
    columns = _taps(weight.shape[3], stride, begins[1])
    low_y, high_y = min(d for _, _, d in rows), max(d for _, _, d in rows)
    low_x, high_x = min(d for _, _, d in columns), max(d for _, _, d in columns)
    if min(-low_y, -low_x, high_y, high_x) < 0:
        return None
    channels, classes = weight.shape[:2]
    phases = np.zeros((stride, stride, classes, channels, high_y - low_y + 1, high_x - low_x + 1), np.float32)
    for row_phase, y, row_offset in rows:
        for column_phase, x, column_offset in columns:
            phases[row_phase, column_phase, :, :, row_offset - low_y, column_offset - low_x] = weight[:, :, y, x].T
    return PhaseKernels(phases.reshape(-1, *phases.shape[3:]), -low_y, -low_x, high_y, high_x)


def _taps(kernel: int, stride: int, begin: int) -> list[tuple[int, int, int]]:
    """Return (phase r, tap k, offset d): output pixel s j + r takes input pixel j + d by the kernel's tap k."""
    return [
        (r, k, (r + begin - k) // stride) for r in range(stride) for k in range(kernel) if (r + begin - k) % stride == 0
    ]
