"""Pixels of raw images by the encodings of sensor_msgs/image_encodings.hpp, without ROS.

Field meanings are those of sensor_msgs/msg/Image.msg. Unlike cv_bridge and rosbags-image, row padding (`step`) and
`is_bigendian` are honoured. Node, bags and evaluation read frames through here, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.errors import FrameError, unknown_name

U8 = npt.NDArray[np.uint8]


class ImageFields(NamedTuple):
    """The fields of a sensor_msgs/Image. data: array.array, bytes or uint8 array, at least height_px * step bytes."""

    height_px: int
    width_px: int
    encoding: str
    is_bigendian: bool
    step: int
    data: object

    @classmethod
    def of(cls, message: Any) -> ImageFields:
        """Take the fields of a message: from ROS, or one that rosbags read."""
        return cls(
            int(message.height),
            int(message.width),
            str(message.encoding),
            bool(message.is_bigendian),
            int(message.step),
            message.data,
        )


@dataclass(frozen=True)
class Encoding:
    """How the bytes of one image encoding are laid out and turned into RGB.

    bytes_per_pixel: of one row of the first plane.
    to_rgb: takes (rows, width_px * bytes_per_pixel) uint8, width_px and is_bigendian; returns (height_px, width_px, 3).
    even_width, even_height: chroma is subsampled along that axis.
    rows_per_two: rows of `step` bytes per two image rows; 2 where there is one plane, 3 and 6 where a chroma plane of
    4:2:0 and 4:4:4 follows.
    """

    bytes_per_pixel: int
    to_rgb: Callable[[U8, int, bool], U8]
    even_width: bool = False
    even_height: bool = False
    rows_per_two: int = 2


def rgb_from_fields(image: ImageFields) -> U8:
    """Return an image's pixels as (height_px, width_px, 3) uint8 RGB, C-contiguous.

    Tightly packed rgb8 is returned as a read-only view of the image's own buffer; all else is a new array. 16-bit
    values keep their upper 8 bits. YUV is BT.601 with limited range, as OpenCV and cv_bridge read it. Bayer patterns
    are demosaiced bilinearly.

    Raises:
        FrameError: zero size, unknown encoding, a step shorter than a row, odd size with subsampled chroma, missing
        data.
    """
    encoding = _known_encoding(image)
    image = _with_step_of_a_plane(image, encoding)
    rows = _rows_of(image, encoding.bytes_per_pixel, encoding.rows_per_two)
    return encoding.to_rgb(rows, image.width_px, image.is_bigendian)


VALUE_ENCODINGS: dict[str, str] = {"mono8": "u1", "8UC1": "u1", "mono16": "u2", "16UC1": "u2", "32FC1": "f4"}
"""Encoding name -> numpy type code of images whose single channel holds values (labels, scores), not colours."""


def values_from_fields(image: ImageFields) -> npt.NDArray[Any]:
    """Return a one-channel image's values as (height_px, width_px) uint8, uint16 or float32, a copy.

    Raises:
        FrameError: an encoding of more channels, zero size, a step shorter than a row, missing data.
    """
    if image.encoding not in VALUE_ENCODINGS:
        raise FrameError(unknown_name("one-channel Image.encoding", image.encoding, VALUE_ENCODINGS))
    _require_pixels(image)
    dtype = np.dtype((">" if image.is_bigendian else "<") + VALUE_ENCODINGS[image.encoding])
    values = np.ascontiguousarray(_rows_of(image, dtype.itemsize)).view(dtype)
    return values.astype(dtype.newbyteorder("="))


def byte_view(data: object) -> U8:
    """Return array.array, bytes or an array as a flat uint8 view. Raises FrameError for anything else."""
    if len(data) == 0:  # type: ignore[arg-type]
        return np.empty(0, np.uint8)
    try:
        return np.frombuffer(data, np.uint8)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError) as error:
        raise FrameError(
            f"data is a {type(data).__name__}, not a byte buffer ({error}); expected array.array('B') or bytes"
        ) from None


def _require_pixels(image: ImageFields) -> None:
    if image.width_px == 0 or image.height_px == 0:
        raise FrameError(
            f"Image.width x Image.height is {image.width_px}x{image.height_px}; expected at least one pixel"
        )


def _known_encoding(image: ImageFields) -> Encoding:
    if image.encoding not in ENCODINGS:
        raise FrameError(unknown_name("Image.encoding", image.encoding, ENCODINGS))
    encoding = ENCODINGS[image.encoding]
    _require_pixels(image)
    if encoding.even_width and image.width_px % 2:
        raise FrameError(
            f"Image.width is {image.width_px}; {image.encoding} shares chroma between columns, the width must be even"
        )
    if encoding.even_height and image.height_px % 2:
        raise FrameError(
            f"Image.height is {image.height_px}; {image.encoding} shares chroma between rows, the height must be even"
        )
    return encoding


def _with_step_of_a_plane(image: ImageFields, encoding: Encoding) -> ImageFields:
    """Return an image whose `step` is that of its first plane. Image.msg has `step` times the height as the size of the
    data, and some publishers of several planes keep to that."""
    planes_bytes = image.width_px * encoding.bytes_per_pixel * encoding.rows_per_two // 2
    if encoding.rows_per_two == 2 or image.step != planes_bytes or len(image.data) != image.step * image.height_px:  # type: ignore[arg-type]
        return image
    return image._replace(step=image.width_px * encoding.bytes_per_pixel)


def _rows_of(image: ImageFields, bytes_per_pixel: int, rows_per_two: int = 2) -> U8:
    """Return the image's bytes as (rows, width_px * bytes_per_pixel) uint8, a view that leaves out the row padding."""
    row_bytes = image.width_px * bytes_per_pixel
    step, rows = image.step, image.height_px * rows_per_two // 2
    if step < row_bytes:
        raise FrameError(
            f"Image.step is {step}; expected at least {row_bytes}, the bytes of {image.width_px} pixels of "
            f"{image.encoding}"
        )
    data = byte_view(image.data)
    if data.size < step * rows:
        raise FrameError(
            f"Image.data is truncated: {data.size} bytes; {image.width_px}x{image.height_px} {image.encoding} with "
            f"step {step} takes {step * rows} bytes"
        )
    return data[: step * rows].reshape(rows, step)[:, :row_bytes]


