"""ROS image messages to numpy arrays and back.

Field meanings are those of sensor_msgs/msg/Image.msg, CompressedImage.msg and CameraInfo.msg and of REP 118 (depth
images); core/encodings.py reads the pixels. Nothing here needs rclpy: any object with the fields of the message will
do, so a message that was read from a bag by the rosbags library converts as well.
"""

from __future__ import annotations

import array
import copy
import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header

from anomseg_ros.core.encodings import U8, ImageFields, byte_view, rgb_from_fields
from anomseg_ros.core.image_files import decode_rgb
from anomseg_ros.errors import FrameError, unknown_name


def rgb_from_image(msg: Image) -> U8:
    """Return the pixels of a sensor_msgs/Image as (height_px, width_px, 3) uint8 RGB; see core.encodings.

    Raises:
        FrameError: zero size, unknown encoding, a step shorter than a row, odd size with subsampled chroma, missing
        data.
    """
    return rgb_from_fields(ImageFields.of(msg))


def rgb_from_compressed(msg: CompressedImage) -> U8:
    """Return a JPEG, PNG or WebP of a sensor_msgs/CompressedImage as (height_px, width_px, 3) uint8 RGB.

    The contents decide the format, not `msg.format`, which publishers fill in differently. 16-bit PNGs keep their upper
    8 bits.

    Raises:
        FrameError: no data, data that no decoder accepts, or a file that ends early (see decode_rgb).
    """
    return decode_rgb(byte_view(msg.data), f"CompressedImage.data of format {msg.format!r}")


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


def _byte_array(pixels: npt.NDArray[Any]) -> array.array[int]:
    # Of all ways to fill a uint8[] field this is the fastest by far: the setter takes array.array as a block.
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(pixels).data.cast("B"))
    return data
