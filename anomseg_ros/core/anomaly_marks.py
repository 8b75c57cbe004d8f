"""How anomalies are marked in pictures: an outline and a diagonal hatch, in a colour that no class is near to.

The classes' colours fill areas; a hatch with an outline looks unlike an area also without colours. Its colour is chosen
for the palette (`anomaly_color`), so that it also suits classes of one's own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.color_vision import lab_colors, smallest_differences
from anomseg_ros.core.types import Mask, RgbImage

Rgb = tuple[int, int, int]
Contour = npt.NDArray[np.int32]

PREFERRED_COLOR: Rgb = (0, 255, 255)
"""Cyan: far from Cityscapes' and CamVid's classes, bright on asphalt and at night."""
MIN_DIFFERENCE = 15.0
"""Difference (CIEDE2000) from every class from which on the preferred colour is used."""
MIN_LIGHTNESS = 65.0
"""Lightness (CIE L*) of other colours: they stand out from their dark edges."""
MIN_DRAWN_PX = 20
"""Components of fewer pixels are not drawn, at 1024 x 512 pixels; more in larger pictures, fewer in smaller ones."""
HOLE_FACTOR = 4
"""A hole in a component has to be so many times larger than a component to be drawn."""
_REFERENCE_PX = 1024 * 512
EDGE_COLOR: Rgb = (0, 0, 0)


def anomaly_color(colors: npt.NDArray[np.uint8]) -> Rgb:
    """Return the colour of anomalies for a (256, 3) palette.

    It is cyan, or the bright colour that is farthest from the palette where a class is nearly cyan, with full colour
    vision or without red or green cones.
    """
    return _anomaly_color(colors.tobytes())


@functools.lru_cache(maxsize=16)
def _anomaly_color(palette_bytes: bytes) -> Rgb:
    palette = np.unique(np.frombuffer(palette_bytes, np.uint8).reshape(-1, 3), axis=0)
    if smallest_differences([PREFERRED_COLOR], palette)[0] >= MIN_DIFFERENCE:
        return PREFERRED_COLOR
    levels = range(0, 256, 51)
    colors = np.array(list(itertools.product(levels, levels, levels)))
    bright = colors[lab_colors(colors)[:, 0] >= MIN_LIGHTNESS]
    red, green, blue = bright[int(np.argmax(smallest_differences(bright, palette)))]
    return int(red), int(green), int(blue)


def draw_marks(canvas: RgbImage, contours: Sequence[Contour], area: Mask, color: Rgb) -> None:
    """Draw the hatch in an area and the outlines around it on `canvas`, uint8 (H, W, 3) RGB.

    contours, area: of `drawn_contours` and `drawn_area`.
    """
    if not contours:
        return
    height, width = area.shape
    pitch = max(6, round(height / 45))
    hatch, lines = _hatch(height, width, pitch, color)
    cv2.copyTo(hatch, cv2.bitwise_and(area, lines), canvas)
    line_px = max(1, pitch // 6)
    cv2.drawContours(canvas, contours, -1, EDGE_COLOR, 3 * line_px)
    cv2.drawContours(canvas, contours, -1, color, line_px)


def drawn_contours(mask: Mask) -> Sequence[Contour]:
    """Return the outlines that are drawn of a uint8 (H, W) mask, not 0 = anomalous, those of holes among them.

    They are simpler than the mask, so that a noisy one can be read: gaps of about four pixels are closed, and
    components of fewer than MIN_DRAWN_PX and small holes are left out. The mask itself is not changed.
    """
    if not cv2.countNonZero(mask):
        return []
    height, width = mask.shape
    # At half the size: a quarter of the work, and half of what noise there is.
    half = (max(1, width // 2), max(1, height // 2))
    small = cv2.resize(mask, half, interpolation=cv2.INTER_NEAREST)
    closed = cv2.morphologyEx(small, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    contours, hierarchy = cv2.findContours(closed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    smallest_px = MIN_DRAWN_PX * height * width / _REFERENCE_PX / 4
    scale = np.array([width / half[0], height / half[1]])
    return [
        np.round(contour * scale).astype(np.int32)
        for contour, (*_, parent) in zip(contours, hierarchy[0].tolist(), strict=True)
        if _area_px(np.asarray(contour, np.int32)) >= smallest_px * (1 if parent < 0 else HOLE_FACTOR)
    ]


def _area_px(contour: Contour) -> float:
    """Return the number of pixels of a component; its corners are the centres of its outermost pixels (Pick)."""
    return float(cv2.contourArea(contour) + cv2.arcLength(contour, True) / 2 + 1)


def drawn_area(contours: Sequence[Contour], height: int, width: int) -> Mask:
    """Return uint8 (height, width), 255 within the contours but for their holes."""
    area: Mask = np.zeros((height, width), np.uint8)
    if contours:
        cv2.drawContours(area, contours, -1, 255, cv2.FILLED)
    return area


@functools.lru_cache(maxsize=16)
def _hatch(height: int, width: int, pitch: int, color: Rgb) -> tuple[RgbImage, Mask]:
    """Return the colours of the hatch's lines, uint8 (H, W, 3), and 255 where the lines are; `pitch` is their distance.

    A line has dark edges, so that it can be seen on bright ground.
    """
    phase = np.add.outer(np.arange(height), np.arange(width)) % pitch
    line, edge = max(2, round(pitch / 4)), max(1, round(pitch / 16))
    colors = np.where(((phase >= edge) & (phase < line + edge))[..., None], color, EDGE_COLOR).astype(np.uint8)
    return colors, np.where(phase < line + 2 * edge, 255, 0).astype(np.uint8)
