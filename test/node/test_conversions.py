from __future__ import annotations

import array
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip("sensor_msgs.msg", reason="needs the ROS message packages: pip install '.[ros]'")

from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from anomseg_ros.core import encodings
from anomseg_ros.errors import FrameError
from anomseg_ros.node import conversions

RANDOM = np.random.default_rng(7)
RGB = RANDOM.integers(0, 256, (6, 10, 3), np.uint8)


def message(
    rows: np.ndarray, height_px: int, width_px: int, encoding: str, padding: int = 0, big: bool = False
) -> Image:
    """Image message whose rows are those of `rows`, (rows, row bytes) uint8, each followed by `padding` bytes of
    noise."""
    noise = RANDOM.integers(0, 256, (len(rows), padding), np.uint8)
    data = np.concatenate([rows, noise], axis=1)
    msg = Image(height=height_px, width=width_px, encoding=encoding, is_bigendian=int(big), step=data.shape[1])
    msg.header.frame_id = "camera"
    msg.data = array.array("B", data.tobytes())
    return msg


def flat(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)


def mosaic(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """What a sensor with this colour filter sees: pattern names the 2x2 cell row by row."""
    channel = {"r": 0, "g": 1, "b": 2}
    raw = np.empty(rgb.shape[:2], rgb.dtype)
    for cell, name in enumerate(pattern):
        y, x = divmod(cell, 2)
        raw[y::2, x::2] = rgb[y::2, x::2, channel[name]]
    return raw


@pytest.mark.parametrize("padding", [0, 1, 7, 64])
@pytest.mark.parametrize(
    ("encoding", "order"),
    [("rgb8", (0, 1, 2)), ("bgr8", (2, 1, 0)), ("8UC3", (2, 1, 0)), ("rgba8", (0, 1, 2, 0)), ("bgra8", (2, 1, 0, 1))],
)
def test_colour_encodings_become_rgb_without_padding(encoding: str, order: tuple[int, ...], padding: int) -> None:
    rgb = conversions.rgb_from_image(message(flat(RGB[..., order]), 6, 10, encoding, padding))
    np.testing.assert_array_equal(rgb, RGB)
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous


def test_unpadded_rgb8_is_read_only_view_of_message() -> None:
    msg = message(flat(RGB), 6, 10, "rgb8")
    rgb = conversions.rgb_from_image(msg)
    assert np.shares_memory(rgb, np.frombuffer(msg.data, np.uint8))
    msg.data[0] = (int(RGB[0, 0, 0]) + 1) % 256
    assert rgb[0, 0, 0] == msg.data[0]
    with pytest.raises(ValueError, match="read-only"):
        rgb[0, 0, 0] = 1


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey_image_is_repeated_in_three_channels(encoding: str, padding: int) -> None:
    rgb = conversions.rgb_from_image(message(RGB[..., 0], 6, 10, encoding, padding))
    np.testing.assert_array_equal(rgb, np.repeat(RGB[..., :1], 3, axis=2))


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("big", [False, True])
def test_mono16_keeps_the_upper_byte_in_either_byte_order(big: bool, padding: int) -> None:
    values = RANDOM.integers(0, 65536, (6, 10), np.uint16)
    rgb = conversions.rgb_from_image(
        message(flat(values.astype(">u2" if big else "<u2")), 6, 10, "mono16", padding, big)
    )
    np.testing.assert_array_equal(rgb, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_reconstructs_flat_colour_and_keeps_measured_pixels(pattern: str, padding: int) -> None:
    colour = np.broadcast_to(np.array([200, 90, 30], np.uint8), (8, 12, 3))
    rgb = conversions.rgb_from_image(message(mosaic(colour, pattern), 8, 12, f"bayer_{pattern}8", padding))
    np.testing.assert_array_equal(rgb, colour)
    noisy = RANDOM.integers(0, 256, (8, 12, 3), np.uint8)
    rgb = conversions.rgb_from_image(message(mosaic(noisy, pattern), 8, 12, f"bayer_{pattern}8", padding))
    # Away from the border a bilinear demosaic keeps what each pixel measured.
    np.testing.assert_array_equal(mosaic(rgb, pattern)[2:-2, 2:-2], mosaic(noisy, pattern)[2:-2, 2:-2])


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer16_respects_byte_order_and_padding(pattern: str, big: bool) -> None:
    colour = np.broadcast_to(np.array([51234, 23456, 4321], np.uint16), (8, 12, 3))
    raw = mosaic(colour, pattern).astype(">u2" if big else "<u2")
    rgb = conversions.rgb_from_image(message(flat(raw), 8, 12, f"bayer_{pattern}16", 5, big))
    np.testing.assert_array_equal(rgb, colour >> 8)


def yuv_to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """BT.601, limited range (ITU-R BT.601-7, section 2.5.3), in floating point."""
    y, u, v = (1.164383 * (y.astype(float) - 16), u.astype(float) - 128, v.astype(float) - 128)
    rgb = np.stack([y + 1.596027 * v, y - 0.391762 * u - 0.812968 * v, y + 2.017232 * u], axis=-1)
    return np.clip(rgb, 0, 255)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize(
    ("encoding", "order"), [("uyvy", "uyvy"), ("yuv422", "uyvy"), ("yuyv", "yuyv"), ("yuv422_yuy2", "yuyv")]
)
def test_packed_yuv_422_becomes_rgb(encoding: str, order: str, padding: int) -> None:
    y, u, v = (RANDOM.integers(16, 236, shape, np.uint8) for shape in [(6, 10), (6, 5), (6, 5)])
    packed = np.empty((6, 20), np.uint8)
    planes = {"u": u, "v": v}
    packed[:, (1 if order == "uyvy" else 0) :: 2] = y
    for offset, name in enumerate(order):
        if name != "y":
            packed[:, offset::4] = planes[name]
    rgb = conversions.rgb_from_image(message(packed, 6, 10, encoding, padding))
    expected = yuv_to_rgb(y, u.repeat(2, axis=1), v.repeat(2, axis=1))
    assert np.abs(rgb - expected).max() <= 2


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_semi_planar_yuv_420_becomes_rgb(encoding: str, padding: int) -> None:
    y, u, v = (RANDOM.integers(16, 236, shape, np.uint8) for shape in [(6, 10), (3, 5), (3, 5)])
    chroma = np.stack([u, v] if encoding == "nv12" else [v, u], axis=-1).reshape(3, 10)
    rgb = conversions.rgb_from_image(message(np.concatenate([y, chroma]), 6, 10, encoding, padding))
    expected = yuv_to_rgb(y, u.repeat(2, 0).repeat(2, 1), v.repeat(2, 0).repeat(2, 1))
    assert rgb.shape == (6, 10, 3)
    assert np.abs(rgb - expected).max() <= 2


def changed(**fields: object) -> Image:
    msg = message(flat(RGB), 6, 10, "rgb8")
    for name, value in fields.items():
        setattr(msg, name, value)
    return msg


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"data": array.array("B", bytes(179))}, r"Image\.data is truncated: 179 bytes.*180"),
        ({"data": array.array("B")}, r"Image\.data is truncated: 0 bytes"),
        ({"step": 29}, r"Image\.step is 29.*30"),
        ({"step": 0}, r"Image\.step is 0"),
        ({"width": 0}, r"Image\.width x Image\.height is 0x6"),
        ({"height": 0}, r"is 10x0"),
        ({"height": 4_000_000_000}, r"Image\.data is truncated"),
        ({"encoding": "bgr"}, r"unknown Image\.encoding 'bgr'; known: bgr8"),
        ({"encoding": ""}, r"unknown Image\.encoding ''"),
        ({"encoding": "nv12", "width": 9}, r"Image\.width is 9; nv12"),
        ({"encoding": "nv12", "height": 5}, r"Image\.height is 5; nv12"),
        ({"encoding": "uyvy", "width": 9}, r"Image\.width is 9; uyvy"),
    ],
)
def test_bad_image_error_names_field(fields: dict[str, object], text: str) -> None:
    with pytest.raises(FrameError, match=text):
        conversions.rgb_from_image(changed(**fields))


