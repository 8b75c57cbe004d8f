"""Procedural textures, uint8 RGB or RGBA: noise, patterns, facades, foliage."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Color = tuple[float, float, float]
Rng = np.random.Generator


@dataclass(frozen=True)
class Texture:
    """An image (h, w, 3 or 4) uint8 and smaller copies, each of half the size, so that far surfaces do not flicker."""

    levels: tuple[Image, ...]

    def level_for(self, height_px: float) -> Image:
        """Return the smallest level that is at least `height_px` high."""
        chosen = self.levels[0]
        for level in self.levels[1:]:
            if level.shape[0] < height_px:
                break
            chosen = level
        return chosen


def make_texture(image: Image) -> Texture:
    """Return the texture of an image."""
    levels = [np.ascontiguousarray(image)]
    while min(levels[-1].shape[:2]) >= 8:
        height, width = levels[-1].shape[:2]
        half = cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        levels.append(np.asarray(half, np.uint8))
    return Texture(tuple(levels))


def fractal_noise(rng: Rng, height_px: int, width_px: int, coarsest: int, octaves: int) -> npt.NDArray[np.float32]:
    """Return seamless noise (height, width) float32 in 0..1. coarsest: cells along the height."""
    total = np.zeros((height_px, width_px), np.float32)
    for octave in range(octaves):
        rows = coarsest * 2**octave
        columns = max(1, round(rows * width_px / height_px))
        if rows > height_px or columns > width_px:
            break
        cells = np.pad(rng.random((rows, columns), np.float32), 2, mode="wrap")
        pad_y, pad_x = 2 * height_px // rows, 2 * width_px // columns
        size = (width_px + 2 * pad_x, height_px + 2 * pad_y)
        grown = cv2.resize(cells, size, interpolation=cv2.INTER_CUBIC)
        total += grown[pad_y : pad_y + height_px, pad_x : pad_x + width_px] * 0.55**octave
    low, high = float(total.min()), float(total.max())
    return np.asarray((total - low) / max(high - low, 1e-6), np.float32)


def shaded_noise(rng: Rng, height_px: int, width_px: int, color: Color, amount: float, coarsest: int = 4) -> Image:
    """Return an image (h, w, 3) of one colour whose brightness varies by `amount`, 0..1."""
    noise = fractal_noise(rng, height_px, width_px, coarsest, 5)
    gain = 1.0 + amount * (noise - 0.5) * 2.0
    return _to_image(gain[..., None] * np.asarray(color, np.float32))


def _to_image(values: npt.NDArray[np.floating]) -> Image:
    return np.asarray(np.clip(values, 0, 255), np.uint8)


Range = tuple[float, float]


def random_color(rng: Rng, saturation: Range = (0.1, 1.0), value: Range = (0.2, 0.95)) -> Color:
    """Return an RGB colour (0..255) of any hue."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]], np.float32)
    red, green, blue = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255.0
    return float(red), float(green), float(blue)


def pattern(rng: Rng, size_px: int = 64) -> Image:
    """Return a (size, size, 3) pattern of a random family: stripes, checks, dots, rings, mottle, patches or print."""
    first, second = np.asarray(random_color(rng), np.float32), np.asarray(random_color(rng), np.float32)
    mask = _pattern_mask(rng, size_px, int(rng.integers(7)))[..., None]
    mottle = fractal_noise(rng, size_px, size_px, 4, 4)[..., None]
    return _to_image((first * (1 - mask) + second * mask) * (0.75 + 0.5 * mottle))


def _pattern_mask(rng: Rng, size: int, family: int) -> npt.NDArray[np.float32]:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    period = float(rng.uniform(size / 12, size / 2.5))
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    if family == 0:
        mask = along % period < period * rng.uniform(0.3, 0.7)
    elif family == 1:
        mask = (along % period < period / 2) ^ (across % period < period / 2)
    elif family == 2:
        mask = np.hypot(along % period - period / 2, across % period - period / 2) < period * 0.3
    elif family == 3:
        mask = np.hypot(x - size / 2, y - size / 2) % period < period / 2
    elif family == 4:
        return fractal_noise(rng, size, size, int(rng.integers(2, 12)), 4)
    elif family == 5:
        mask = fractal_noise(rng, size, size, int(rng.integers(2, 8)), 2) > 0.5
    else:
        mask = rng.random((8, 8)) > 0.6
        mask = np.asarray(cv2.resize(mask.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)) > 0
    return np.asarray(mask, np.float32)


def brick(rng: Rng, length_m: float, height_m: float) -> Image:
    """Return a wall of bricks or blocks, 24 pixels a metre."""
    height, width = max(8, int(height_m * 24)), max(8, int(length_m * 24))
    colors = [(150, 92, 72), (165, 158, 148), (128, 116, 104), (186, 172, 148)]
    color = np.asarray(colors[int(rng.integers(4))], np.float32)
    image = shaded_noise(rng, height, width, tuple(color), 0.18).astype(np.float32)
    course = int(rng.integers(4, 10))
    for row, top in enumerate(range(0, height, course)):
        image[top] *= 0.72
        image[top : top + course, (row % 2) * course :: course * 2] *= 0.78
    return _to_image(image)


