"""The camera: exposure, colour temperature, lens blur, vignetting, sensor noise and JPEG."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.scenes.scene_config import SyntheticConfig
from anomseg_ros.scenes.textures import Image, Rng


class Sensor:
    """The camera of one sequence. Only the noise differs between frames."""

    def __init__(self, rng: Rng, config: SyntheticConfig) -> None:
        """Draw the sequence's settings."""
        height, width = config.height_px, config.width_px
        self.curve = _curve(rng, config)
        # The configured blur is for a width of 1024 pixels; smaller pictures are sharper per pixel.
        self.blur_px = float(rng.uniform(*config.blur_px)) * float(np.clip(width / 1024, 0.6, 2.0))
        self.noise_std = float(rng.uniform(*config.noise_std))
        y, x = np.mgrid[:height, :width].astype(np.float32)
        radius = np.hypot((x - width / 2) / width, (y - height / 2) / height) / np.hypot(0.5, 0.5)
        dark = 1.0 - float(rng.uniform(*config.vignetting)) * radius**2
        self.vignette: npt.NDArray[np.float32] = np.repeat(dark[..., None], 3, axis=2).astype(np.float32)
        grain = rng.normal(0, self.noise_std, (height + 64, width + 64, 3)) * np.array([1.0, 0.8, 1.2])
        self.grain: npt.NDArray[np.int16] = np.rint(grain).astype(np.int16)
        quality = config.jpeg_quality
        self.quality = None if quality is None else int(rng.integers(quality[0], quality[1] + 1))

    def expose(self, scene: Image, rng: Rng) -> Image:
        """Return the camera's picture (H, W, 3) uint8 of a scene of the same shape."""
        image = scene
        if self.blur_px > 0.05:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), self.blur_px), np.uint8)
        image = np.asarray(cv2.LUT(image, self.curve), np.uint8)
        image = np.asarray(cv2.multiply(image, self.vignette, dtype=cv2.CV_8U), np.uint8)
        height, width = scene.shape[:2]
        top, left = (int(v) for v in rng.integers(0, 64, 2))
        grain = np.ascontiguousarray(self.grain[top : top + height, left : left + width])
        image = np.asarray(cv2.add(image, grain, dtype=cv2.CV_8U), np.uint8)
        if self.quality is not None:
            _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
            image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
        return image


def _curve(rng: Rng, config: SyntheticConfig) -> Image:
    """Return the (256, 1, 3) table of brightness, colour temperature and contrast."""
    level = np.arange(256, dtype=np.float32)[:, None] / 255.0
    warmth = float(rng.uniform(*config.warmth))
    gains = float(rng.uniform(*config.brightness)) * np.array([1 + warmth, 1.0, 1 - warmth], np.float32)
    bright = level * gains * 1.12
    # A soft shoulder, as in cameras, avoids flat white walls and clouds.
    rolled = np.where(bright > 0.75, 0.75 + 0.25 * np.tanh((bright - 0.75) / 0.25), bright)
    contrast = float(rng.uniform(0.0, 0.35))
    curved = rolled * (1 - contrast) + (3 * rolled**2 - 2 * rolled**3) * contrast
    return np.asarray(np.clip(curved * 255.0, 0, 255)[:, None, :], np.uint8)
