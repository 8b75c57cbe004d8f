"""Pillow's Image.resize for uint8 pixels, bit for bit, without Pillow.

The `seeds` protocol is defined by images resized with Pillow's BILINEAR filter and masks resized with its NEAREST one.
OpenCV's filters of the same names are others: Pillow's bilinear widens its triangle when it makes an image smaller
(antialiasing), and its nearest samples at pixel centres. The arithmetic follows Pillow's src/libImaging/Resample.c
(22-bit fixed-point weights, horizontal pass first, each pass rounded to 8 bits) and Geometry.c (nearest). Pillow 13
takes the vertical pass first where the height shrinks much more than the width (python-pillow/Pillow#9549), which moves
pixels by 1; the published figures come from older ones, and camera frames to 512x1024 are the same in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.errors import FrameError

PRECISION_BITS = 32 - 8 - 2
"""Fraction bits of Pillow's weights for 8-bit pixels (PRECISION_BITS in Resample.c)."""

BLOCK = 16
"""Output rows made by one matrix product: few enough that the band of weights is nearly dense."""

MAX_PRODUCT = 200_000
"""Multiplications of one matrix product. OpenBLAS shares larger ones (above 2^18) between threads, whose waiting for
each other costs a hundred times the work on a busy machine; frames are loaded by several processes anyway."""

Pixels = npt.NDArray[np.uint8]


def resize_bilinear(image: Pixels, height_px: int, width_px: int) -> Pixels:
    """Return what PIL's `Image.resize((width_px, height_px), Image.BILINEAR)` returns.

    image: uint8 (H, W) or (H, W, C). Returns uint8 of the same number of axes. Raises FrameError for other arrays or
    sizes below 1.
    """
    _check(image, height_px, width_px)
    if image.shape[1] != width_px:
        image = _swapped(_weigh_rows(_swapped(image), width_px))
    if image.shape[0] != height_px:
        image = _weigh_rows(image, height_px)
    return image


def resize_nearest(image: Pixels, height_px: int, width_px: int) -> Pixels:
    """Return what PIL's `Image.resize((width_px, height_px), Image.NEAREST)` returns; see resize_bilinear."""
    _check(image, height_px, width_px)
    rows = _nearest_positions(image.shape[0], height_px)
    columns = _nearest_positions(image.shape[1], width_px)
    return np.ascontiguousarray(np.take(np.take(image, rows, axis=0), columns, axis=1))


@dataclass(frozen=True)
class _Band:
    """The weights of a few neighbouring output rows: (outputs, inputs) float64, for input rows from `first` on."""

    first: int
    weights: npt.NDArray[np.float64]


def _weigh_rows(image: Pixels, size: int) -> Pixels:
    """Resample the first axis to `size` rows.

    The sums are exact in float64 (8-bit pixels times 22-bit weights, a few of them), so that the order in which the
    matrix product adds them does not matter and equals Pillow's integer arithmetic.
    """
    flat = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    result = np.empty((size, flat.shape[1]), np.uint8)
    done = 0
    for band in _bands(image.shape[0], size):
        outputs, inputs = band.weights.shape
        rows = flat[band.first : band.first + inputs].astype(np.float64)
        sums = np.empty((outputs, flat.shape[1]))
        columns = max(1, MAX_PRODUCT // band.weights.size)
        for start in range(0, flat.shape[1], columns):
            np.matmul(band.weights, rows[:, start : start + columns], out=sums[:, start : start + columns])
        sums += 0.5
        # Weights are not negative and sum to 1 within a few 2^-22, so the sums stay inside [0.5, 256).
        result[done : done + outputs] = sums
        done += outputs
    return result.reshape(size, *image.shape[1:])


@lru_cache(maxsize=32)
def _bands(size_in: int, size_out: int) -> tuple[_Band, ...]:
    first, weights = _weights(size_in, size_out)
    bands = []
    for start in range(0, size_out, BLOCK):
        rows = range(start, min(start + BLOCK, size_out))
        low = int(first[rows.start])
        high = min(size_in, int(first[rows[-1]]) + weights.shape[1])
        dense = np.zeros((len(rows), high - low))
        for row in rows:
            offset = int(first[row]) - low
            taps = min(weights.shape[1], high - low - offset)
            dense[row - start, offset : offset + taps] = weights[row, :taps]
        bands.append(_Band(low, dense / (1 << PRECISION_BITS)))
    return tuple(bands)


def _weights(size_in: int, size_out: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return Pillow's weights: the first input of each output, (size_out,), and whole numbers, (size_out, taps)."""
    scale = size_in / size_out
    filter_scale = max(scale, 1.0)
    center = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((center - filter_scale + 0.5).astype(np.int64), 0)
    end = np.minimum((center + filter_scale + 0.5).astype(np.int64), size_in)
    taps = np.arange(int((end - first).max()))
    distance = (taps + first[:, None] - center[:, None] + 0.5) * (1.0 / filter_scale)
    weights = np.maximum(1.0 - np.abs(distance), 0.0)
    weights[taps >= (end - first)[:, None]] = 0.0
    # Added in order, one tap after the other, as C does: another order may differ in the last bit of the quotient.
    total = np.add.accumulate(weights, axis=1)[:, -1:]
    return first, np.floor(0.5 + weights / total * (1 << PRECISION_BITS))


@lru_cache(maxsize=32)
def _nearest_positions(size_in: int, size_out: int) -> npt.NDArray[np.int64]:
    step = size_in / size_out
    steps = np.full(size_out, step)
    steps[0] = step * 0.5
    # Pillow adds the step again and again; multiplying would round differently.
    return np.minimum(np.add.accumulate(steps).astype(np.int64), size_in - 1)


def _swapped(image: Pixels) -> Pixels:
    # OpenCV's transpose of 1, 3 and 4 channels is several times faster than NumPy's.
    if image.ndim == 2 or image.shape[2] in (3, 4):
        return np.asarray(cv2.transpose(image), np.uint8)
    return np.ascontiguousarray(image.swapaxes(0, 1))


def _check(image: Pixels, height_px: int, width_px: int) -> None:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise FrameError(f"cannot resize {image.dtype} pixels of shape {image.shape}; expected uint8 (H, W[, C])")
    if height_px < 1 or width_px < 1:
        raise FrameError(f"cannot resize to {height_px} x {width_px} pixels; expected at least 1 x 1")