def slats(rng: Rng, length_m: float, height_m: float) -> Image:
    """Return an RGBA fence, 24 pixels a metre: upright slats or bars and two rails, transparent between them."""
    height, width = max(8, int(height_m * 24)), max(8, int(length_m * 24))
    color = [(132, 98, 66), (205, 204, 198), (72, 78, 76), (104, 118, 92)][int(rng.integers(4))]
    image = np.dstack([shaded_noise(rng, height, width, color, 0.15), np.zeros((height, width), np.uint8)])
    step, share = int(rng.integers(3, 7)), rng.uniform(0.4, 0.9)
    solid = np.zeros((height, width), bool)
    solid[:, np.arange(width) % step < max(1, round(step * share))] = True
    rail = max(1, height // 14)
    for top in (height // 6, height - height // 4):
        solid[top : top + rail] = True
    image[..., 3] = np.where(solid, 255, 0)
    return np.asarray(image, np.uint8)


def roof_tiles(rng: Rng) -> Image:
    """Return a (96, 96, 3) roof surface."""
    color = [(146, 74, 56), (92, 84, 82), (118, 66, 54), (74, 78, 86)][int(rng.integers(4))]
    image = shaded_noise(rng, 96, 96, color, 0.2).astype(np.float32)
    image[::6] *= 0.7
    image[:, ::8] *= 0.88
    return _to_image(image)


def facade(rng: Rng, length_m: float, height_m: float, shop: bool) -> Image:
    """Return a house front, 14 pixels a metre: plaster, brick or glass, rows of windows, door or shop front below."""
    height, width = max(16, int(height_m * 14)), max(16, int(length_m * 14))
    colors = [(196, 184, 160), (172, 146, 118), (150, 100, 82), (168, 168, 166), (206, 198, 184)]
    colors += [(128, 130, 132), (182, 152, 128), (140, 120, 100), (214, 190, 150), (150, 164, 160)]
    color = np.asarray(colors[int(rng.integers(len(colors)))], np.float32) * rng.uniform(0.75, 1.08)
    image = shaded_noise(rng, height, width, tuple(color), 0.14)
    floors = max(1, round(height_m / rng.uniform(2.9, 3.5)))
    bays = max(1, round(length_m / rng.uniform(1.9, 3.4)))
    _draw_windows(rng, image, floors, bays, shop)
    cv2.rectangle(image, (0, 0), (width - 1, max(2, height // 40)), tuple(float(c) * 0.7 for c in color), -1)
    return image


def _draw_windows(rng: Rng, image: Image, floors: int, bays: int, shop: bool) -> None:
    height, width = image.shape[:2]
    cell_h, cell_w = height / floors, width / bays
    share_w, share_h = rng.uniform(0.4, 0.8), rng.uniform(0.45, 0.7)
    grey = float(rng.uniform(60, 235))
    frame = (grey, grey, grey)
    for floor in range(floors):
        ground = floor == floors - 1
        for bay in range(bays):
            left, top = (bay + 0.5 - share_w / 2) * cell_w, (floor + 0.62 - share_h / 2) * cell_h
            right, bottom = left + share_w * cell_w, top + share_h * cell_h
            if ground and shop:
                left, right = (bay + 0.06) * cell_w, (bay + 0.94) * cell_w
                top, bottom = (floor + 0.3) * cell_h, height - 2
            elif ground and bay == bays // 2:
                left, right, bottom = (bay + 0.3) * cell_w, (bay + 0.7) * cell_w, height - 1
            _draw_window(rng, image, (int(left), int(top), int(right), int(bottom)), frame)
    if shop:
        band = tuple(float(c) for c in random_color(rng, (0.3, 0.9), (0.3, 0.8)))
        top = int((floors - 1 + 0.1) * cell_h)
        cv2.rectangle(image, (0, top), (width - 1, int(top + 0.18 * cell_h)), band, -1)


def _draw_window(rng: Rng, image: Image, box: tuple[int, int, int, int], frame: Color) -> None:
    left, top, right, bottom = box
    shade = rng.uniform(35, 110)
    glass = (shade * 0.85, shade * 0.95, shade * 1.1)
    if rng.random() < 0.15:
        glass = (190.0, 182.0, 160.0)
    cv2.rectangle(image, (left - 1, top - 1), (right + 1, bottom + 1), frame, -1)
    cv2.rectangle(image, (left, top), (right, bottom), glass, -1)
    if right - left > 6:
        middle = (left + right) // 2
        cv2.line(image, (middle, top), (middle, bottom), frame, 1)
    glint = tuple(min(255.0, c * 1.5) for c in glass)
    cv2.line(image, (left + 1, bottom - 1), (right - 1, top + 1), glint, 1)


def crown(rng: Rng, size_px: int, bush: bool) -> Image:
    """Return an (size, size, 4) RGBA tree crown or bush: leaf clumps, darker below and inside, ragged outline."""
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32) / size_px
    reach = np.full((size_px, size_px), -1.0, np.float32)
    for _ in range(int(rng.integers(9, 16))):
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.27)
        center_x, center_y = 0.5 + radius * np.cos(angle), 0.5 + radius * np.sin(angle)
        reach = np.maximum(reach, 1 - np.hypot(x - center_x, y - center_y) / rng.uniform(0.13, 0.22))
    if bush:
        reach = np.maximum(reach, np.where((y > 0.55) & (np.abs(x - 0.5) < 0.42), 0.3, -1.0))
    fine = fractal_noise(rng, size_px, size_px, 16, 3)
    coarse = fractal_noise(rng, size_px, size_px, 6, 3)
    alpha = np.clip((reach + (fine - 0.55) * 0.75) * 7.0, 0, 1)
    base = np.asarray([(74, 98, 44), (92, 112, 48), (58, 86, 48), (112, 116, 52), (128, 104, 50)][int(rng.integers(5))])
    light = (0.45 + 0.75 * fine + 0.5 * (coarse - 0.5)) * (1.25 - 0.6 * y)
    color = _to_image(base * light[..., None])
    return np.asarray(np.dstack([color, (alpha * 255).astype(np.uint8)]), np.uint8)
