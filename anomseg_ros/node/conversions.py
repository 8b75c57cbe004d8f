"""ROS image messages to numpy arrays and back.

Field meanings are those of sensor_msgs/msg/Image.msg, CompressedImage.msg and CameraInfo.msg and of REP 118 (depth
images). Unlike cv_bridge and rosbags-image, row padding (`step`) and `is_bigendian` are honoured. Nothing here needs
rclpy: any object with the fields of the message will do, so a message that was read from a bag by the rosbags library
converts as well.
"""

from __future__ import annotations

import array
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from anomseg_ros.core.image_files import decode_rgb
from anomseg_ros.errors import FrameError, unknown_name

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Encoding:
    """How the bytes of one image encoding are laid out and turned into RGB.

    bytes_per_pixel: of one row of the first plane.
    to_rgb: takes (rows, width_px * bytes_per_pixel) uint8, width_px and is_bigendian; returns (height_px, width_px, 3).
    even_width, even_height: chroma is subsampled along that axis.
    rows_per_two: rows of `step` bytes per two image rows; 3 for 4:2:0, whose chroma plane follows, 2 for all others.
    """

    bytes_per_pixel: int
    to_rgb: Callable[[U8, int, bool], U8]
    even_width: bool = False
    even_height: bool = False
    rows_per_two: int = 2


def rgb_from_image(msg: Image) -> U8:
    """Return the pixels of a sensor_msgs/Image as (height_px, width_px, 3) uint8 RGB, C-contiguous.

    A tightly packed rgb8 message is returned as a read-only view of the message's own buffer; all else is a new array.
    16-bit values keep their upper 8 bits. YUV is BT.601 with limited range, as OpenCV and cv_bridge read it. Bayer
    patterns are demosaiced bilinearly.

    Raises:
        FrameError: zero size, unknown encoding, a step shorter than a row, odd size with subsampled chroma, missing
        data.
    """
    encoding = _known_encoding(msg)
    rows = _rows_of(msg, encoding)
    return encoding.to_rgb(rows, int(msg.width), bool(msg.is_bigendian))


def rgb_from_compressed(msg: CompressedImage) -> U8:
    """Return a JPEG, PNG or WebP of a sensor_msgs/CompressedImage as (height_px, width_px, 3) uint8 RGB.

    The contents decide the format, not `msg.format`, which publishers fill in differently. 16-bit PNGs keep their upper
    8 bits.

    Raises:
        FrameError: no data, data that no decoder accepts, or a file that ends early (see decode_rgb).
    """
    return decode_rgb(_byte_view(msg.data), f"CompressedImage.data of format {msg.format!r}")


# dtype and number of channels of each encoding that is published.
PUBLISHED_ENCODINGS: dict[str, tuple[type[np.generic], int]] = {
    "mono8": (np.uint8, 1),
    "rgb8": (np.uint8, 3),
    "32FC1": (np.float32, 1),
}


def image_from_array(pixels: npt.NDArray[Any], encoding: str, header: Header) -> Image:
    """Return a tightly packed sensor_msgs/Image of an array; the data is copied.

    pixels: (H, W) uint8 for mono8, (H, W, 3) uint8 RGB for rgb8, (H, W) float32 for 32FC1; any strides. The header is
    not copied.

    Raises:
        FrameError: an encoding other than those, or an array whose dtype or shape does not fit it.
    """
    if encoding not in PUBLISHED_ENCODINGS:
        raise FrameError(unknown_name("published encoding", encoding, PUBLISHED_ENCODINGS))
    dtype, channels = PUBLISHED_ENCODINGS[encoding]
    shape_fits = pixels.ndim == 2 if channels == 1 else pixels.ndim == 3 and pixels.shape[2] == channels
    if pixels.dtype != dtype or not shape_fits or pixels.size == 0:
        expected = "(H, W)" if channels == 1 else f"(H, W, {channels})"
        raise FrameError(
            f"got an array of shape {pixels.shape} and dtype {pixels.dtype} for {encoding!r}; "
            f"expected {expected} and {np.dtype(dtype)}, not empty"
        )
    msg = Image()
    msg.header = header
    msg.height, msg.width = pixels.shape[:2]
    msg.encoding = encoding
    msg.is_bigendian = int(sys.byteorder == "big")
    msg.step = msg.width * channels * pixels.dtype.itemsize
    msg.data = _byte_array(pixels)
    return msg


