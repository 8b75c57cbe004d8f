"""Image files as the content of CompressedImage messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.image_files import decode_rgb
from anomseg_ros.errors import BagError, FrameError, describe_os_error

# File formats that a CompressedImage contains unchanged; others are re-encoded as PNG, which is lossless.
_VERBATIM_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file, its format as in CompressedImage.format, and its size in pixels."""

    data: bytes
    format: str
    width_px: int
    height_px: int


def read_rgb(path: Path) -> tuple[npt.NDArray[np.uint8], bytes]:
    """Return the uint8 (H, W, 3) RGB pixels of an image file and its bytes. Raises BagError."""
    try:
        data = path.read_bytes()
        return decode_rgb(np.frombuffer(data, np.uint8), f"image {str(path)!r}"), data
    except OSError as error:
        raise BagError(f"image cannot be read: {describe_os_error(error, path)}") from error
    except FrameError as error:
        raise BagError(str(error)) from error


def read_encoded_image(path: Path) -> EncodedImage:
    """Return the unchanged content of a JPEG or PNG file; other files are re-encoded as PNG. Raises BagError."""
    rgb, data = read_rgb(path)
    if path.suffix.lower() not in _VERBATIM_FORMATS:
        return encode_image(rgb, ".png")
    return EncodedImage(data, _VERBATIM_FORMATS[path.suffix.lower()], rgb.shape[1], rgb.shape[0])


def encode_image(rgb: npt.NDArray[np.uint8], suffix: str, options: Sequence[int] = ()) -> EncodedImage:
    """Encode a uint8 (H, W, 3) RGB image. suffix: .png or .jpg; options: those of cv2.imencode. Raises BagError."""
    success, data = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    if not success:
        raise BagError(f"OpenCV could not encode an image of shape {rgb.shape} as {suffix}")
    return EncodedImage(data.tobytes(), _VERBATIM_FORMATS[suffix], rgb.shape[1], rgb.shape[0])
