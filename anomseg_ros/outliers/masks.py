"""Masks of objects in photographs: objects that the picture cuts, and rims that show the background."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import DatasetError

_BORDER_PX, _CUT_SHARE = 2, 0.1
"""The picture's border cuts an object if this share of its size lies within so many pixels of the border."""

_SMOOTH = 8.0
"""Largest slope of a shadow, in grey levels per pixel, after a blur that removes noise."""

_SAME_HUE = 0.04
"""Largest difference between the shares of red, green or blue of a shadow and of the ground under it."""

_SHADOW_LIGHT = (0.2, 1.1)
"""Brightness of a shadow relative to the ground."""

_LEAST_LEFT = 0.5
"""Share of a mask that must be left. Objects that look like the ground, such as clear glass, are not trimmed."""


def cut_sides(mask: npt.NDArray[np.bool_]) -> frozenset[str]:
    """Return the sides of a picture that cut an object with the mask bool (H, W)."""
    near = {
        "top": mask[:_BORDER_PX].any(axis=0),
        "bottom": mask[-_BORDER_PX:].any(axis=0),
        "left": mask[:, :_BORDER_PX].any(axis=1),
        "right": mask[:, -_BORDER_PX:].any(axis=1),
    }
    least_px = max(3.0, _CUT_SHARE * float(np.sqrt(np.count_nonzero(mask))))
    return frozenset(side for side, along in near.items() if np.count_nonzero(along) >= least_px)


def eroded(mask: npt.NDArray[np.bool_], share: float) -> npt.NDArray[np.bool_]:
    """Return a mask whose outline is moved inwards; a mask that would vanish is not changed."""
    reach_px = round(share * float(np.sqrt(np.count_nonzero(mask))))
    if reach_px == 0:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach_px + 1,) * 2)
    # An object continues beyond the picture's border, so only its own outline moves.
    inner = cv2.erode(mask.astype(np.uint8), disc).astype(bool)
    return inner if inner.any() else mask


def without_plain_rim(image: RgbImage, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return a mask without a rim that shows the plain ground around the object, or the object's shadow on it.

    image: uint8 (H, W, 3) RGB. mask: bool (H, W). The rim is joined to the outside through pixels without edges, of the
    ground's hue, and as bright or darker. A mask of which little would be left is not changed.
    """
    outside = ~mask
    if not outside.any():
        return mask
    blurred = cv2.GaussianBlur(image, (0, 0), 1.5)
    ground = np.array(cv2.mean(blurred, outside.astype(np.uint8))[:3], np.float32)
    colors = blurred.astype(np.float32)
    light = colors.sum(axis=2)
    hue = np.abs(colors / np.maximum(light, 1.0)[:, :, None] - ground / max(float(ground.sum()), 1.0)).max(axis=2)
    relative = light / max(float(ground.sum()), 1.0)
    grey = cv2.cvtColor(blurred, cv2.COLOR_RGB2GRAY)
    slope = cv2.magnitude(*(cv2.Sobel(grey, cv2.CV_32F, *axis, ksize=3, scale=1 / 8) for axis in ((1, 0), (0, 1))))
    plain = (slope < _SMOOTH) & (hue < _SAME_HUE) & (relative > _SHADOW_LIGHT[0]) & (relative < _SHADOW_LIGHT[1])
    count, parts = cv2.connectedComponents((outside | plain).astype(np.uint8), connectivity=4)
    reaches_outside = np.zeros(count, np.bool_)
    reaches_outside[parts[outside]] = True
    joined = reaches_outside[parts]
    opened = cv2.morphologyEx((mask & ~joined).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    left = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)).astype(bool) & mask
    enough = np.count_nonzero(left) >= _LEAST_LEFT * np.count_nonzero(mask)
    return np.asarray(_largest(left), np.bool_) if enough else mask


def require_object(mask: npt.NDArray[np.bool_], what: str) -> npt.NDArray[np.bool_]:
    """Return a mask that is not empty. Raises DatasetError."""
    if not mask.any():
        raise DatasetError(f"{what} holds no pixel of an object; remove it, or draw its mask again")
    return mask


def _largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the largest connected part of a mask."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return np.asarray(parts == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])), np.bool_)
