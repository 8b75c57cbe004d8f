"""Outlines of procedural outliers: animals, boxes, carts, furniture, debris, tyres, and unknown things.

An outline is a list of polygons in arbitrary units, y downwards, that are drawn one over the other. Each has a part
number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
"""float64 (N, 2), x and y."""

Parts = npt.NDArray[np.uint8]
"""uint8 (H, W): 0 outside, else the number of the visible part."""

HOLE = 0
"""Part number of a polygon that cuts a hole into those below it."""

_SHIFT = 4
"""Fractional bits of the integer polygon corners for cv2."""


@dataclass(frozen=True, eq=False)
class Polygon:
    """One polygon of an outline. part: 1 to 255, or HOLE."""

    points: Points
    part: int


Outline = list[Polygon]


def rasterise(outline: Outline, size_px: int) -> Parts:
    """Return an outline as a tight image whose longer side is `size_px`."""
    corners = np.concatenate([polygon.points for polygon in outline])
    low, high = corners.min(axis=0), corners.max(axis=0)
    px_per_unit = (size_px - 1) / max(float((high - low).max()), 1e-9)
    width_px, height_px = np.ceil((high - low) * px_per_unit).astype(int) + 1
    parts = np.zeros((int(height_px), int(width_px)), np.uint8)
    for polygon in outline:
        fixed = np.round((polygon.points - low) * px_per_unit * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(parts, [fixed.reshape(-1, 1, 2)], polygon.part, shift=_SHIFT)
    return tight(parts)


def tight(parts: Parts) -> Parts:
    """Return the smallest window of an image that holds all pixels other than 0."""
    rows, columns = np.flatnonzero(parts.any(axis=1)), np.flatnonzero(parts.any(axis=0))
    return parts[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def blob(rng: np.random.Generator) -> Outline:
    """One rounded lump, sometimes with a patch on it."""
    outline = [Polygon(_lump(rng, rng.uniform(0.05, 0.3)) * (1, rng.uniform(0.45, 1.3)), 1)]
    if rng.random() < 0.4:
        patch = _lump(rng, 0.3) * rng.uniform(0.2, 0.5) + rng.uniform(-0.3, 0.3, 2)
        outline.append(Polygon(patch, 2))
    return outline


def polygon(rng: np.random.Generator) -> Outline:
    """A plate or shard with straight edges."""
    count = int(rng.integers(3, 9))
    angles = (np.arange(count) + rng.uniform(-0.35, 0.35, count)) * 2 * np.pi / count + rng.uniform(0, 2 * np.pi)
    radii = rng.uniform(0.55, 1.0, count)
    points = np.stack([np.cos(angles) * radii, np.sin(angles) * radii * rng.uniform(0.5, 1.2)], axis=1)
    outline = [Polygon(points, 1)]
    if rng.random() < 0.5:
        # A fold: one side of a line through the middle has other light.
        half = np.concatenate([points[: count // 2 + 1], points.mean(axis=0, keepdims=True)])
        outline.append(Polygon(half, 2))
    return outline


def creature(rng: np.random.Generator) -> Outline:
    """A body with legs, neck, head, ears or horns, and a tail, with proportions from a dachshund to a giraffe."""
    thick, leg, neck = rng.uniform(0.2, 0.42), rng.uniform(0.2, 0.9), rng.uniform(0.05, 0.6)
    body = _turned(_lump(rng, 0.08) * (0.75, thick), rng.uniform(-0.15, 0.15))
    leg_width = rng.uniform(0.1, 0.2)
    outline: Outline = []
    for number, x in enumerate(np.linspace(-0.55, 0.55, 4) + rng.normal(0, 0.06, 4)):
        knee = x + rng.normal(0, 0.1)
        points = [(x, 0.0), (knee, thick + leg * 0.5), (knee + rng.normal(0, 0.08), thick + leg)]
        # The legs on the far side are a separate part, because they are shaded.
        outline.append(Polygon(_limb(points, leg_width * 1.4, leg_width * 0.8), 2 if number % 2 else 3))
    shoulder, tilt = np.array([0.6, -thick * 0.3]), rng.uniform(0.2, 1.4)
    head = shoulder + (neck + 0.1) * np.array([np.cos(tilt), -np.sin(tilt)])
    size = rng.uniform(0.16, 0.28)
    tail = [(-0.7, -thick * 0.2), (-0.9, rng.uniform(-0.4, 0.2)), (-1.0 - rng.uniform(0, 0.2), rng.uniform(-0.5, 0.6))]
    outline += [Polygon(_limb(tail, rng.uniform(0.06, 0.2), 0.05), 3), Polygon(body, 1)]
    outline.append(Polygon(_limb([tuple(shoulder), tuple(head)], 0.36, size), 1))
    skull = _turned(_ellipse(size * rng.uniform(1.1, 1.8), size * 0.8), rng.uniform(-0.1, 0.6))
    for side in (-0.5, 0.5):
        tip = (head[0] + side * size - 0.05, head[1] - size - rng.uniform(0.05, 0.4))
        outline.append(Polygon(_limb([(head[0] + side * size, head[1]), tip], 0.12, 0.04), 4))
    outline.append(Polygon(_moved(skull, head[0] + size * 0.5, head[1]), 4))
    return outline


def box(rng: np.random.Generator) -> Outline:
    """A crate or case: front, side and top, and sometimes a flap."""
    width, height, depth = rng.uniform(0.6, 1.4), rng.uniform(0.4, 1.3), rng.uniform(0.15, 0.6)
    shift = np.array([depth * rng.choice([-1, 1]), -depth * rng.uniform(0.2, 0.7)])
    front = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    edge = width if shift[0] > 0 else 0.0
    side = np.array([(edge, 0), (edge, height)])
    outline = [
        Polygon(np.concatenate([front[:2], front[1::-1] + shift]), 2),
        Polygon(np.concatenate([side, side[::-1] + shift]), 3),
        Polygon(front, 1),
    ]
    if rng.random() < 0.3:
        flap = np.array([(0.05, 0), (width * 0.5, 0), (width * 0.4, -depth), (-0.1, -depth * 0.8)])
        outline.append(Polygon(flap, 4))
    if rng.random() < 0.4:
        band = rng.uniform(0.2, 0.7) * height
        outline.append(Polygon(np.array([(0, band), (width, band), (width, band * 1.2), (0, band * 1.2)]), 4))
    return [Polygon(_turned(item.points, turn), item.part) for turn in [rng.normal(0, 0.1)] for item in outline]


def column(rng: np.random.Generator) -> Outline:
    """A barrel, cone, bottle or bollard: a tapered cylinder, banded or plain, upright or fallen over."""
    height, bottom = rng.uniform(0.8, 2.2), rng.uniform(0.3, 0.55)
    top = bottom * rng.choice([rng.uniform(0.1, 0.4), rng.uniform(0.7, 1.05)])
    levels = np.linspace(0, 1, int(rng.integers(2, 7)))
    outline: Outline = [Polygon(_moved(_ellipse(bottom, bottom * 0.3), 0, height), 1)]
    for number, (start, end) in enumerate(pairwise(levels)):
        wide, wider = top + (bottom - top) * start, top + (bottom - top) * end
        band = [(-wide, start * height), (wide, start * height), (wider, end * height), (-wider, end * height)]
        outline.append(Polygon(np.array(band, float), 1 + number % 2))
    outline.append(Polygon(_ellipse(top, top * 0.3), 3))
    if rng.random() < 0.3:
        base = bottom * rng.uniform(1.2, 1.5)
        foot = [(-base, height), (base, height), (base, height * 1.08), (-base, height * 1.08)]
        outline.append(Polygon(np.array(foot), 3))
    turn = rng.choice([rng.normal(0, 0.08), rng.uniform(1.2, 1.9)])
    return [Polygon(_turned(item.points, turn), item.part) for item in outline]


def ring(rng: np.random.Generator) -> Outline:
    """A tyre or hoop, seen from the side or at a slant."""
    slant, hole = rng.uniform(0.35, 1.0), rng.uniform(0.35, 0.7)
    outline = [Polygon(_ellipse(1, slant), 1), Polygon(_ellipse(0.85, 0.85 * slant), 2)]
    outline.append(Polygon(_ellipse(hole, hole * slant), HOLE if rng.random() < 0.6 else 3))
    if slant < 0.7:
        # Its thickness shows below.
        outline.insert(0, Polygon(_moved(_ellipse(1, slant), 0, rng.uniform(0.1, 0.4)), 3))
    return outline


def debris(rng: np.random.Generator) -> Outline:
    """Planks, branches or pipes: long bent pieces, one or several crossing."""
    outline: Outline = []
    for number in range(int(rng.integers(1, 5))):
        count = int(rng.integers(2, 5))
        spine = np.stack([np.linspace(-1, 1, count), rng.normal(0, 0.12, count)], axis=1) * rng.uniform(0.6, 1.0)
        spine = _turned(spine, rng.normal(0, 0.7)) + rng.normal(0, 0.15, 2)
        widths = rng.uniform(0.1, 0.32, 2)
        outline.append(Polygon(_limb([tuple(point) for point in spine], *widths), 1 + number % 3))
    return outline


def cart(rng: np.random.Generator) -> Outline:
    """A barrow, trolley or pram: a load on wheels, with a handle."""
    width, height, wheel = rng.uniform(0.8, 1.5), rng.uniform(0.35, 0.9), rng.uniform(0.14, 0.3)
    slope = rng.uniform(-0.2, 0.3)
    load = np.array([(0, 0), (width, slope * 0.3), (width - abs(slope), height), (abs(slope) * 0.5, height)], float)
    grip = rng.choice([-1, 1])
    start = 0.0 if grip < 0 else width
    handle = [(start, height * 0.5), (start + grip * 0.2, 0.0), (start + grip * 0.45, rng.uniform(-0.5, 0.1))]
    outline = [Polygon(_limb(handle, 0.1, 0.08), 3), Polygon(load, 1)]
    if rng.random() < 0.5:
        outline.insert(0, Polygon(_moved(_lump(rng, 0.25) * (width * 0.42, height * 0.5), width / 2, 0), 2))
    for x in np.linspace(0.15, 0.85, int(rng.integers(1, 3)) + 1) * width:
        outline.append(Polygon(_moved(_ellipse(wheel, wheel), x, height + wheel * 0.5), 3))
        outline.append(Polygon(_moved(_ellipse(wheel * 0.4, wheel * 0.4), x, height + wheel * 0.5), 4))
    return outline


def furniture(rng: np.random.Generator) -> Outline:
    """A table, stool, chair or sofa: a slab on legs, with or without a back."""
    width, slab, leg = rng.uniform(0.7, 1.6), rng.uniform(0.1, 0.5), rng.uniform(0.15, 0.9)
    lean = rng.uniform(0, 0.3)
    outline: Outline = []
    for number, x in enumerate((0.08, 0.92, 0.25 + lean * 0.2, 0.75 + lean * 0.2)):
        length = leg * (1.0 if number < 2 else 0.75)
        foot = (x * width, slab + length)
        outline.append(Polygon(_limb([(x * width, slab * 0.5), foot], 0.14, 0.11), 3 if number < 2 else 2))
    if rng.random() < 0.6:
        back = rng.uniform(0.4, 1.0)
        outline.append(Polygon(np.array([(0, 0), (width * 0.95, 0), (width * 0.9, -back), (0.04, -back)]), 2))
    seat = np.array([(0, 0), (width, 0), (width, slab), (0, slab)], float)
    top = np.array([(0, 0), (width, 0), (width * (1 - lean * 0.3), -lean), (lean * 0.5, -lean)], float)
    return [*outline, Polygon(top, 4), Polygon(seat, 1)]


def composite(rng: np.random.Generator) -> Outline:
    """Two to four things of any kind glued together."""
    outline: Outline = []
    centre = np.zeros(2)
    for number in range(int(rng.integers(2, 5))):
        piece = SHAPES[str(rng.choice(_SINGLE))](rng)
        corners = np.concatenate([item.points for item in piece])
        low, high = corners.min(axis=0), corners.max(axis=0)
        scale = rng.uniform(0.5, 1.0) / float((high - low).max())
        turn = rng.uniform(-0.6, 0.6)
        for item in piece:
            points = _turned((item.points - (low + high) / 2) * scale, turn) + centre
            outline.append(Polygon(points, HOLE if item.part == HOLE else item.part + 4 * number))
        centre = centre + rng.uniform(-0.4, 0.4, 2)
    return outline


def _lump(rng: np.random.Generator, roughness: float) -> Points:
    """Return a closed curve about the origin of mean radius 1: a circle with random low harmonics."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    orders = np.arange(2, 8)
    sizes = rng.normal(0, roughness, len(orders)) / (orders - 1)
    phases = rng.uniform(0, 2 * np.pi, len(orders))
    radii = np.maximum(1 + (sizes[:, None] * np.cos(orders[:, None] * angles + phases[:, None])).sum(axis=0), 0.25)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)


def _ellipse(radius_x: float, radius_y: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.stack([np.cos(angles) * radius_x, np.sin(angles) * radius_y], axis=1)


def _limb(spine: Sequence[tuple[float, ...]], start_width: float, end_width: float) -> Points:
    """Return a tapered stroke along a line of points."""
    points = np.array(spine, float)
    along = np.gradient(points, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    half = np.linspace(start_width, end_width, len(points))[:, None] / 2
    return np.concatenate([points + across * half, (points - across * half)[::-1]])


def _moved(points: Points, x: float, y: float) -> Points:
    return np.asarray(points + np.array([x, y]), np.float64)


def _turned(points: Points, angle_rad: float) -> Points:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.asarray(points @ np.array([(cos, sin), (-sin, cos)]), np.float64)


SHAPES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "blob": blob,
    "polygon": polygon,
    "creature": creature,
    "box": box,
    "column": column,
    "ring": ring,
    "debris": debris,
    "cart": cart,
    "furniture": furniture,
    "composite": composite,
}
_SINGLE = [name for name in SHAPES if name != "composite"]
