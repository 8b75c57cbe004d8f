"""Shadows of pasted objects on the ground; objects without a shadow seem to float.

A shadow is the object's silhouette on the ground, on the far side of a light anywhere above, and a dark ellipse where
the object touches the ground, which exists under an overcast sky, too.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import RgbImage

_STRENGTH = (0.2, 0.65)
"""Share of the light that a shadow removes."""

_CAST_SHARE = 0.6
"""Probability of the silhouette; otherwise there is only the ellipse."""

_LOWEST_PART = 0.15
"""Share of an object's height that counts as its foot."""


def cast_shadow(
    image: RgbImage, alpha: npt.NDArray[np.uint8], start_px: tuple[int, int], rng: np.random.Generator
) -> None:
    """Draw the shadow of an object on the ground into a frame, in place.

    Args:
        image: the frame, uint8 (H, W, 3).
        alpha: uint8 (h, w) of the object.
        start_px: row and column of its upper left corner in the frame; may be outside.
        rng: random numbers.
    """
    rows = np.flatnonzero((alpha >= 128).any(axis=1))
    if not len(rows):
        return
    top, foot = int(rows[0]), int(rows[-1])
    low = (alpha[foot - int(_LOWEST_PART * (foot - top)) : foot + 1] >= 128).any(axis=0)
    columns = np.flatnonzero(low)
    left, right = int(columns[0]), int(columns[-1])
    strength = float(rng.uniform(*_STRENGTH))
    # Light from behind casts the shadow towards the camera, which is down in the frame.
    slant, flat = float(rng.uniform(-1.5, 1.5)), float(rng.uniform(-0.3, 0.4))
    cast, soft = rng.random() < _CAST_SHARE, float(rng.uniform(0.01, 0.05))
    thickness = float(rng.uniform(0.03, 0.1))
    sigma_px = soft * max(alpha.shape) + 0.5
    # Points of the object (x, y) fall to (x + slant (foot - y), foot - flat (foot - y)).
    reach_px = foot - top + 1
    ends_x = (0, alpha.shape[1], slant * reach_px, alpha.shape[1] + slant * reach_px)
    margin_px = int(3 * sigma_px) + 2 + int(thickness * alpha.shape[1])
    window = _clipped(
        start_px[0] + foot - max(0.0, flat) * reach_px - margin_px,
        start_px[0] + foot + max(0.0, -flat) * reach_px + margin_px,
        start_px[1] + (min(ends_x) if cast else left) - margin_px,
        start_px[1] + (max(ends_x) if cast else right) + margin_px,
        image.shape,
    )
    if window is None:
        return
    rows_of, columns_of = window
    x, y = start_px[1] - columns_of.start, start_px[0] - rows_of.start
    size = (columns_of.stop - columns_of.start, rows_of.stop - rows_of.start)
    dark = np.zeros(size[::-1], np.uint8)
    if cast:
        matrix = np.array([[1, -slant, x + slant * foot], [0, flat, y + foot - flat * foot]], np.float64)
        dark = np.asarray(cv2.warpAffine(np.ascontiguousarray(alpha), matrix, size), np.uint8)
    axes = (max(1, round(0.55 * (right - left))), max(1, round(thickness * (right - left + 1))))
    cv2.ellipse(dark, (round(x + (left + right) / 2), y + foot), axes, 0, 0, 360, 255, -1)
    weight = cv2.GaussianBlur(dark, (0, 0), sigma_px).astype(np.float32)
    shade = 1 - np.float32(strength / 255) * weight
    image[window] = np.round(image[window] * shade[:, :, None]).astype(np.uint8)


def _clipped(
    top: float, bottom: float, left: float, right: float, size_px: tuple[int, ...]
) -> tuple[slice, slice] | None:
    rows = slice(max(0, int(top)), min(size_px[0], int(bottom) + 1))
    columns = slice(max(0, int(left)), min(size_px[1], int(right) + 1))
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None
