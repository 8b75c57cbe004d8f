"""Augment training frames: the geometry of image and labels together, colours, then weather, light and camera.

Most keys are shares of frames, 0 by default. An effect that is off draws no random numbers, so a new key does not
change the samples of configurations without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.labels import UNLABELLED
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.datasets.camera_effects import blur_motion, change_response, compress_jpeg, sharpen, shift_colours
from anomseg_ros.datasets.warps import HORIZON, Part, Warp, draw_lens, draw_mount, warped_part
from anomseg_ros.datasets.weather import add_fog, add_glare, add_haze, add_rain, add_snow, make_night
from anomseg_ros.errors import ConfigError

PADDING = (124, 116, 104)
"""ImageNet's mean colour, put where a shrunken or warped frame does not fill the crop."""

WEATHER = {"fog": add_fog, "haze": add_haze, "rain": add_rain, "snow": add_snow}
"""Share in AugmentConfig -> effect; a frame has at most one of these."""

LIGHT = {"night": make_night, "glare": add_glare}

CAMERA = {
    "chromatic": shift_colours,
    "motion_blur": blur_motion,
    "response": change_response,
    "sharpen": sharpen,
    "jpeg": compress_jpeg,
}
"""In the order in which light passes through a camera."""

WARPS = {"mount": draw_mount, "lens": draw_lens}

Paste = Callable[[RgbImage, LabelImage, float], tuple[RgbImage, LabelImage]]
"""Pastes objects into a crop and its labels; called with the row of the crop's horizon, which may be outside it."""


@dataclass(frozen=True)
class AugmentConfig:
    """The random changes of each frame. Shares are probabilities; ranges (low, high) are uniform unless stated.

    scale: log-uniform. aspect: width over height, relative to the frame's own, log-uniform, since bundles stretch
    frames of any shape to their input. whole_frame: share whose crop is the whole frame, as a bundle sees it, without
    scale and aspect. mount: another height, pitch and roll of the camera. lens: radial distortion. grey: share of
    frames that lose a random amount of colour. gain, gamma: of all channels. tint: largest relative gain of single
    channels. blur_sigma_px, noise_sigma (in grey levels): upper limits, each for a quarter of the frames.

    Shares of frames with an effect, see weather.py and camera_effects.py: fog, haze, rain, snow (at most one of these
    four, so they add up to 1 at most), night, glare, chromatic, motion_blur, response, sharpen, jpeg.
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
    whole_frame: float = 0.0
    mount: float = 0.0
    lens: float = 0.0
    fog: float = 0.0
    haze: float = 0.0
    rain: float = 0.0
    snow: float = 0.0
    night: float = 0.0
    glare: float = 0.0
    chromatic: float = 0.0
    motion_blur: float = 0.0
    response: float = 0.0
    sharpen: float = 0.0
    jpeg: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError for empty crops, negative amounts and ranges that are not low to high."""
        if min(self.crop_height_px, self.crop_width_px) < 1:
            raise ConfigError(f"crop {self.crop_width_px}x{self.crop_height_px} is empty; give at least 1x1")
        for name in ("scale", "aspect", "gain", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"augment.{name} is {[low, high]!r}; give two numbers above 0, the lower one first")
        shares = ("flip", "tint", "grey", "whole_frame", *WARPS, *WEATHER, *LIGHT, *CAMERA)
        for name in (*shares, "blur_sigma_px", "noise_sigma"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"augment.{name} is {getattr(self, name)!r}; give 0 or more")
        for name in shares:
            if getattr(self, name) > 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)!r}; give a share from 0 to 1")
        total = sum(getattr(self, name) for name in WEATHER)
        if total > 1 + 1e-9:
            raise ConfigError(
                f"augment.{', '.join(WEATHER)} add up to {total:g}; a frame has one of them: give 1 at most"
            )


def augment(
    image: RgbImage,
    labels: LabelImage,
    config: AugmentConfig,
    rng: np.random.Generator,
    padding_label: int = UNLABELLED,
    paste: Paste | None = None,
    horizon_px: float | None = None,
) -> tuple[RgbImage, LabelImage]:
    """Return a flipped, scaled, cropped and recoloured copy: uint8 (h, w, 3) and uint8 (h, w) of the crop's size.

    Args:
        image: uint8 (H, W, 3) RGB.
        labels: uint8 (H, W), any values.
        config: the random changes.
        rng: gives all random numbers; the same state gives the same sample.
        padding_label: fills the crop where a shrunken or warped frame does not.
        paste: pastes outliers into the crop before weather, light and camera, which then change them too.
        horizon_px: row of the frame's horizon; None for a usual camera's.
    """
    horizon_px = HORIZON * labels.shape[0] if horizon_px is None else horizon_px
    if rng.random() < config.flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    image, labels, horizon_px = _crop(image, labels, horizon_px, config, rng, padding_label)
    image = _recolour(image, config, rng)
    if paste is not None:
        image, labels = paste(image, labels, horizon_px)
    return _photograph(image, horizon_px, config, rng), labels


