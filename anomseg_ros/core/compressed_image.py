"""Pixels of compressed image messages, without ROS: node, bags and evaluation read them through here."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from anomseg_ros.core.encodings import ENCODINGS, ImageFields, byte_view, rgb_from_fields
from anomseg_ros.core.image_files import decode_rgb, decode_stored
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import FrameError

_MOSAIC = re.compile(r"^\s*(bayer_[a-z]+?)(8|16)\b")


def rgb_from_compressed_message(message: Any) -> RgbImage:
    """Return the pixels of a CompressedImage, JPEG, PNG or WebP, as (height_px, width_px, 3) uint8 RGB.

    The contents decide the format, not `message.format`, which publishers fill in differently. One thing only that
    field tells: image_transport compresses the mosaic of a Bayer camera as it is and begins the field with the camera's
    encoding, as in "bayer_rggb8; jpeg compressed ". A payload of one channel is then demosaiced. 16-bit files keep
    their upper 8 bits.

    Raises:
        FrameError: no data, data that no decoder accepts, a file that ends early (see decode_stored), a mosaic whose
        pattern is unknown.
    """
    data, what = byte_view(message.data), f"CompressedImage.data of format {message.format!r}"
    mosaic = _MOSAIC.match(message.format)
    if mosaic is None:
        return decode_rgb(data, what)
    stored = decode_stored(data, what)
    if stored.ndim == 3:  # the publisher has demosaiced it
        return decode_rgb(data, what)
    encoding = f"{mosaic[1]}{8 * stored.itemsize}"
    if encoding not in ENCODINGS:
        patterns = ", ".join(name for name in ENCODINGS if name.startswith("bayer_"))
        raise FrameError(f"{what} is a mosaic of an unknown pattern; known: {patterns}")
    height_px, width_px = stored.shape
    native = np.ascontiguousarray(stored, stored.dtype.newbyteorder("<"))
    return rgb_from_fields(
        ImageFields(height_px, width_px, encoding, False, width_px * stored.itemsize, native.reshape(-1).view(np.uint8))
    )