def compressed_from_array(pixels: U8, header: Header, format: str = "jpeg", quality: int = 90) -> CompressedImage:
    """Return a sensor_msgs/CompressedImage of (H, W, 3) uint8 RGB or (H, W) uint8.

    format: jpeg or png (lossless; for masks and labels). quality: of a JPEG, 1 to 100.
    """
    if format not in ("jpeg", "png"):
        raise FrameError(unknown_name("compressed image format", format, ("jpeg", "png")))
    if (
        pixels.dtype != np.uint8
        or pixels.size == 0
        or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3))
    ):
        raise FrameError(
            f"got an array of shape {pixels.shape} and dtype {pixels.dtype} to compress; "
            "expected (H, W, 3) or (H, W) uint8"
        )
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    options = [cv2.IMWRITE_JPEG_QUALITY, int(quality)] if format == "jpeg" else []
    done, encoded = cv2.imencode(".jpg" if format == "jpeg" else ".png", bgr, options)
    if not done:
        raise FrameError(f"OpenCV could not encode an image of shape {pixels.shape} as {format}")
    msg = CompressedImage()
    msg.header = header
    msg.format = format
    msg.data = _byte_array(encoded)
    return msg


def scaled_camera_info(msg: CameraInfo, width_px: int, height_px: int) -> CameraInfo:
    """Return the CameraInfo of the same image resized to width_px x height_px.

    Pixel centres are at integer coordinates, as in OpenCV's camera model, and a resize maps the image's outer edges
    onto each other, as cv2.resize does: u' = (u + 0.5) * s - 0.5, so fx' = s * fx but cx' = s * (cx + 0.5) - 0.5. The
    region of interest and
    the binning of the input, which K and P of a CameraInfo leave out, are folded into K and P: the result describes
    the resized image itself, with no region of interest and no binning. D, R, the distortion model and the header are
    copied. An uncalibrated K or P (first element zero) stays as it is.

    Raises:
        FrameError: a calibrated message that does not state the image size, or an output size below one pixel.
    """
    if width_px < 1 or height_px < 1:
        raise FrameError(f"cannot scale a camera to {width_px}x{height_px} pixels; expected at least 1x1")
    source_width, source_height = msg.roi.width or msg.width, msg.roi.height or msg.height
    calibrated = msg.k[0] != 0 or msg.p[0] != 0
    if calibrated and (source_width == 0 or source_height == 0):
        raise FrameError(
            f"CameraInfo is calibrated but its size is {msg.width}x{msg.height}; "
            "set width and height to those of the calibration"
        )
    scaled = copy.copy(msg)
    scaled.width, scaled.height = width_px, height_px
    scaled.binning_x = scaled.binning_y = 0
    scaled.roi = RegionOfInterest()
    if calibrated:
        scale_x, scale_y = width_px / source_width, height_px / source_height
        # Moving the origin to the region of interest and to the pixel's corner, scaling, and moving it back is one
        # matrix.
        to_output = np.array(
            [
                [scale_x, 0.0, (0.5 - msg.roi.x_offset) * scale_x - 0.5],
                [0.0, scale_y, (0.5 - msg.roi.y_offset) * scale_y - 0.5],
                [0.0, 0.0, 1.0],
            ]
        )
        if msg.k[0] != 0:
            scaled.k = (to_output @ np.asarray(msg.k, np.float64).reshape(3, 3)).ravel()
        if msg.p[0] != 0:
            scaled.p = (to_output @ np.asarray(msg.p, np.float64).reshape(3, 4)).ravel()
    return scaled


def _known_encoding(msg: Image) -> Encoding:
    if msg.encoding not in ENCODINGS:
        raise FrameError(unknown_name("Image.encoding", msg.encoding, ENCODINGS))
    encoding = ENCODINGS[msg.encoding]
    if msg.width == 0 or msg.height == 0:
        raise FrameError(f"Image.width x Image.height is {msg.width}x{msg.height}; expected at least one pixel")
    if encoding.even_width and msg.width % 2:
        raise FrameError(
            f"Image.width is {msg.width}; {msg.encoding} shares chroma between columns, the width must be even"
        )
    if encoding.even_height and msg.height % 2:
        raise FrameError(
            f"Image.height is {msg.height}; {msg.encoding} shares chroma between rows, the height must be even"
        )
    return encoding