def _crop(
    image: RgbImage,
    labels: LabelImage,
    horizon_px: float,
    config: AugmentConfig,
    rng: np.random.Generator,
    padding_label: int,
) -> tuple[RgbImage, LabelImage, float]:
    """Return a part of the frame at the crop's size, and the row of the horizon there."""
    height, width = labels.shape
    part = _draw_part(height, width, config, rng)
    warps: list[Warp] = [draw(rng) for name, draw in WARPS.items() if _drawn(getattr(config, name), rng)]
    size = (config.crop_height_px, config.crop_width_px)
    if warps:
        return warped_part(image, labels, part, size, warps, PADDING, padding_label, horizon_px)
    image, labels = _resized_part(image, labels, part, size, padding_label)
    return image, labels, (horizon_px - part.top) * size[0] / part.height


def _draw_part(height: int, width: int, config: AugmentConfig, rng: np.random.Generator) -> Part:
    if _drawn(config.whole_frame, rng):
        return Part(0, 0, height, width, averaged=config.crop_height_px < height)
    scale, aspect = _log_even(config.scale, rng), _log_even(config.aspect, rng)
    part_h, part_w = round(config.crop_height_px / scale), round(config.crop_width_px / (scale * aspect))
    part_h, part_w = max(1, part_h), max(1, part_w)
    top = int(rng.integers(0, max(1, height - part_h + 1)))
    left = int(rng.integers(0, max(1, width - part_w + 1)))
    return Part(top, left, part_h, part_w, averaged=scale < 1)


def _resized_part(
    image: RgbImage, labels: LabelImage, part: Part, size_px: tuple[int, int], padding_label: int
) -> tuple[RgbImage, LabelImage]:
    """Cut the part that becomes the crop, then resize it; unused pixels are not resized."""
    image = image[part.top : part.top + part.height, part.left : part.left + part.width]
    labels = labels[part.top : part.top + part.height, part.left : part.left + part.width]
    below, right = part.height - labels.shape[0], part.width - labels.shape[1]
    if below or right:
        edges = (0, below, 0, right, cv2.BORDER_CONSTANT)
        image = np.asarray(cv2.copyMakeBorder(np.ascontiguousarray(image), *edges, value=PADDING), np.uint8)
        labels = np.asarray(cv2.copyMakeBorder(np.ascontiguousarray(labels), *edges, value=padding_label), np.uint8)
    if (part.height, part.width) == size_px:
        return np.ascontiguousarray(image), np.ascontiguousarray(labels)
    smooth = cv2.INTER_AREA if part.averaged else cv2.INTER_LINEAR
    size = size_px[::-1]
    resized = cv2.resize(np.ascontiguousarray(image), size, interpolation=smooth)
    nearest = cv2.resize(np.ascontiguousarray(labels), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, np.uint8), np.asarray(nearest, np.uint8)


def _drawn(share: float, rng: np.random.Generator) -> bool:
    """Return whether a frame belongs to a share; a share of 0 draws no random number."""
    return share > 0 and rng.random() < share


def _log_even(limits: tuple[float, float], rng: np.random.Generator) -> float:
    low, high = limits
    return float(np.exp(rng.uniform(np.log(low), np.log(high)))) if low < high else low


def _recolour(image: RgbImage, config: AugmentConfig, rng: np.random.Generator) -> RgbImage:
    """Change exposure, contrast and colour balance by a table per channel, and sometimes sharpness and noise."""
    gain, gamma = rng.uniform(*config.gain), rng.uniform(*config.gamma)
    tint = rng.uniform(1 - config.tint, 1 + config.tint, 3)
    level = np.arange(256, dtype=np.float64)[:, None] / 255.0
    table = np.rint(255.0 * np.clip(level * gain * tint, 0, 1) ** gamma).astype(np.uint8)
    recoloured = np.asarray(cv2.LUT(image, table[:, None, :]), np.uint8)
    if _drawn(config.grey, rng):
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


def _photograph(image: RgbImage, horizon_px: float, config: AugmentConfig, rng: np.random.Generator) -> RgbImage:
    """Apply weather and light, then the effects of the camera."""
    shares = {name: getattr(config, name) for name in WEATHER}
    if any(shares.values()):
        draw, bounds = rng.random(), np.cumsum(list(shares.values()))
        chosen = int(np.searchsorted(bounds, draw, side="right"))
        if chosen < len(shares):
            image = WEATHER[list(shares)[chosen]](image, horizon_px, rng)
    for name, light in LIGHT.items():
        if _drawn(getattr(config, name), rng):
            image = light(image, horizon_px, rng)
    for name, effect in CAMERA.items():
        if _drawn(getattr(config, name), rng):
            image = effect(image, rng)
    return image
