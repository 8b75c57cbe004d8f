"""Add weather and light to real photographs: fog, haze, rain, snow, night, glare. Labels do not change.

Every effect takes an RGB image uint8 (H, W, 3), the row of the horizon in pixels (perhaps outside the image) and a
random generator for its strength. It returns a new image of the same shape. The depth of the scene is not known; it is
estimated from the rows, as on flat ground, and from smooth noise. A network learns from these effects to ignore
colours, contrast and lamps. They need not look real to a person.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import RgbImage
from anomseg_ros.scenes.textures import Rng, fractal_noise

Field = npt.NDArray[np.float32]

_COARSE = 4
"""Smooth fields and glows are computed for every fourth pixel, then enlarged."""

_NEAR = 0.12
"""Distance below the horizon, as a share of the height, at which the depth is half of the largest depth."""


def add_fog(image: RgbImage, horizon_px: float, rng: Rng) -> RgbImage:
    """Blend towards the air's colour by 1 - exp(-density * depth); depth falls from the horizon to the lower edge."""
    density = float(np.exp(rng.uniform(np.log(0.4), np.log(3.0))))
    patches = 0.75 + 0.5 * _noise(image, rng)
    share = 1.0 - np.exp(-density * _depth(image, horizon_px)[:, None] * patches)
    return _veiled(image, np.minimum(share, 0.97), _air_colour(rng, (150, 235)))


def add_haze(image: RgbImage, horizon_px: float, rng: Rng) -> RgbImage:
    """Add a bright veil over near and far objects: a steamed or dirty lens, drizzle, low sun on a windscreen."""
    strength = rng.uniform(0.15, 0.5)
    share = strength * (0.6 + 0.4 * _noise(image, rng)) * (0.8 + 0.2 * _depth(image, horizon_px)[:, None])
    return _veiled(image, share, _air_colour(rng, (160, 245)))


