"""The ego mask: where a camera sees its own vehicle."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from anomseg_ros.core.image_files import read_image
from anomseg_ros.core.types import Mask
from anomseg_ros.errors import ConfigError, FrameError


def read_ego_mask(path: Path, name: str = "ego mask") -> Mask:
    """Return an image file as a uint8 (H, W) mask, non-zero on the own vehicle. Raises ConfigError that begins with
    `name`."""
    try:
        image = read_image(path)
    except FrameError as error:
        raise ConfigError(f"{name}: {str(path)!r} cannot be read as an image: {error}") from error
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def resized_ego_mask(mask: Mask, height: int, width: int) -> Mask:
    """Return the mask at a frame's size, uint8 (height, width)."""
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
