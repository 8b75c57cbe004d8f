from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from anomseg_ros.core.compressed_image import rgb_from_compressed_message
from anomseg_ros.errors import FrameError

SKY, GROUND = (40, 90, 220), (200, 60, 30)


def scene() -> np.ndarray:
    rgb = np.empty((64, 96, 3), np.uint8)
    rgb[:32], rgb[32:] = SKY, GROUND
    return rgb


def mosaic_of(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """Return the mosaic of a sensor with this colour filter. The letters of the pattern go row by row."""
    plane = {(row, column): "rgb".index(pattern[2 * row + column]) for row in (0, 1) for column in (0, 1)}
    mosaic = np.empty(rgb.shape[:2], np.uint8)
    for (row, column), channel in plane.items():
        mosaic[row::2, column::2] = rgb[row::2, column::2, channel]
    return mosaic


def message(format: str, pixels: np.ndarray, suffix: str) -> Any:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 100] if suffix == ".jpg" else []
    return SimpleNamespace(format=format, data=cv2.imencode(suffix, pixels, quality)[1].reshape(-1))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize(("bits", "kind", "suffix"), [(8, "jpeg", ".jpg"), (8, "png", ".png"), (16, "png", ".png")])
def test_bayer_mosaic_is_demosaiced(pattern: str, bits: int, kind: str, suffix: str) -> None:
    mosaic = mosaic_of(scene(), pattern)
    pixels = mosaic.astype(np.uint16) * 257 if bits == 16 else mosaic
    rgb = rgb_from_compressed_message(message(f"bayer_{pattern}{bits}; {kind} compressed ", pixels, suffix))
    assert rgb.shape == (64, 96, 3) and rgb.dtype == np.uint8
    for half, colour in ((rgb[:30], SKY), (rgb[34:], GROUND)):
        assert np.abs(half.reshape(-1, 3).mean(axis=0) - colour).max() < 15


def test_colour_and_grey_images_are_not_demosaiced() -> None:
    bgr = np.ascontiguousarray(scene()[..., ::-1])
    np.testing.assert_array_equal(
        rgb_from_compressed_message(message("bayer_rggb8; png compressed bgr8", bgr, ".png")), scene()
    )
    grey = scene()[..., 0]
    for format in ("mono8; png compressed ", "png", "rgb8; png compressed bgr8", ""):
        rgb = rgb_from_compressed_message(message(format, grey, ".png"))
        np.testing.assert_array_equal(rgb, np.repeat(grey[..., None], 3, axis=2))


def test_unknown_bayer_pattern_error_names_it() -> None:
    with pytest.raises(FrameError, match=r"'bayer_rgbw8; png compressed ' .*unknown pattern; known: bayer_rggb8"):
        rgb_from_compressed_message(message("bayer_rgbw8; png compressed ", scene()[..., 0], ".png"))