def test_nv12_with_padding_of_exact_size_is_read() -> None:
    # Six rows of luma and three of chroma, 20 bytes each, are the 180 bytes there are.
    padded = changed(encoding="nv12", height=6, width=10, step=20)
    assert conversions.rgb_from_image(padded).shape == (6, 10, 3)


def test_nv12_without_chroma_plane_is_refused() -> None:
    with pytest.raises(FrameError, match=r"60 bytes; 10x6 nv12 with step 10 takes 90 bytes"):
        conversions.rgb_from_image(message(RGB[..., 0], 6, 10, "nv12"))


def compressed(suffix: str, pixels: np.ndarray, cut: int = 0) -> CompressedImage:
    data = cv2.imencode(suffix, pixels)[1].tobytes()
    return CompressedImage(format=suffix[1:], data=data[: len(data) - cut])


def photo() -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8)


def test_compressed_colour_images_become_rgb() -> None:
    rgb = photo()
    np.testing.assert_array_equal(conversions.rgb_from_compressed(compressed(".png", rgb[..., ::-1])), rgb)
    assert np.abs(conversions.rgb_from_compressed(compressed(".jpg", rgb[..., ::-1])).astype(int) - rgb).max() < 30
    assert np.abs(conversions.rgb_from_compressed(compressed(".webp", rgb[..., ::-1])).astype(int) - rgb).mean() < 5


