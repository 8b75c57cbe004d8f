"""Decode the image messages of a bag into frames, label images and score maps, without a ROS installation."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.compressed_image import rgb_from_compressed_message
from anomseg_ros.core.encodings import ImageFields, byte_view, rgb_from_fields, values_from_fields
from anomseg_ros.core.types import LabelImage, RgbImage, ScoreMap
from anomseg_ros.errors import FrameError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def frame_from_message(message: Any) -> RgbImage:
    """Return the uint8 (H, W, 3) RGB frame of an Image or CompressedImage, as in the node. Raises FrameError."""
    if hasattr(message, "format"):
        return rgb_from_compressed_message(message)
    return rgb_from_fields(ImageFields.of(message))


def labels_from_message(message: Any) -> LabelImage:
    """Return the uint8 (H, W) labels of a one-channel 8-bit Image, or of a PNG in a CompressedImage.

    Raises FrameError for anything else, including JPEG, which changes label values.
    """
    values: npt.NDArray[Any] | None
    if not hasattr(message, "format"):
        values = values_from_fields(ImageFields.of(message))
        what = f"encoding {message.encoding!r}"
    else:
        data = byte_view(message.data)
        if data[:8].tobytes() != PNG_SIGNATURE:
            raise FrameError(f"labels of format {message.format!r}; expected PNG, which is lossless")
        values = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        what = f"format {message.format!r}"
    if values is None or values.ndim != 2 or values.dtype != np.uint8:
        raise FrameError(f"labels of {what} cannot be read as one channel of 8 bits; record them as mono8")
    return np.asarray(values, np.uint8)


def scores_from_message(message: Any) -> ScoreMap:
    """Return the float32 (H, W) scores of a 32FC1 Image.

    Raises FrameError for anything else. mono8, the node's other score_encoding, is too coarse to rank pixels.
    """
    if hasattr(message, "format") or message.encoding != "32FC1":
        kind = f"format {message.format!r}" if hasattr(message, "format") else f"encoding {message.encoding!r}"
        raise FrameError(f"scores of {kind}; expected 32FC1: record with the node's parameter score_encoding=32FC1")
    return np.asarray(values_from_fields(ImageFields.of(message)), np.float32)
