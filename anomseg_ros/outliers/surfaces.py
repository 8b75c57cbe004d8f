"""Surfaces of procedural outliers: colours, patterns and light, computed as float32 (H, W, 3) RGB in 0 to 255."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import RgbImage
from anomseg_ros.outliers.shapes import Parts

Floats = npt.NDArray[np.float32]
Size = tuple[int, int]
"""Height and width in pixels."""


def paint(rng: np.random.Generator, parts: Parts, frames: Sequence[RgbImage], from_frame: bool) -> RgbImage:
    """Return a lit, textured surface of an outline's size, uint8 RGB, which also covers the pixels outside it.

    Args:
        rng: random numbers.
        parts: the outline.
        frames: frames for textures.
        from_frame: whether the texture must be a part of a frame, if there is any.
    """
    surface = _surface(rng, parts.shape, frames, from_frame)
    if not from_frame and rng.random() < 0.4:
        surface = _with_second_surface(rng, surface, parts, frames)
    surface = _tint_parts(rng, surface, parts)
    surface *= _light(rng, parts)[:, :, None]
    return _as_seen_by_a_camera(rng, surface)


def _surface(rng: np.random.Generator, size: tuple[int, ...], frames: Sequence[RgbImage], from_frame: bool) -> Floats:
    height, width = size
    if frames and (from_frame or rng.random() < 0.15):
        return _piece_of_frame(rng, (height, width), frames[int(rng.integers(len(frames)))])
    return _PATTERN_DRAW[int(rng.integers(len(_PATTERN_DRAW)))](rng, (height, width))


def _piece_of_frame(rng: np.random.Generator, size: Size, frame: RgbImage) -> Floats:
    """Return a window of a frame, turned and recoloured. Unchanged road on road would be no outlier."""
    height, width = frame.shape[:2]
    zoom = np.exp(rng.uniform(np.log(0.5), np.log(2.0)))
    rows, columns = (int(np.clip(side / zoom, 8, whole)) for side, whole in zip(size, (height, width), strict=True))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    window = np.rot90(frame[top : top + rows, left : left + columns], int(rng.integers(1, 4)))
    resized = cv2.resize(np.ascontiguousarray(window), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    mixed = resized[:, :, rng.permutation(3)].astype(np.float32)
    mean = mixed.mean()
    contrast = rng.uniform(0.9, 1.6)
    return np.asarray(((mixed - mean) * contrast + mean) * rng.uniform(0.8, 1.25, 3).astype(np.float32), np.float32)


def _plain(rng: np.random.Generator, size: Size) -> Floats:
    """One colour, slightly uneven."""
    return _uneven(rng, size, rng.uniform(0.03, 0.12)) * _color(rng)


def _gradient(rng: np.random.Generator, size: Size) -> Floats:
    """One colour that turns into another along a direction."""
    return _mix(_ramp(rng, size, 1.0), *_two_colors(rng))


def _stripes(rng: np.random.Generator, size: Size) -> Floats:
    """Stripes, straight or wavy, hard or soft."""
    waves = _ramp(rng, size, rng.uniform(2, 9)) + _noise(rng, size, (2, 3)) * np.float32(rng.uniform(0, 0.5))
    level = np.clip(np.sin(waves * 2 * np.pi) * np.float32(rng.uniform(0.8, 6)) + 0.5, 0, 1)
    return _mix(level, *_two_colors(rng))


def _patches(rng: np.random.Generator, size: Size) -> Floats:
    """Areas of several colours, as on a cow, a quilt or a heap of rubbish."""
    count = int(rng.integers(2, 6))
    cells = int(rng.integers(2, 7))
    fields = rng.random((cells, cells, count), np.float32)
    # The strongest of several upsampled fields gives patches with smooth borders.
    smooth = cv2.resize(fields, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    first = _color(rng)
    likeness = np.float32(rng.uniform(0, 0.7))
    colors = np.stack([first * likeness + _color(rng) * (1 - likeness) for _ in range(count)])
    return np.asarray(colors[smooth.argmax(axis=2)] * _uneven(rng, size, 0.08), np.float32)


def _grainy(rng: np.random.Generator, size: Size) -> Floats:
    """Noise of several scales: stone, soil, rust, foliage."""
    level = np.clip(_noise(rng, size, (3, 7, 16, 40)) * np.float32(rng.uniform(0.2, 0.6)) + 0.5, 0, 1)
    return _mix(level, *_two_colors(rng))


def _fur(rng: np.random.Generator, size: Size) -> Floats:
    """Streaks along one direction: fur, straw, wood grain."""
    long, fine = int(rng.integers(2, 6)), int(rng.integers(25, 60))
    cells = (long, fine) if rng.random() < 0.5 else (fine, long)
    streaks = cv2.resize(rng.standard_normal(cells, np.float32), (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return _mix(np.clip(streaks * np.float32(rng.uniform(0.1, 0.35)) + 0.5, 0, 1), *_two_colors(rng))


def _checks(rng: np.random.Generator, size: Size) -> Floats:
    """A grid of two colours: bricks, cloth, panels, meshes."""
    across, down = _ramp(rng, size, rng.uniform(1.5, 6), 0.0), _ramp(rng, size, rng.uniform(1.5, 6), np.pi / 2)
    share = rng.uniform(0.1, 0.6)
    level = ((across % 1 < share) ^ (down % 1 < share)).astype(np.float32)
    return _mix(level, *_two_colors(rng)) * _uneven(rng, size, 0.08)


PATTERNS: dict[str, Callable[[np.random.Generator, Size], Floats]] = {
    "plain": _plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "patches": _patches,
    "grainy": _grainy,
    "fur": _fur,
    "checks": _checks,
}
_FREQUENT = (_plain, _plain, _gradient, _grainy, _grainy, _fur, _fur)
_PATTERN_DRAW = (*PATTERNS.values(), *_FREQUENT)
"""Each pattern once, and the most common ones again."""


def _with_second_surface(rng: np.random.Generator, surface: Floats, parts: Parts, frames: Sequence[RgbImage]) -> Floats:
    """Give some parts another kind of surface."""
    other = _surface(rng, parts.shape, frames, False)
    chosen = cv2.LUT(parts, rng.integers(0, 2, 256).astype(np.uint8))
    return np.where(np.asarray(chosen)[:, :, None] > 0, other, surface)


def _tint_parts(rng: np.random.Generator, surface: Floats, parts: Parts) -> Floats:
    """Give each part another brightness and a slightly different colour."""
    gains = rng.uniform(0.5, 1.15, (256, 1)) * rng.uniform(0.88, 1.12, (256, 3))
    gains[1] = 1.0
    return np.asarray(surface * gains.astype(np.float32)[parts], np.float32)


def _light(rng: np.random.Generator, parts: Parts) -> Floats:
    """Return the light on each pixel, about 1: brighter towards the lamp, darker at the rim and below."""
    height, width = parts.shape
    solid = (parts > 0).astype(np.float32)
    # The slope of a blurred mask serves as the slope of the surface, so that flat polygons look solid. The blur is as
    # wide as the object, so it is computed at a low resolution.
    step = max(1, min(height, width) // 24)
    small = cv2.resize(solid, (max(4, width // step), max(4, height // step)), interpolation=cv2.INTER_AREA)
    hill = cv2.GaussianBlur(small, (0, 0), max(1.0, min(small.shape) / 7), borderType=cv2.BORDER_CONSTANT)
    slope_y, slope_x = np.gradient(hill)
    angle = rng.normal(-np.pi / 2, 0.7)  # mostly from above
    lit = (slope_x * np.cos(angle) + slope_y * np.sin(angle)) * min(small.shape)
    down = np.linspace(rng.uniform(0, 0.2), rng.uniform(-0.35, 0), small.shape[0])[:, None]
    light = 1 - rng.uniform(0.05, 0.3) * lit + down - rng.uniform(0, 0.4) * (1 - np.clip(hill * 1.3, 0, 1))
    resized = cv2.resize(light.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(resized, 0.15, 1.6), np.float32)


def _as_seen_by_a_camera(rng: np.random.Generator, surface: Floats) -> RgbImage:
    """Return the surface as pixels, slightly out of focus and with grain."""
    sigma_px = rng.uniform(0.0, 1.2)
    if sigma_px > 0.3:
        surface = np.asarray(cv2.GaussianBlur(surface, (0, 0), sigma_px), np.float32)
    grain = rng.standard_normal(surface.shape[:2], np.float32) * np.float32(rng.uniform(0, 5))
    return np.asarray(np.clip(surface + grain[:, :, None], 0, 255), np.uint8)


def _color(rng: np.random.Generator) -> Floats:
    """Return one colour: mostly a dull one (earth, wood, fur, metal), sometimes paint or plastic."""
    kind = rng.random()
    if kind < 0.13:
        hue, saturation, value = rng.uniform(0, 360), rng.uniform(0.5, 1.0), rng.uniform(0.35, 0.95)
    elif kind < 0.55:
        hue, saturation, value = rng.uniform(10, 50), rng.uniform(0.15, 0.65), rng.uniform(0.2, 0.85)
    elif kind < 0.75:
        hue, saturation, value = rng.uniform(0, 360), rng.uniform(0, 0.1), rng.choice([0.1, 0.9]) + rng.normal(0, 0.05)
    else:
        hue, saturation, value = rng.uniform(0, 360), rng.uniform(0, 0.5), rng.uniform(0.15, 0.95)
    pixel = np.array([[[hue, saturation, np.clip(value, 0.04, 1.0)]]], np.float32)
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255, np.float32)


def _two_colors(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return two colours, which are mostly similar."""
    first, second = _color(rng), _color(rng)
    likeness = rng.uniform(0, 0.3) if rng.random() < 0.3 else rng.uniform(0.4, 0.85)
    shade = np.float32(rng.uniform(0.55, 1.0))
    return first, (second + (first - second) * np.float32(likeness)) * shade


