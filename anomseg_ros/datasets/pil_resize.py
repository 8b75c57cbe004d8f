"""Pillow's resizing, which defines the protocol `seeds`, with equal results in every version of Pillow.

OpenCV's filters of the same names differ: Pillow's bilinear widens its triangle when it shrinks an image
(antialiasing), and its nearest samples at pixel centres. Where the height shrinks much more than the width, Pillow 13
takes the vertical pass first (python-pillow/Pillow#9549), which changes values by 1. The published figures come from
older versions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomseg_ros.errors import FrameError

Pixels = npt.NDArray[np.uint8]


def resize_bilinear(image: Pixels, height_px: int, width_px: int) -> Pixels:
    """Return what Pillow's `Image.resize((width_px, height_px), Image.BILINEAR)` returns before version 13.

    image: uint8 (H, W) or (H, W, 3). Returns uint8 of the same number of axes; the image itself if it has the size.
    Raises FrameError for other arrays or sizes below 1.
    """
    # First the horizontal pass alone, rounded to 8 bits: all versions agree on it.
    return _resized(_resized(image, image.shape[0], width_px), height_px, width_px)


def resize_nearest(image: Pixels, height_px: int, width_px: int) -> Pixels:
    """Return what Pillow's `Image.resize((width_px, height_px), Image.NEAREST)` returns; see resize_bilinear."""
    return _resized(image, height_px, width_px, Image.Resampling.NEAREST)


def _resized(
    image: Pixels, height_px: int, width_px: int, method: Image.Resampling = Image.Resampling.BILINEAR
) -> Pixels:
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] == (3,)) or 0 in image.shape:
        raise FrameError(f"cannot resize {image.dtype} pixels of shape {image.shape}; expected uint8 (H, W[, 3])")
    if height_px < 1 or width_px < 1:
        raise FrameError(f"cannot resize to {height_px} x {width_px} pixels; expected at least 1 x 1")
    if image.shape[:2] == (height_px, width_px):
        return image
    return np.array(Image.fromarray(image).resize((width_px, height_px), method))
