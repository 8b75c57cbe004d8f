"""Augmentation of training frames: geometry for image and labels together, then colours of the image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.labels import UNLABELLED
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.errors import ConfigError

PADDING = (124, 116, 104)
"""ImageNet's mean colour, put where a shrunken frame does not fill the crop."""


@dataclass(frozen=True)
class AugmentConfig:
    """What is drawn for each frame. Shares are probabilities; ranges are (low, high), drawn evenly unless said.

    scale: log-evenly. aspect: width over height, relative to the frame's own, log-evenly: bundles stretch frames of any
    shape to their input. grey: share of frames drawn towards grey, by a random amount. gain, gamma: of all channels.
    tint: largest relative gain of single channels. blur_sigma_px and noise_sigma (in grey levels) are drawn up to these
    values, each for a quarter of the frames.
    """

    crop_height_px: int
    crop_width_px: int
    scale: tuple[float, float] = (1.0, 1.0)
    aspect: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    gain: tuple[float, float] = (1.0, 1.0)
    gamma: tuple[float, float] = (1.0, 1.0)
    tint: float = 0.0
    grey: float = 0.0
    blur_sigma_px: float = 0.0
    noise_sigma: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError for empty crops, negative amounts and ranges that are not low to high."""
        if min(self.crop_height_px, self.crop_width_px) < 1:
            raise ConfigError(f"crop {self.crop_width_px}x{self.crop_height_px} is empty; give at least 1x1")
        for name in ("scale", "aspect", "gain", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"augment.{name} is {[low, high]!r}; give two numbers above 0, the lower one first")
        for name in ("flip", "tint", "grey", "blur_sigma_px", "noise_sigma"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"augment.{name} is {getattr(self, name)!r}; give 0 or more")
        for name in ("flip", "tint", "grey"):
            if getattr(self, name) > 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)!r}; give a share from 0 to 1")


@dataclass(frozen=True)
class Window:
    """The part of a frame that becomes a crop. top, left, height, width: of the part in the frame, in pixels, after it
    was flipped; beyond the frame it is padded. scale: of the crop relative to the part."""

    flipped: bool
    top: int
    left: int
    height: int
    width: int
    scale: float

    def crop_row(self, frame_row: float, crop_height_px: int) -> float:
        """Return where a row of the frame lies in the crop; may be outside it."""
        return (frame_row - self.top) * crop_height_px / self.height


def augment(
    image: RgbImage,
    labels: LabelImage,
    config: AugmentConfig,
    rng: np.random.Generator,
    padding_label: int = UNLABELLED,
    window: Window | None = None,
) -> tuple[RgbImage, LabelImage]:
    """Return a flipped, scaled, cropped and recoloured copy: uint8 (h, w, 3) and uint8 (h, w) of the crop's size.

    padding_label: put where a shrunken frame does not fill the crop. window: what draw_window gave, None to draw it.
    Everything drawn comes from `rng`, so that the same state gives the same sample.
    """
    window = window or draw_window(labels.shape, config, rng)
    if window.flipped:
        image, labels = image[:, ::-1], labels[:, ::-1]
    image, labels = _scaled_crop(image, labels, config, window, padding_label)
    return _recolour(image, config, rng), labels


def draw_window(size_px: tuple[int, ...], config: AugmentConfig, rng: np.random.Generator) -> Window:
    """Return which part of a frame of a height and width in pixels becomes the crop."""
    flipped = rng.random() < config.flip
    scale, aspect = _log_even(config.scale, rng), _log_even(config.aspect, rng)
    part_h = max(1, round(config.crop_height_px / scale))
    part_w = max(1, round(config.crop_width_px / (scale * aspect)))
    top = int(rng.integers(0, max(1, size_px[0] - part_h + 1)))
    left = int(rng.integers(0, max(1, size_px[1] - part_w + 1)))
    return Window(flipped, top, left, part_h, part_w, scale)


def _scaled_crop(
    image: RgbImage, labels: LabelImage, config: AugmentConfig, window: Window, padding_label: int
) -> tuple[RgbImage, LabelImage]:
    """Cut the part that becomes the crop, then resize: only pixels that are used are resized."""
    part = (slice(window.top, window.top + window.height), slice(window.left, window.left + window.width))
    image, labels = image[part], labels[part]
    below, right = window.height - labels.shape[0], window.width - labels.shape[1]
    if below or right:
        edges = (0, below, 0, right, cv2.BORDER_CONSTANT)
        image = np.asarray(cv2.copyMakeBorder(np.ascontiguousarray(image), *edges, value=PADDING), np.uint8)
        labels = np.asarray(cv2.copyMakeBorder(np.ascontiguousarray(labels), *edges, value=padding_label), np.uint8)
    size = (config.crop_width_px, config.crop_height_px)
    if (window.width, window.height) == size:
        return np.ascontiguousarray(image), np.ascontiguousarray(labels)
    # Area averaging keeps thin things visible where the frame shrinks.
    smooth = cv2.INTER_AREA if window.scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(np.ascontiguousarray(image), size, interpolation=smooth)
    nearest = cv2.resize(np.ascontiguousarray(labels), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, np.uint8), np.asarray(nearest, np.uint8)


def _log_even(limits: tuple[float, float], rng: np.random.Generator) -> float:
    low, high = limits
    return float(np.exp(rng.uniform(np.log(low), np.log(high)))) if low < high else low


def _recolour(image: RgbImage, config: AugmentConfig, rng: np.random.Generator) -> RgbImage:
    """Change exposure, contrast and colour balance by one table per channel, and at times sharpness and noise."""
    gain, gamma = rng.uniform(*config.gain), rng.uniform(*config.gamma)
    tint = rng.uniform(1 - config.tint, 1 + config.tint, 3)
    level = np.arange(256, dtype=np.float64)[:, None] / 255.0
    table = np.rint(255.0 * np.clip(level * gain * tint, 0, 1) ** gamma).astype(np.uint8)
    recoloured = np.asarray(cv2.LUT(image, table[:, None, :]), np.uint8)
    if config.grey > 0 and rng.random() < config.grey:
        grey = cv2.cvtColor(cv2.cvtColor(recoloured, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        share = float(rng.uniform(0.3, 1.0))
        recoloured = np.asarray(cv2.addWeighted(grey, share, recoloured, 1 - share, 0), np.uint8)
    if config.blur_sigma_px > 0 and rng.random() < 0.25:
        sigma = float(rng.uniform(0.2, 1.0)) * config.blur_sigma_px
        recoloured = np.asarray(cv2.GaussianBlur(recoloured, (0, 0), sigma), np.uint8)
    if config.noise_sigma > 0 and rng.random() < 0.25:
        noise: npt.NDArray[np.float32] = rng.standard_normal(image.shape, np.float32)
        noise *= float(rng.uniform(0.2, 1.0)) * config.noise_sigma
        recoloured = np.asarray(np.clip(recoloured + noise, 0, 255), np.uint8)
    return recoloured