def test_compressed_grey_and_16_bit_png_become_8_bit_rgb() -> None:
    values = RANDOM.integers(0, 65536, (5, 8), np.uint16)
    rgb = conversions.rgb_from_compressed(compressed(".png", values))
    np.testing.assert_array_equal(rgb, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))
    colour = RANDOM.integers(0, 65536, (5, 8, 3), np.uint16)
    np.testing.assert_array_equal(conversions.rgb_from_compressed(compressed(".png", colour)), colour[..., ::-1] >> 8)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("cut", [2, 12, 400])
def test_truncated_files_are_refused(suffix: str, cut: int) -> None:
    noise = RANDOM.integers(0, 256, (48, 64, 3), np.uint8)
    with pytest.raises(FrameError, match="truncated"):
        conversions.rgb_from_compressed(compressed(suffix, noise, cut))


def test_jpeg_thumbnail_end_marker_does_not_hide_truncation() -> None:
    whole = cv2.imencode(".jpg", photo())[1].tobytes()
    thumbnail = b"Exif\0\0" + cv2.imencode(".jpg", photo()[:8, :8])[1].tobytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = whole[:2] + segment + whole[2:]
    assert conversions.rgb_from_compressed(CompressedImage(format="jpeg", data=with_thumbnail)).shape == (48, 64, 3)
    with pytest.raises(FrameError, match="truncated JPEG"):
        conversions.rgb_from_compressed(CompressedImage(format="jpeg", data=with_thumbnail[:-40]))


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\nIEND", bytes(1000)])
def test_compressed_data_that_is_not_an_image_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError, match=r"CompressedImage\.data"):
        conversions.rgb_from_compressed(CompressedImage(format="jpeg", data=data))


def header() -> Header:
    stamped = Header(frame_id="front")
    stamped.stamp.sec, stamped.stamp.nanosec = 12, 34
    return stamped


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("mono8", RGB[..., 0]),
        ("rgb8", RGB),
        ("rgb8", RGB[::-1, ::2]),
        ("mono8", np.asfortranarray(RGB[..., 1])),
        ("32FC1", RANDOM.normal(size=(6, 10)).astype(np.float32)),
        ("32FC1", RANDOM.normal(size=(10, 6)).astype(np.float32).T),
    ],
)
def test_image_from_array_holds_pixels_and_header(encoding: str, pixels: np.ndarray) -> None:
    msg = conversions.image_from_array(pixels, encoding, header())
    assert (msg.height, msg.width, msg.encoding) == (*pixels.shape[:2], encoding)
    assert msg.step * msg.height == len(msg.data) == pixels.nbytes
    assert bool(msg.is_bigendian) == (sys.byteorder == "big")
    assert (msg.header.frame_id, msg.header.stamp.sec, msg.header.stamp.nanosec) == ("front", 12, 34)
    np.testing.assert_array_equal(np.frombuffer(msg.data, pixels.dtype).reshape(pixels.shape), pixels)
    if encoding != "32FC1":
        expected = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        np.testing.assert_array_equal(conversions.rgb_from_image(msg), expected)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("mono8", RGB),
        ("rgb8", RGB[..., 0]),
        ("rgb8", RGB[..., :2]),
        ("32FC1", np.zeros((2, 2))),
        ("mono8", np.zeros((0, 4), np.uint8)),
        ("16UC1", np.zeros((2, 2), np.uint16)),
    ],
)
def test_arrays_not_matching_encoding_are_refused(encoding: str, pixels: np.ndarray) -> None:
    with pytest.raises(FrameError, match=r"expected|known"):
        conversions.image_from_array(pixels, encoding, header())


def test_compressed_output_round_trip() -> None:
    png = conversions.compressed_from_array(photo()[:, ::-1], header(), "png")
    np.testing.assert_array_equal(conversions.rgb_from_compressed(png), photo()[:, ::-1])
    assert png.format == "png" and png.header.frame_id == "front"
    low, high = (
        len(conversions.compressed_from_array(photo(), header(), quality=quality).data) for quality in (30, 95)
    )
    assert low < high
    with pytest.raises(FrameError, match="known: jpeg"):
        conversions.compressed_from_array(photo(), header(), "jpg")


def camera(width_px: int = 1920, height_px: int = 1080) -> CameraInfo:
    msg = CameraInfo(width=width_px, height=height_px, distortion_model="plumb_bob", header=header())
    msg.d = array.array("d", [0.1, -0.2, 0.001, 0.002, 0.05])
    msg.k = np.array([1000.0, 0, 960.2, 0, 990.0, 540.7, 0, 0, 1])
    msg.p = np.array([1001.0, 0, 961.2, -120.12, 0, 991.0, 541.7, 0, 0, 0, 1, 0])
    return msg