def _mix(level: Floats, first: Floats, second: Floats) -> Floats:
    """Return colours between two; level: float32 (H, W), 0 for the first and 1 for the second."""
    return np.asarray(first + level[:, :, None] * (second - first), np.float32)


def _ramp(rng: np.random.Generator, size: Size, periods: float, angle: float | None = None) -> Floats:
    """Return a plane that rises by `periods` over the image's longer side, in a random direction or a given one."""
    turn = rng.uniform(0, 2 * np.pi) if angle is None else angle + rng.normal(0, 0.15)
    height, width = size
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    rise = np.float32(periods / max(size))
    plane = (rows * np.float32(np.sin(turn)) + columns * np.float32(np.cos(turn))) * rise
    return np.asarray(plane - plane.min(), np.float32)


def _noise(rng: np.random.Generator, size: Size, cells: tuple[int, ...]) -> Floats:
    """Return smooth noise, about standard normal: the sum of random grids of several sizes."""
    total = np.zeros(size, np.float32)
    for count in cells:
        grid = rng.standard_normal((count, count), np.float32)
        total += cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(total / np.float32(np.sqrt(len(cells)) * 0.7), np.float32)


def _uneven(rng: np.random.Generator, size: Size, strength: float) -> Floats:
    """Return (H, W, 1) gains about 1."""
    return np.asarray(1 + _noise(rng, size, (4, 12)) * np.float32(strength), np.float32)[:, :, None]