def add_rain(image: RgbImage, horizon_px: float, rng: Rng) -> RgbImage:
    """Add streaks, dull colours and a wet road, and to half of the images drops on the lens."""
    wet = _mirrored_ground(image, horizon_px, share=rng.uniform(0.1, 0.5))
    dull = _saturated(wet, rng.uniform(0.5, 0.9))
    share = rng.uniform(0.1, 0.4) * _depth(image, horizon_px)[:, None]
    dull = _veiled(dull, np.broadcast_to(share, image.shape[:2]), _air_colour(rng, (120, 190)))
    height, width = image.shape[:2]
    slant = rng.uniform(-0.35, 0.35)
    amount = rng.uniform(0.3, 1.0) * height * width
    fine = _segments(image, rng, round(amount / 250), (0.02, 0.06), slant, 1)
    near = _segments(image, rng, round(amount / 3000), (0.06, 0.16), slant, 1 + height // 400)
    near = np.asarray(cv2.GaussianBlur(near, (0, 0), 0.8), np.uint8)
    streaks = np.asarray(cv2.add(fine, near), np.uint8)
    fallen = _veiled(dull, streaks.astype(np.float32) * (rng.uniform(0.15, 0.4) / 255.0), (205, 210, 215))
    return _with_drops(fallen, rng) if rng.random() < 0.5 else fallen


def add_snow(image: RgbImage, horizon_px: float, rng: Rng) -> RgbImage:
    """Add flakes of three sizes to a pale, bright scene; half of the images have snow on the ground."""
    pale = _saturated(image, rng.uniform(0.4, 0.85))
    clear = 1.0 - rng.uniform(0.15, 0.6) * _depth(image, horizon_px)[:, None]
    if rng.random() < 0.5:
        clear = clear * (1.0 - _snow_cover(image, horizon_px, rng))
    pale = _veiled(pale, np.broadcast_to(1.0 - clear, image.shape[:2]), _air_colour(rng, (200, 240)))
    height, width = image.shape[:2]
    slant, amount = rng.uniform(-1.0, 1.0), rng.uniform(0.3, 1.0) * height * width
    flakes = np.zeros((height, width), np.uint8)
    for area_px, length, thickness, blur in ((120, 0.008, 1, 0.4), (700, 0.012, 2, 0.7), (6000, 0.03, 5, 2.2)):
        thickness = max(1, round(thickness * height / 256))
        drawn = _segments(image, rng, round(amount / area_px), (0.0, length), slant, thickness)
        flakes = np.asarray(cv2.max(flakes, cv2.GaussianBlur(drawn, (0, 0), blur * height / 256)), np.uint8)
    return _veiled(pale, flakes.astype(np.float32) * (rng.uniform(0.6, 0.95) / 255.0), (245, 247, 250))


def make_night(image: RgbImage, horizon_px: float, rng: Rng) -> RgbImage:
    """Darken the sky, light the road by the vehicle's lamps and the rest by street lamps, add sensor noise."""
    height, width = image.shape[:2]
    rows, columns = _coarse_grid(image)
    below = (rows - horizon_px) / height
    ambient = rng.uniform(0.22, 0.6)
    # Bright pixels in the upper part are mostly sky, which is darkest at night.
    light = ambient * np.where(below < 0, np.maximum(0.45, 1.0 + 1.5 * below), 1.0)
    reach, spread = rng.uniform(0.12, 0.35), rng.uniform(0.25, 0.6)
    side = (columns / width - rng.uniform(0.4, 0.6)) / (spread * (0.5 + np.maximum(below, 0.0)))
    cone = np.exp(-0.5 * side**2) * np.exp(-0.5 * ((below - reach) / (0.9 * reach)) ** 2)
    colour = _lamp_colour(rng)
    lamps = rng.uniform(0.2, 0.8) * cone[..., None] * np.array([1.0, 0.97, 0.9])
    day = light[..., None] * (0.5 * np.array(colour) / max(colour) + 0.5 * np.array([0.85, 0.95, 1.2]))
    dark = _dimmed_sky(image, horizon_px)
    dark = np.asarray(cv2.multiply(dark, _enlarged(day + lamps, image), dtype=cv2.CV_8U), np.uint8)
    glows = _glows(image, rng, int(rng.integers(0, 7)), (0.0, max(1.0, horizon_px)), colour)
    return add_grain(np.asarray(cv2.add(dark, glows), np.uint8), rng.uniform(2.0, 14.0), rng)


def add_glare(image: RgbImage, horizon_px: float, rng: Rng) -> RgbImage:
    """Add glare of the sun, or in dark images of headlamps: a core, a halo, a veil, a row of ghosts."""
    height, width = image.shape[:2]
    rows, columns = _coarse_grid(image)
    total = np.zeros((*rows.shape, 3), np.float32)
    if cv2.mean(image)[1] > 70 and rng.random() < 0.7:
        sun = rng.uniform(-0.05, 1.05) * width, rng.uniform(-0.3, 0.9) * max(0.25 * height, horizon_px)
        warm = np.array([255.0, rng.uniform(215, 250), rng.uniform(160, 240)], np.float32)
        total += _bloom(rows, columns, sun, rng.uniform(0.03, 0.1) * height)[..., None] * warm
        total += rng.uniform(0.03, 0.22) * warm
        total += _ghosts(rows, columns, sun, (width / 2, height / 2), rng) * warm
    else:
        for _ in range(int(rng.integers(1, 4))):
            x, y = rng.uniform(0.05, 0.95) * width, horizon_px + rng.uniform(0.0, 0.15) * height
            radius, gap = rng.uniform(0.01, 0.04) * height, rng.uniform(1.0, 5.0)
            for lamp in ((x, y), (x + gap * radius, y)):
                total += _bloom(rows, columns, lamp, radius)[..., None] * np.array([255, 250, 235], np.float32)
        total += rng.uniform(0.0, 0.1) * 255.0
    # Screen blending adds light without the hard edge of a sum that is clipped at white.
    clear = _enlarged(1.0 - np.minimum(total, 255.0) / 255.0, image)
    return np.asarray(255 - cv2.multiply(255 - image, clear, dtype=cv2.CV_8U), np.uint8)


def add_grain(image: RgbImage, sigma: float, rng: Rng) -> RgbImage:
    """Add nearly normal noise, the sum of three uniform bytes; sigma: standard deviation in grey levels."""
    raw = np.frombuffer(rng.bytes(3 * image.size), np.uint8).reshape(3, *image.shape)
    total = np.asarray(cv2.add(cv2.add(raw[0], raw[1], dtype=cv2.CV_16S), raw[2], dtype=cv2.CV_16S), np.int16)
    # A uniform byte has the variance (256² - 1) / 12.
    step = sigma / float(np.sqrt(3 * (256**2 - 1) / 12))
    return np.asarray(cv2.addWeighted(image, 1.0, total, step, -382.5 * step, dtype=cv2.CV_8U), np.uint8)


def _depth(image: RgbImage, horizon_px: float) -> Field:
    """Return the depth per row, (H,) float32 in 0..1: 1 at the horizon, flat ground below, a little nearer above."""
    height = image.shape[0]
    below = (np.arange(height, dtype=np.float32) - horizon_px) / height
    ground = _NEAR / (np.maximum(below, 0) + _NEAR)
    return np.asarray(np.where(below >= 0, ground, np.maximum(0.5, 1.0 + 0.8 * below)), np.float32)


def _noise(image: RgbImage, rng: Rng) -> Field:
    height, width = (max(2, side // _COARSE) for side in image.shape[:2])
    return _enlarged(fractal_noise(rng, height, width, 2, 3), image)


def _coarse_grid(image: RgbImage) -> tuple[Field, Field]:
    """Return row and column, in the image's pixels, of every fourth pixel: float32 (h, w) each."""
    height, width = (max(1, side // _COARSE) for side in image.shape[:2])
    rows = (np.arange(height, dtype=np.float32) + 0.5) * (image.shape[0] / height)
    columns = (np.arange(width, dtype=np.float32) + 0.5) * (image.shape[1] / width)
    grid = np.meshgrid(rows, columns, indexing="ij")
    return grid[0], grid[1]


def _enlarged(coarse: npt.NDArray[np.floating], image: RgbImage) -> Field:
    size = image.shape[1], image.shape[0]
    return np.asarray(cv2.resize(coarse.astype(np.float32), size, interpolation=cv2.INTER_LINEAR), np.float32)


def _veiled(image: RgbImage, share: npt.NDArray[np.floating], colour: tuple[float, float, float]) -> RgbImage:
    """Blend towards a colour by a share (H, W) in 0..1."""
    veil = np.empty_like(image)
    veil[:] = np.asarray(colour, np.uint8)
    weight = np.ascontiguousarray(share, np.float32)
    return np.asarray(cv2.blendLinear(np.ascontiguousarray(image), veil, 1.0 - weight, weight), np.uint8)


def _air_colour(rng: Rng, level: tuple[float, float]) -> tuple[float, float, float]:
    """Return a grey between levels, a little blue or brown."""
    grey, warmth = rng.uniform(*level), rng.uniform(-0.05, 0.04)
    return min(255.0, grey * (1 + warmth)), grey, min(255.0, grey * (1 - warmth))


def _lamp_colour(rng: Rng) -> tuple[float, float, float]:
    """Return the colour of street lamps: from sodium orange to white."""
    white = rng.uniform(0.0, 1.0)
    return 255.0, 180.0 + 65.0 * white, 90.0 + 145.0 * white


def _saturated(image: RgbImage, factor: float) -> RgbImage:
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(image, factor, grey, 1.0 - factor, 0.0), np.uint8)


def _segments(
    image: RgbImage, rng: Rng, count: int, length: tuple[float, float], slant: float, thickness_px: int
) -> npt.NDArray[np.uint8]:
    """Draw `count` falling lines, uint8 (H, W), 255 on black; length: shares of the height; slant: dx / dy."""
    height, width = image.shape[:2]
    start = rng.random((count, 2)) * (width, height)
    fall = rng.uniform(*length, count) * height
    slants = slant + rng.normal(0.0, 0.05, count)
    ends = start + np.stack([fall * slants, fall], -1)
    drawn = np.zeros((height, width), np.uint8)
    # Four fractional bits: lines start and end between pixels.
    lines = np.rint(np.stack([start, ends], 1) * 16).astype(np.int32)
    cv2.polylines(drawn, list(lines), False, 255, thickness_px, cv2.LINE_AA, 4)
    return drawn


def _mirrored_ground(image: RgbImage, horizon_px: float, share: float) -> RgbImage:
    """Return the image with everything above the horizon mirrored in the ground, blurred downwards."""
    height = image.shape[0]
    top = int(np.clip(horizon_px, 0, height))
    rows = min(top, height - top)
    if rows < 4:
        return image
    mirrored = cv2.blur(np.ascontiguousarray(image[top - rows : top][::-1]), (3, max(3, height // 12) | 1))
    wet: RgbImage = image.copy()
    fading = (share * np.linspace(1.0, 0.0, rows, dtype=np.float32))[:, None].repeat(image.shape[1], 1)
    wet[top : top + rows] = cv2.blendLinear(image[top : top + rows], np.asarray(mirrored), 1.0 - fading, fading)
    return wet


def _snow_cover(image: RgbImage, horizon_px: float, rng: Rng) -> Field:
    """Return the share of snow on the ground, (H, W) float32 in 0..1, in patches with ragged edges."""
    rows = np.arange(image.shape[0], dtype=np.float32)[:, None]
    below = np.clip((rows - horizon_px) / (0.15 * image.shape[0]), 0, 1)
    height, width = (max(8, side // _COARSE) for side in image.shape[:2])
    noise = fractal_noise(rng, height, width, 3, 5) - rng.uniform(0.25, 0.6)
    cover = np.clip(rng.uniform(2.0, 5.0) * noise, 0, 1) * rng.uniform(0.3, 0.75)
    return np.asarray(below * _enlarged(cover, image), np.float32)


def _with_drops(image: RgbImage, rng: Rng) -> RgbImage:
    """Blur the image within round drops on the lens, each a little brighter."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    for x, y, size in rng.random((int(rng.integers(4, 22)), 3)):
        radius = height * (0.01 + 0.05 * size**2)
        centre = round(x * width * 16), round(y * height * 16)
        cv2.circle(mask, centre, round(radius * 16), 255, -1, cv2.LINE_AA, 4)
    weight = cv2.GaussianBlur(mask, (0, 0), max(0.8, 0.006 * height)).astype(np.float32) * (0.9 / 255.0)
    small = cv2.resize(image, (max(1, width // 8), max(1, height // 8)), interpolation=cv2.INTER_AREA)
    blurred = cv2.resize(cv2.GaussianBlur(small, (0, 0), 1.0), (width, height), interpolation=cv2.INTER_LINEAR)
    bright = np.asarray(cv2.convertScaleAbs(blurred, alpha=1.05, beta=8), np.uint8)
    return np.asarray(cv2.blendLinear(image, bright, 1.0 - weight, weight), np.uint8)


def _dimmed_sky(image: RgbImage, horizon_px: float) -> RgbImage:
    """Darken bright pixels above the horizon, nearly white ones most."""
    top = int(np.clip(round(horizon_px), 0, image.shape[0]))
    level = np.arange(256, dtype=np.float32) / 255.0
    table = np.rint(255.0 * level * (1.0 - 0.75 / (1.0 + np.exp(-(level - 0.62) * 14.0)))).astype(np.uint8)
    dimmed: RgbImage = image.copy()
    if top:
        dimmed[:top] = cv2.LUT(np.ascontiguousarray(image[:top]), table)
    return dimmed


def _bloom(rows: Field, columns: Field, centre: tuple[float, float], radius_px: float) -> Field:
    """Return (h, w) float32: a core of more than 1 within the radius, and a wide, faint halo around it."""
    squared = ((columns - centre[0]) ** 2 + (rows - centre[1]) ** 2) / radius_px**2
    return np.asarray(1.4 * np.exp(-0.7 * squared) + 0.35 / (1.0 + 0.15 * squared), np.float32)


def _ghosts(
    rows: Field, columns: Field, sun: tuple[float, float], middle: tuple[float, float], rng: Rng
) -> npt.NDArray[np.float32]:
    """Return (h, w, 3) float32: faint coloured discs on the line from the sun through the image's middle."""
    total = np.zeros((*rows.shape, 3), np.float32)
    for _ in range(int(rng.integers(0, 5))):
        along, radius = rng.uniform(0.4, 2.2), rng.uniform(0.02, 0.09) * 2 * middle[1]
        x, y = (s + along * (m - s) for s, m in zip(sun, middle, strict=True))
        disc = np.clip(1.5 - np.hypot(columns - x, rows - y) / radius, 0, 0.5)
        total += disc[..., None] * rng.uniform(0.02, 0.25, 3)
    return total


def _glows(
    image: RgbImage, rng: Rng, count: int, between_rows: tuple[float, float], colour: tuple[float, float, float]
) -> RgbImage:
    """Return lamps with halos on black, uint8 (H, W, 3); one in five is red, like rear lamps and signals."""
    height, width = image.shape[:2]
    rows, columns = _coarse_grid(image)
    total = np.zeros((*rows.shape, 3), np.float32)
    for _ in range(count):
        centre = rng.uniform(0, width), rng.uniform(*between_rows)
        own = (255.0, 60.0, 40.0) if rng.random() < 0.2 else colour
        total += _bloom(rows, columns, centre, rng.uniform(0.005, 0.018) * height)[..., None] * np.array(own)
    return np.asarray(np.minimum(_enlarged(total, image), 255.0), np.uint8)