def _upper_byte(values: npt.NDArray[Any]) -> U8:
    return np.asarray(np.right_shift(values, 8), np.uint8)


def _u8(pixels: npt.NDArray[Any]) -> U8:
    # OpenCV's stubs lose the dtype; for uint8 input this costs nothing.
    return np.asarray(pixels, np.uint8)


def _rgb8(rows: U8, width_px: int, _big: bool) -> U8:
    rgb = np.ascontiguousarray(rows.reshape(-1, width_px, 3))
    # A view shares the message's memory: writing to it would change the message under other readers.
    rgb.flags.writeable = False
    return rgb


def _by_color_code(code: int, channels: int) -> Callable[[U8, int, bool], U8]:
    """Interleaved 8-bit channels (or two-byte YUV 4:2:2 pixels): one cv2.cvtColor."""

    def to_rgb(rows: U8, width_px: int, _big: bool) -> U8:
        shape = (-1, width_px) if channels == 1 else (-1, width_px, channels)
        return _u8(cv2.cvtColor(rows.reshape(shape), code))

    return to_rgb


def _upper_bytes_as(encoding: Encoding) -> Callable[[U8, int, bool], U8]:
    """16-bit channels: the upper byte of each value is the value >> 8, no swap, no shift."""

    def to_rgb(rows: U8, width_px: int, big: bool) -> U8:
        upper = np.ascontiguousarray(rows[:, (0 if big else 1) :: 2])
        return encoding.to_rgb(upper, width_px, big)

    return to_rgb


def _bayer16(code: int) -> Callable[[U8, int, bool], U8]:
    def to_rgb(rows: U8, width_px: int, big: bool) -> U8:
        values = np.ascontiguousarray(rows).view(">u2" if big else "<u2").astype(np.uint16, copy=False)
        return _upper_byte(cv2.cvtColor(values, code))

    return to_rgb