def _rows_of(msg: Image, encoding: Encoding) -> U8:
    """Return the message's bytes as (rows, width_px * bytes_per_pixel) uint8, a view that leaves out the row
    padding."""
    row_bytes = int(msg.width) * encoding.bytes_per_pixel
    step, rows = int(msg.step), int(msg.height) * encoding.rows_per_two // 2
    if step < row_bytes:
        raise FrameError(
            f"Image.step is {step}; expected at least {row_bytes}, the bytes of {msg.width} pixels of {msg.encoding}"
        )
    data = _byte_view(msg.data)
    if data.size < step * rows:
        raise FrameError(
            f"Image.data is truncated: {data.size} bytes; {msg.width}x{msg.height} {msg.encoding} with step {step} "
            f"takes {step * rows} bytes"
        )
    return data[: step * rows].reshape(rows, step)[:, :row_bytes]


def _byte_view(data: object) -> U8:
    """Return array.array, bytes or an array as a flat uint8 view."""
    if len(data) == 0:  # type: ignore[arg-type]
        return np.empty(0, np.uint8)
    try:
        return np.frombuffer(data, np.uint8)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError) as error:
        raise FrameError(
            f"data is a {type(data).__name__}, not a byte buffer ({error}); expected array.array('B') or bytes"
        ) from None


def _byte_array(pixels: npt.NDArray[Any]) -> array.array[int]:
    # Of all ways to fill a uint8[] field this is the fastest by far: the setter takes array.array as a block.
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(pixels).data.cast("B"))
    return data


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


def _mono16(rows: U8, width_px: int, big: bool) -> U8:
    # The upper byte of each value is the value >> 8: no swap, no shift.
    upper = np.ascontiguousarray(rows[:, (0 if big else 1) :: 2])
    return _u8(cv2.cvtColor(upper, cv2.COLOR_GRAY2RGB))


def _bayer16(code: int) -> Callable[[U8, int, bool], U8]:
    def to_rgb(rows: U8, width_px: int, big: bool) -> U8:
        values = np.ascontiguousarray(rows).view(">u2" if big else "<u2").astype(np.uint16, copy=False)
        return _upper_byte(cv2.cvtColor(values, code))

    return to_rgb


def _planar_420(code: int) -> Callable[[U8, int, bool], U8]:
    def to_rgb(rows: U8, width_px: int, _big: bool) -> U8:
        return _u8(cv2.cvtColor(np.ascontiguousarray(rows), code))

    return to_rgb


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

ENCODINGS: dict[str, Encoding] = {
    "rgb8": Encoding(3, _rgb8),
    "bgr8": _BGR8,
    "rgba8": Encoding(4, _by_color_code(cv2.COLOR_RGBA2RGB, 4)),
    "bgra8": Encoding(4, _by_color_code(cv2.COLOR_BGRA2RGB, 4)),
    "mono8": _MONO8,
    "mono16": Encoding(2, _mono16),
    # OpenCV-style names carry no channel meaning; grey and OpenCV's own BGR order are what their publishers mean.
    "8UC1": _MONO8,
    "8UC3": _BGR8,
    "uyvy": _UYVY,
    "yuv422": _UYVY,
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
    "nv12": Encoding(1, _planar_420(cv2.COLOR_YUV2RGB_NV12), even_width=True, even_height=True, rows_per_two=3),
    "nv21": Encoding(1, _planar_420(cv2.COLOR_YUV2RGB_NV21), even_width=True, even_height=True, rows_per_two=3),
    **{f"bayer_{pattern}8": Encoding(1, _by_color_code(code, 1)) for pattern, code in _BAYER.items()},
    **{f"bayer_{pattern}16": Encoding(2, _bayer16(code)) for pattern, code in _BAYER.items()},
}
"""Encoding name of sensor_msgs/Image -> layout and conversion."""
