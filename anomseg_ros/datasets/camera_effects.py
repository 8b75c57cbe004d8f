"""Effects of cameras and encoders: colour response, sharpening, chromatic aberration, motion blur, JPEG.

Every effect takes an RGB image uint8 (H, W, 3) and a random generator for its strength. It returns a new image of the
same shape.
"""

from __future__ import annotations

import cv2
import numpy as np

from anomseg_ros.core.types import RgbImage
from anomseg_ros.scenes.textures import Rng

_LUMA = np.array([0.299, 0.587, 0.114])


def change_response(image: RgbImage, rng: Rng) -> RgbImage:
    """Change gamma, contrast, white balance and black level per channel, and the saturation."""
    level = np.arange(256)[:, None] / 255.0
    warmth, green = rng.uniform(-0.2, 0.2), rng.uniform(-0.06, 0.06)
    balance = np.array([1.0 + warmth, 1.0 + green, 1.0 - warmth])
    gamma = np.exp(rng.uniform(-0.45, 0.45)) * (1.0 + rng.uniform(-0.08, 0.08, 3))
    contrast = rng.uniform(-0.35, 0.6) + rng.uniform(-0.08, 0.08, 3)
    curve = np.clip(level * balance, 0, 1) ** gamma
    # Above 0 an S-curve; below 0 the opposite, which flattens the middle.
    curve = curve + contrast * (3 * curve**2 - 2 * curve**3 - curve)
    black = rng.uniform(-0.06, 0.1)
    table = np.rint(255.0 * np.clip(black + (1 - black) * curve, 0, 1)).astype(np.uint8)
    curved = cv2.LUT(image, table[:, None, :])
    saturation = rng.uniform(0.2, 1.6)
    mix = saturation * np.eye(3) + (1.0 - saturation) * np.tile(_LUMA, (3, 1))
    return np.asarray(cv2.transform(curved, mix.astype(np.float32)), np.uint8)


def sharpen(image: RgbImage, rng: Rng) -> RgbImage:
    """Sharpen like a cheap camera, with halos along edges."""
    amount = rng.uniform(0.4, 2.0)
    blurred = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.7, 2.2))
    return np.asarray(cv2.addWeighted(image, 1.0 + amount, blurred, -amount, 0.0), np.uint8)


def shift_colours(image: RgbImage, rng: Rng) -> RgbImage:
    """Scale red and blue about the middle and shift them, which gives fringes that grow towards the corners."""
    height, width = image.shape[:2]
    channels = list(cv2.split(image))
    for channel in (0, 2):
        scale, shift = 1.0 + rng.uniform(-0.006, 0.006), rng.uniform(-0.8, 0.8, 2)
        move = np.array(
            [[scale, 0, (1 - scale) * width / 2 + shift[0]], [0, scale, (1 - scale) * height / 2 + shift[1]]]
        )
        channels[channel] = cv2.warpAffine(
            channels[channel], move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    return np.asarray(cv2.merge(channels), np.uint8)


def blur_motion(image: RgbImage, rng: Rng) -> RgbImage:
    """Blur along a line of up to 5 % of the height, mostly across (turning) or along the image (bumps)."""
    length = rng.uniform(2.0, max(3.0, 0.05 * image.shape[0]))
    angle = rng.normal(0.0, 0.15) + (0.5 * np.pi if rng.random() < 0.35 else 0.0)
    reach = np.abs(np.array([np.cos(angle), np.sin(angle)])) * length / 2
    half_w, half_h = (int(np.ceil(side)) for side in reach)
    kernel = np.zeros((2 * half_h + 1, 2 * half_w + 1), np.float32)
    steps = np.linspace(-0.5, 0.5, 4 * int(np.ceil(length)) + 1) * length
    columns = np.rint(half_w + steps * np.cos(angle)).astype(int)
    rows = np.rint(half_h + steps * np.sin(angle)).astype(int)
    np.add.at(kernel, (rows, columns), 1.0)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE), np.uint8)


def compress_jpeg(image: RgbImage, rng: Rng) -> RgbImage:
    """Encode and decode at a quality of 12 to 75."""
    quality = int(rng.integers(12, 76))
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)