def _planar_420(code: int) -> Callable[[U8, int, bool], U8]:
    def to_rgb(rows: U8, width_px: int, _big: bool) -> U8:
        return _u8(cv2.cvtColor(np.ascontiguousarray(rows), code))

    return to_rgb


def _nv24(rows: U8, width_px: int, _big: bool) -> U8:
    """4:4:4: full-size chroma, read by the conversion of 4:2:0 at twice the size, so that both have one arithmetic."""
    height_px = len(rows) // 3
    luma = np.repeat(np.repeat(rows[:height_px], 2, axis=0), 2, axis=1)
    chroma = np.ascontiguousarray(rows[height_px:]).reshape(height_px, 2 * width_px)
    doubled = cv2.cvtColor(np.concatenate([luma, chroma]), cv2.COLOR_YUV2RGB_NV12)
    return np.ascontiguousarray(_u8(doubled)[::2, ::2])


# OpenCV's older Bayer names read the pattern from the second row and column, so RGGB is BayerBG there; its newer names
# (4.5.3 and later) agree with ROS's.
_BAYER = {
    "rggb": cv2.COLOR_BayerRGGB2RGB,
    "bggr": cv2.COLOR_BayerBGGR2RGB,
    "gbrg": cv2.COLOR_BayerGBRG2RGB,
    "grbg": cv2.COLOR_BayerGRBG2RGB,
}
_UYVY = Encoding(2, _by_color_code(cv2.COLOR_YUV2RGB_UYVY, 2), even_width=True)
_YUYV = Encoding(2, _by_color_code(cv2.COLOR_YUV2RGB_YUY2, 2), even_width=True)
_MONO8 = Encoding(1, _by_color_code(cv2.COLOR_GRAY2RGB, 1))
_BGR8 = Encoding(3, _by_color_code(cv2.COLOR_BGR2RGB, 3))
_BGRA8 = Encoding(4, _by_color_code(cv2.COLOR_BGRA2RGB, 4))
_RGB8 = Encoding(3, _rgb8)
_RGBA8 = Encoding(4, _by_color_code(cv2.COLOR_RGBA2RGB, 4))

ENCODINGS: dict[str, Encoding] = {
    "rgb8": _RGB8,
    "bgr8": _BGR8,
    "rgba8": _RGBA8,
    "bgra8": _BGRA8,
    "mono8": _MONO8,
    "rgb16": Encoding(6, _upper_bytes_as(_RGB8)),
    "bgr16": Encoding(6, _upper_bytes_as(_BGR8)),
    "rgba16": Encoding(8, _upper_bytes_as(_RGBA8)),
    "bgra16": Encoding(8, _upper_bytes_as(_BGRA8)),
    "mono16": Encoding(2, _upper_bytes_as(_MONO8)),
    # OpenCV-style names carry no channel meaning; grey and OpenCV's own BGR order are what their publishers mean.
    "8UC1": _MONO8,
    "8UC3": _BGR8,
    "8UC4": _BGRA8,
    "16UC1": Encoding(2, _upper_bytes_as(_MONO8)),
    "16UC3": Encoding(6, _upper_bytes_as(_BGR8)),
    "16UC4": Encoding(8, _upper_bytes_as(_BGRA8)),
    "uyvy": _UYVY,
    "yuv422": _UYVY,
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
    "nv12": Encoding(1, _planar_420(cv2.COLOR_YUV2RGB_NV12), even_width=True, even_height=True, rows_per_two=3),
    "nv21": Encoding(1, _planar_420(cv2.COLOR_YUV2RGB_NV21), even_width=True, even_height=True, rows_per_two=3),
    "nv24": Encoding(1, _nv24, rows_per_two=6),
    **{f"bayer_{pattern}8": Encoding(1, _by_color_code(code, 1)) for pattern, code in _BAYER.items()},
    **{f"bayer_{pattern}16": Encoding(2, _bayer16(code)) for pattern, code in _BAYER.items()},
}
"""Encoding name of sensor_msgs/Image -> layout and conversion."""