def project(matrix: np.ndarray, point: np.ndarray) -> np.ndarray:
    u, v, w = matrix @ point
    return np.array([u / w, v / w])


def test_scaled_camera_info_projects_into_resized_image() -> None:
    msg = camera()
    scaled = conversions.scaled_camera_info(msg, 1024, 512)
    assert (scaled.width, scaled.height) == (1024, 512)
    assert list(scaled.d) == list(msg.d) and list(scaled.r) == list(msg.r) and scaled.distortion_model == "plumb_bob"
    scale = np.array([1024 / 1920, 512 / 1080])
    for name, shape, point in [
        ("k", (3, 3), np.array([0.3, -0.2, 2.0])),
        ("p", (3, 4), np.array([0.3, -0.2, 2.0, 1.0])),
    ]:
        before, after = (project(np.array(getattr(m, name)).reshape(shape), point) for m in (msg, scaled))
        np.testing.assert_allclose(after, (before + 0.5) * scale - 0.5)
    assert msg.width == 1920 and msg.k[0] == 1000.0


def test_scaled_camera_info_uses_pixel_centre_convention_of_resize() -> None:
    # A bright 4x4 block halved by cv2.resize becomes a 2x2 block; its centre must be where the scaled camera says.
    pixels = np.zeros((16, 16), np.float32)
    pixels[4:8, 8:12] = 1
    half = cv2.resize(pixels, (8, 8), interpolation=cv2.INTER_AREA)
    centre = np.argwhere(half > 0).mean(axis=0)[::-1]
    msg = CameraInfo(width=16, height=16)
    msg.k = np.array([1.0, 0, 9.5, 0, 1.0, 5.5, 0, 0, 1])  # principal point at the block's centre
    scaled = conversions.scaled_camera_info(msg, 8, 8)
    assert (scaled.k[2], scaled.k[5]) == tuple(centre)


def test_scaled_camera_info_includes_roi_and_binning() -> None:
    msg = camera()
    msg.roi.x_offset, msg.roi.y_offset, msg.roi.width, msg.roi.height = 100, 50, 800, 400
    msg.binning_x = msg.binning_y = 2
    scaled = conversions.scaled_camera_info(msg, 400, 200)  # the size of the image as published
    assert (scaled.binning_x, scaled.roi.width, scaled.roi.x_offset) == (0, 0, 0)
    point = np.array([0.1, -0.1, 2.0])
    full = project(np.array(msg.k).reshape(3, 3), point)
    np.testing.assert_allclose(project(np.array(scaled.k).reshape(3, 3), point), (full - [100, 50] + 0.5) / 2 - 0.5)


def test_scaled_camera_info_uncalibrated_and_without_size() -> None:
    scaled = conversions.scaled_camera_info(CameraInfo(), 64, 32)
    assert not any(scaled.k) and not any(scaled.p) and scaled.width == 64
    with pytest.raises(FrameError, match="size is 0x0"):
        conversions.scaled_camera_info(camera(0, 0), 64, 32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.7e308])
@pytest.mark.parametrize(("name", "size"), [("k", 9), ("p", 12)])
def test_non_finite_calibration_is_refused(name: str, size: int, value: float) -> None:
    msg = camera(100, 50)
    values = np.ones(size)
    values[1] = value
    setattr(msg, name, values)
    with pytest.raises(FrameError, match=rf"CameraInfo\.{name} is .* expected finite numbers"):
        conversions.scaled_camera_info(msg, 1000, 500)


def test_every_encoding_matches_cv_bridge() -> None:
    bridge = pytest.importorskip("cv_bridge").CvBridge()
    for name, encoding in encodings.ENCODINGS.items():
        if name in ("nv12", "8UC1", "8UC3", "nv21"):  # cv_bridge has no colour conversion for these
            continue
        rows = RANDOM.integers(0, 256, (8, 12 * encoding.bytes_per_pixel), np.uint8)
        msg = message(rows, 8, 12, name)
        # cv_bridge rounds 16 bit to 8 bit, we keep the upper byte.
        tolerance = 1 if "16" in name else 0
        difference = conversions.rgb_from_image(msg).astype(int) - bridge.imgmsg_to_cv2(msg, "rgb8")
        assert np.abs(difference).max() <= tolerance, name
    for pixels, name in [(RGB, "rgb8"), (RGB[..., 0], "mono8"), (RGB[..., 0].astype(np.float32), "32FC1")]:
        ours, theirs = conversions.image_from_array(pixels, name, Header()), bridge.cv2_to_imgmsg(pixels, name)
        assert ours == theirs
