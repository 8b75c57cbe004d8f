"""The geometry of other cameras: the place in the frame of each pixel of a crop, for another mount or lens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.scenes.textures import Rng

HORIZON = 0.45
"""Row of the horizon of a forward camera, as a share of the height: Cityscapes' 0.43, CamVid's 0.45 to 0.5."""

Points = npt.NDArray[np.float32]
"""float32 (2, H, W): x and y from the frame's middle, in units of the frame's width."""

Warp = Callable[[Points, float], Points]
"""Called with points of the warped frame and the frame's height in widths; returns where they lie in the real frame."""


@dataclass(frozen=True)
class Part:
    """A rectangle of a frame, in pixels; it may reach beyond the frame on the right and below.

    averaged: pixels are averaged when the part is resized, which keeps thin things visible where it shrinks.
    """

    top: int
    left: int
    height: int
    width: int
    averaged: bool


def draw_mount(rng: Rng) -> Warp:
    """Draw another mounting: pitch and roll of a camera with a focal length of one width, and its height.

    Another height moves points of flat ground along their columns, in proportion to their distance from the horizon.
    Points above the horizon stay. This stretches objects on the ground a little.
    """
    pitch, roll = np.deg2rad(rng.uniform(-4.0, 4.0)), np.deg2rad(rng.normal(0.0, 1.5))
    raised = float(np.exp(rng.uniform(-0.3, 0.3)))

    def mount(points: Points, height: float) -> Points:
        x, y = points
        x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
        depth = np.cos(pitch) - y * np.sin(pitch)
        x, y = x / depth, (y * np.cos(pitch) + np.sin(pitch)) / depth
        horizon = (HORIZON - 0.5) * height
        below = np.maximum(y - horizon, 0.0)
        return np.stack([x, y + below * (1.0 / raised - 1.0)]).astype(np.float32)

    return mount


def draw_lens(rng: Rng) -> Warp:
    """Draw another lens: radial distortion of up to 25 %. The middles of the left and right edge stay in place."""
    amount = rng.uniform(-0.1, 0.25)

    def lens(points: Points, height: float) -> Points:
        squared = 4.0 * (points[0] ** 2 + points[1] ** 2)
        return np.asarray(points * ((1.0 + amount * squared) / (1.0 + amount)), np.float32)

    return lens


def warped_part(
    image: RgbImage,
    labels: LabelImage,
    part: Part,
    size_px: tuple[int, int],
    warps: list[Warp],
    padding: tuple[int, int, int],
    padding_label: int,
    horizon_px: float | None = None,
) -> tuple[RgbImage, LabelImage, float]:
    """Return a part of a warped frame, resized, with its labels and the row of its horizon, perhaps outside it.

    Args:
        image: uint8 (H, W, 3) RGB.
        labels: uint8 (H, W); the result has the nearest pixel's label.
        part: of the warped frame.
        size_px: (height, width) of the result.
        warps: applied in this order.
        padding: colour outside the frame.
        padding_label: label outside the frame.
        horizon_px: row of the horizon in the frame; None for a usual camera's.
    """
    x, y = _places(labels.shape, part, size_px, warps)
    nearest = cv2.remap(
        np.ascontiguousarray(labels),
        x,
        y,
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(padding_label,),
    )
    middle = x.shape[1] // 2
    slope, offset = np.polyfit(y[:, middle], np.arange(len(y)), 1) if len(y) > 1 else (0.0, 0.0)
    level_px = HORIZON * labels.shape[0] if horizon_px is None else horizon_px
    horizon = float(slope * level_px + offset)
    top, left, bottom, right = _box(x, y, labels.shape)
    cut = np.ascontiguousarray(image[top:bottom, left:right])
    shrink_y, shrink_x = min(1.0, size_px[0] / part.height), min(1.0, size_px[1] / part.width)
    if part.averaged:
        small = max(1, round(cut.shape[1] * shrink_x)), max(1, round(cut.shape[0] * shrink_y))
        shrink_x, shrink_y = small[0] / cut.shape[1], small[1] / cut.shape[0]
        cut = np.asarray(cv2.resize(cut, small, interpolation=cv2.INTER_AREA), np.uint8)
    x, y = (x - left + 0.5) * shrink_x - 0.5, (y - top + 0.5) * shrink_y - 0.5
    smooth = cv2.remap(cut, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=padding)
    return np.asarray(smooth, np.uint8), np.asarray(nearest, np.uint8), horizon


def _places(
    shape: tuple[int, ...], part: Part, size_px: tuple[int, int], warps: list[Warp]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return x and y in the frame, in pixels, of every pixel of the resized part: float32 (h, w) each."""
    height, width = shape[:2]
    rows = part.top + (np.arange(size_px[0], dtype=np.float32) + 0.5) * (part.height / size_px[0])
    columns = part.left + (np.arange(size_px[1], dtype=np.float32) + 0.5) * (part.width / size_px[1])
    points = np.stack(np.meshgrid((columns - width / 2) / width, (rows - height / 2) / width)).astype(np.float32)
    for warp in warps:
        points = warp(points, height / width)
    x, y = points * np.float32(width)
    return x + np.float32(width / 2 - 0.5), y + np.float32(height / 2 - 0.5)


def _box(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of the needed pixels, within the frame and never empty."""
    left, right = int(np.clip(np.floor(x.min()), 0, shape[1] - 1)), int(np.clip(np.ceil(x.max()) + 1, 1, shape[1]))
    top, bottom = int(np.clip(np.floor(y.min()), 0, shape[0] - 1)), int(np.clip(np.ceil(y.max()) + 1, 1, shape[0]))
    return top, left, bottom, right
