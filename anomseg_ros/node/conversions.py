"""Convert ROS image messages to numpy arrays and back.

The fields have the meanings of sensor_msgs/msg/Image.msg, CompressedImage.msg and CameraInfo.msg and of REP 118 (depth
images); core/encodings.py reads the pixels. This module does not need rclpy: it accepts any object with the fields of
the message, for example a message that the rosbags library has read from a bag.
"""

from __future__ import annotations

import array
import copy
import sys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from anomseg_ros.core.compressed_image import rgb_from_compressed_message
from anomseg_ros.core.encodings import U8, ImageFields, rgb_from_fields
from anomseg_ros.errors import FrameError, unknown_name


def rgb_from_image(msg: Image) -> U8:
    """Return the pixels of a sensor_msgs/Image as (height_px, width_px, 3) uint8 RGB; see core.encodings.

    Raises FrameError: zero size, unknown encoding, a step shorter than a row, an odd size with subsampled chroma, or
    missing data.
    """
    return rgb_from_fields(ImageFields.of(msg))


def rgb_from_compressed(msg: CompressedImage) -> U8:
    """Return the pixels of a sensor_msgs/CompressedImage (JPEG, PNG or WebP) as (height_px, width_px, 3) uint8 RGB.

    Raises FrameError; see core.compressed_image.
    """
    return rgb_from_compressed_message(msg)


PUBLISHED_ENCODINGS: dict[str, tuple[type[np.generic], int]] = {
    "mono8": (np.uint8, 1),
    "rgb8": (np.uint8, 3),
    "32FC1": (np.float32, 1),
}
"""Encoding of a published image -> its dtype and number of channels."""


def image_from_array(pixels: npt.NDArray[Any], encoding: str, header: Header) -> Image:
    """Return a tightly packed sensor_msgs/Image of an array. Copies the pixels, but not the header.

    pixels: (H, W) uint8 for mono8, (H, W, 3) uint8 RGB for rgb8, (H, W) float32 for 32FC1; any strides. Raises
    FrameError for another encoding, or an array whose dtype or shape does not fit the encoding.
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
    """Return a sensor_msgs/CompressedImage of an array.

    Args:
        pixels: (H, W, 3) uint8 RGB or (H, W) uint8.
        header: header of the message; not copied.
        format: jpeg, or png (lossless) for masks and labels.
        quality: JPEG quality, 1 to 100.

    Raises:
        FrameError: an unknown format, an array of another shape or dtype, or an error of the encoder.
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
    succeeded, encoded = cv2.imencode(".jpg" if format == "jpeg" else ".png", bgr, options)
    if not succeeded:
        raise FrameError(f"OpenCV could not encode an image of shape {pixels.shape} as {format}")
    msg = CompressedImage()
    msg.header = header
    msg.format = format
    msg.data = _byte_array(encoded)
    return msg


def stamp_ns_of(header: Header) -> int:
    """Return a header's stamp in nanoseconds."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def age_ms_of(header: Header, now_ns: int) -> float | None:
    """Return the age of a header's stamp in milliseconds, negative for a stamp in the future; None for stamp 0."""
    stamp_ns = stamp_ns_of(header)
    return (now_ns - stamp_ns) / 1e6 if stamp_ns else None


def camera_info_of(
    header: Header, frame_size: tuple[int, int], camera_infos: Sequence[CameraInfo]
) -> CameraInfo | None:
    """Return the CameraInfo with the frame's stamp, or else the newest with stamp 0, which applies to every frame.

    header: of the frame. frame_size: width and height, pixels. camera_infos: oldest first; the result is None if there
    are none. Raises FrameError if all of them belong to other frames, or if the image size does not match.
    """
    if not camera_infos:
        return None
    newest_first = camera_infos[::-1]
    stamps = (header.stamp, Time())
    info = next((info for stamp in stamps for info in newest_first if info.header.stamp == stamp), None)
    if info is None:
        newest, stamp = newest_first[0].header.stamp, header.stamp
        raise FrameError(
            f"no CameraInfo has the frame's stamp {stamp.sec}.{stamp.nanosec:09}, the newest has "
            f"{newest.sec}.{newest.nanosec:09}; publish one with every image, or one with stamp 0 for all images"
        )
    width, height = info.roi.width or info.width, info.roi.height or info.height
    binned = width // max(info.binning_x, 1), height // max(info.binning_y, 1)
    if binned != frame_size and binned != (0, 0):
        raise FrameError(
            f"CameraInfo is for {binned[0]}x{binned[1]} pixels, the frame has {frame_size[0]}x{frame_size[1]}; "
            "calibrate the camera at the size that it sends"
        )
    return info


def scaled_camera_info(msg: CameraInfo, width_px: int, height_px: int) -> CameraInfo:
    """Return the CameraInfo of the same image after a resize to width_px x height_px.

    Pixel centres are at integer coordinates, as in OpenCV's camera model, and a resize maps the image's outer edges
    onto each other, as cv2.resize does: u' = (u + 0.5) * s - 0.5, so fx' = s * fx but cx' = s * (cx + 0.5) - 0.5. K and
    P of a CameraInfo leave out its region of interest and its binning. Both are folded into the new K and P, so that
    the result describes the resized image itself, with neither. D, R, the distortion model and the header are copied.
    An uncalibrated K or P (first element zero) is not changed.

    Raises FrameError for a calibrated message without an image size, an output size below one pixel, or a matrix that
    is not finite.
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
        # One matrix moves the origin to the region of interest and to the pixel's corner, scales, and moves it back.
        to_output = np.array(
            [
                [scale_x, 0.0, (0.5 - msg.roi.x_offset) * scale_x - 0.5],
                [0.0, scale_y, (0.5 - msg.roi.y_offset) * scale_y - 0.5],
                [0.0, 0.0, 1.0],
            ]
        )
        if msg.k[0] != 0:
            scaled.k = _product(to_output, np.asarray(msg.k, np.float64).reshape(3, 3), "k")
        if msg.p[0] != 0:
            scaled.p = _product(to_output, np.asarray(msg.p, np.float64).reshape(3, 4), "p")
    return scaled


def _product(to_output: npt.NDArray[np.float64], matrix: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):
        product = (to_output @ matrix).ravel()
    if not np.isfinite(product).all():
        raise FrameError(
            f"CameraInfo.{name} is {matrix.ravel().tolist()}; expected finite numbers: calibrate the camera again"
        )
    return product


def _byte_array(pixels: npt.NDArray[Any]) -> array.array[int]:
    # By far the fastest way to fill a uint8[] field: the setter takes array.array as a block.
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(pixels).data.cast("B"))
    return data
