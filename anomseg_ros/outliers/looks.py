"""The looks of pasted objects: colours, sharpness, noise and light are moved towards those of the frame.

A network finds pasted objects by whatever they have in common. Differences between the cameras of object and frame
(sharpness, noise, colours, traces of compression) must not be it. Matching them fully would give objects another common
trait, so the amounts are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import RgbImage
from anomseg_ros.outliers.paste_config import PasteConfig

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_LARGEST_BLUR_PX = 3.0
_SMALLEST_BLUR_PX = 0.3
_JPEG_QUALITY = (30, 90)
_CONTRAST_FACTOR = (0.5, 1.2)
_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
"""Immerkaer, "Fast Noise Variance Estimation" (CVIU 1996), equation 3: insensitive to steps and slopes."""


@dataclass(frozen=True, eq=False)
class FrameLooks:
    """Measures of a frame. edge_px: standard deviation of the blur of edges. noise: standard deviation of the noise in
    grey levels. contrast: standard deviation per channel, float (3,)."""

    edge_px: float
    noise: float
    contrast: npt.NDArray[np.float64]


def measure(image: RgbImage) -> FrameLooks:
    """Measure a frame, uint8 (H, W, 3)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    _, contrast = cv2.meanStdDev(image)
    return FrameLooks(
        edge_width_px(np.asarray(grey, np.uint8)),
        noise_level(np.asarray(grey, np.uint8)),
        contrast[:, 0].astype(np.float64),
    )


def edge_width_px(grey: Bytes, mask: Bytes | None = None) -> float:
    """Return the standard deviation of the blur of a picture's edges; 0 if it has none.

    grey: uint8 (H, W). mask: uint8 (H, W), not 0 where pixels count. For a step blurred by a Gaussian of standard
    deviation s, the first derivative has 2 s^2 times the energy of the second.
    """
    slope = sum(cv2.norm(cv2.Sobel(grey, cv2.CV_16S, *axis, ksize=3), cv2.NORM_L2, mask) ** 2 for axis in _AXES)
    bend = sum(cv2.norm(cv2.Sobel(grey, cv2.CV_16S, *axis, ksize=3), cv2.NORM_L2, mask) ** 2 for axis in _SECOND)
    count = grey.size if mask is None else cv2.countNonZero(mask)
    # cv2.Sobel gives 8 times the first derivative and 4 times the second.
    slope, bend = slope / 64, bend / 16
    return float(np.sqrt(slope / (2 * bend))) if slope > count and bend > 0 else 0.0


_AXES, _SECOND = ((1, 0), (0, 1)), ((2, 0), (0, 2))


def noise_level(grey: Bytes, mask: Bytes | None = None) -> float:
    """Return the standard deviation of a picture's noise in grey levels (Immerkaer 1996). Arguments: edge_width_px."""
    count = grey.size if mask is None else cv2.countNonZero(mask)
    total = cv2.norm(cv2.filter2D(grey, cv2.CV_16S, _NOISE_KERNEL), cv2.NORM_L1, mask)
    return float(np.sqrt(np.pi / 2) / 6 * total / max(count, 1))


def matched(
    image: RgbImage, alpha: Bytes, below: RgbImage, frame: FrameLooks, config: PasteConfig, rng: np.random.Generator
) -> Floats:
    """Return an object's colours for blending, float32 (h, w, 3) in 0 to 255.

    Args:
        image: uint8 (h, w, 3), the object's colours continued beyond its mask.
        alpha: uint8 (h, w).
        below: uint8 (h, w, 3), the frame at the object's place.
        frame: measures of the whole frame.
        config: amounts.
        rng: random numbers.
    """
    solid = (alpha >= 128).astype(np.uint8)
    if rng.random() < config.jpeg_share:
        image = _compressed(image, int(rng.integers(*_JPEG_QUALITY)))
    amounts = [float(rng.uniform(*limits)) for limits in (config.blur_match, config.color_match, config.noise_match)]
    blur, color, noise = amounts
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    if blur > 0:
        image = _softened(image, blur * frame.edge_px, edge_width_px(grey, solid))
    lit = _colored(image, solid, below, frame, color)
    if config.lighting > 0:
        lit *= _gradient(solid.shape, config.lighting, rng)[:, :, None]
    if noise > 0:
        missing = frame.noise**2 - (0.0 if blur > 0 else noise_level(grey, solid) ** 2)
        lit += (noise * np.sqrt(max(missing, 0.0))) * rng.standard_normal((*solid.shape, 1), np.float32)
    return np.asarray(np.clip(lit, 0, 255, out=lit), np.float32)


def _compressed(image: RgbImage, quality: int) -> RgbImage:
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8) if done else image


def _softened(image: RgbImage, wanted_px: float, edge_px: float) -> RgbImage:
    """Return an object whose edges are at least as soft as wanted."""
    sigma_px = min(np.sqrt(max(wanted_px**2 - edge_px**2, 0.0)), _LARGEST_BLUR_PX) if edge_px > 0 else 0.0
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), np.uint8) if sigma_px > _SMALLEST_BLUR_PX else image


def _colored(image: RgbImage, solid: Bytes, below: RgbImage, frame: FrameLooks, amount: float) -> Floats:
    """Return an object; each channel's mean is moved to that of the place, its contrast to that of the frame."""
    lit = image.astype(np.float32)
    if amount == 0:
        return lit
    mean, spread = (values[:, 0] for values in cv2.meanStdDev(image, mask=solid))
    place = np.array(cv2.mean(np.ascontiguousarray(below))[:3])
    contrast = np.clip(frame.contrast / np.maximum(spread, 1.0), *_CONTRAST_FACTOR)
    factor = 1 - amount + amount * contrast
    offset = mean + amount * (place - mean) - factor * mean
    lit *= factor.astype(np.float32)
    lit += offset.astype(np.float32)
    return lit


def _gradient(size_px: tuple[int, ...], largest: float, rng: np.random.Generator) -> Floats:
    """Return float32 (h, w) about 1 that rises evenly in one direction."""
    angle, change = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, largest))
    rows, columns = (np.linspace(-1, 1, length, dtype=np.float32) for length in size_px)
    ramp = np.float32(np.sin(angle)) * rows[:, None] + np.float32(np.cos(angle)) * columns[None, :]
    return np.asarray(1 + np.float32(change / np.sqrt(2)) * ramp, np.float32)
