"""The ego mask: where a camera sees its own vehicle."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from anomseg_ros.core.image_files import read_image
from anomseg_ros.core.types import Mask
from anomseg_ros.errors import ConfigError, FrameError

_TOLERANCE = 0.01
"""Difference of the aspect ratios that rounding explains where a frame was made smaller."""


def read_ego_mask(path: Path, name: str = "ego mask") -> Mask:
    """Return an image file as a uint8 (H, W) mask, non-zero on the own vehicle. Raises ConfigError that begins with
    `name`."""
    try:
        image = read_image(path)
    except FrameError as error:
        raise ConfigError(f"{name}: {str(path)!r} cannot be read as an image: {error}") from error
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def check_aspect_ratio(mask: Mask, height: int, width: int) -> None:
    """Raise FrameError unless the mask has the aspect ratio of a frame, within 1 %; another one is of another view."""
    mask_height, mask_width = mask.shape
    if abs(mask_width * height - mask_height * width) > _TOLERANCE * mask_height * width:
        raise FrameError(
            f"the ego mask is {mask_width}x{mask_height} pixels, the frame {width}x{height}: they need the same aspect "
            "ratio; paint the mask over a frame of this camera"
        )


def ego_mask_of_frame(mask: Mask, height: int, width: int) -> Mask:
    """Return the mask at a frame's size, uint8 (height, width). Raises FrameError; see check_aspect_ratio."""
    check_aspect_ratio(mask, height, width)
    return resized_ego_mask(mask, height, width)


def resized_ego_mask(mask: Mask, height: int, width: int) -> Mask:
    """Return the mask at the size of a frame or of outputs, uint8 (height, width), whatever its aspect ratio."""
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
