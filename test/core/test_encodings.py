from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anomseg_ros.core.encodings import ENCODINGS, ImageFields, rgb_from_fields, values_from_fields
from anomseg_ros.errors import FrameError

RANDOM = np.random.default_rng(11)


def fields(pixels: np.ndarray, encoding: str, padding: int = 0, big: bool = False) -> ImageFields:
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(len(pixels), -1)
    rows = np.concatenate([rows, RANDOM.integers(0, 256, (len(rows), padding), np.uint8)], axis=1)
    return ImageFields(pixels.shape[0], pixels.shape[1], encoding, big, rows.shape[1], rows.tobytes())


@pytest.mark.parametrize("padding", [0, 1, 6])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("encoding", "code"), [("mono8", "u1"), ("8UC1", "u1"), ("16UC1", "u2"), ("32FC1", "f4")])
def test_single_channel_values_are_unchanged(encoding: str, code: str, big: bool, padding: int) -> None:
    values = RANDOM.integers(0, 200, (5, 7)).astype(np.dtype(code).newbyteorder(">" if big else "<"))
    read = values_from_fields(fields(values, encoding, padding, big))
    assert read.dtype == np.dtype(code) and read.dtype.isnative
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("padding", [0, 3])
def test_bgr_is_converted_and_row_padding_ignored(padding: int) -> None:
    rgb = RANDOM.integers(0, 256, (4, 6, 3), np.uint8)
    np.testing.assert_array_equal(rgb_from_fields(fields(rgb[..., ::-1], "bgr8", padding)), rgb)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"encoding": "rgb8"}, "one-channel Image.encoding 'rgb8'"),
        ({"step": 6}, "Image.step is 6; expected at least 7"),
        ({"data": bytes(34)}, "Image.data is truncated: 34 bytes"),
        ({"width_px": 0}, "0x5; expected at least one pixel"),
        ({"data": [1, 2, 3]}, "is a list, not a byte buffer"),
    ],
)
def test_invalid_message_error_names_the_field(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(FrameError, match=text):
        values_from_fields(fields(np.zeros((5, 7), np.uint8), "mono8")._replace(**changed))


def test_every_encoding_gives_rgb_of_the_image_size() -> None:
    for name, encoding in ENCODINGS.items():
        rows = RANDOM.integers(0, 256, (8 * encoding.rows_per_two // 2, 12 * encoding.bytes_per_pixel), np.uint8)
        image = ImageFields(8, 12, name, False, rows.shape[1], rows.tobytes())
        assert rgb_from_fields(image).shape == (8, 12, 3), name


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("encoding", "channels", "order"),
    [
        ("rgb16", 3, (0, 1, 2)),
        ("bgr16", 3, (2, 1, 0)),
        ("rgba16", 4, (0, 1, 2)),
        ("bgra16", 4, (2, 1, 0)),
        ("16UC3", 3, (2, 1, 0)),
        ("16UC4", 4, (2, 1, 0)),
        ("16UC1", 1, (0, 0, 0)),
        ("mono16", 1, (0, 0, 0)),
    ],
)
def test_16_bit_images_keep_the_upper_byte(
    encoding: str, channels: int, order: tuple[int, ...], big: bool, padding: int
) -> None:
    values = RANDOM.integers(0, 65536, (5, 7, channels)).astype(np.dtype("u2").newbyteorder(">" if big else "<"))
    rgb = rgb_from_fields(fields(values, encoding, padding, big))
    np.testing.assert_array_equal(rgb, (values.astype(np.uint16) >> 8).astype(np.uint8)[..., order])


def test_8uc4_is_read_as_bgra() -> None:
    values = RANDOM.integers(0, 256, (5, 7, 4), np.uint8)
    np.testing.assert_array_equal(rgb_from_fields(fields(values, "8UC4")), values[..., 2::-1])


@pytest.mark.parametrize("padding", [0, 5])
def test_nv24_gives_the_colours_of_nv12(padding: int) -> None:
    height, width = 6, 8
    luma = RANDOM.integers(16, 236, (height, width), np.uint8)
    chroma = np.repeat(np.repeat(RANDOM.integers(16, 241, (height // 2, width // 2, 2), np.uint8), 2, 0), 2, 1)
    small = np.concatenate([luma, chroma[::2, ::2].reshape(height // 2, width)])
    expected = rgb_from_fields(ImageFields(height, width, "nv12", False, width, small.tobytes()))
    whole = np.concatenate([luma, chroma.reshape(2 * height, width)])
    padded = np.pad(whole, ((0, 0), (0, padding)))
    read = rgb_from_fields(ImageFields(height, width, "nv24", False, width + padding, padded.tobytes()))
    np.testing.assert_array_equal(read, expected)
    # Image.msg defines the size of the data as step times height, for planar encodings, too.
    for encoding, planes, rows in (("nv24", whole, 3), ("nv12", small, 1.5)):
        by_message = ImageFields(height, width, encoding, False, int(width * rows), planes.tobytes())
        np.testing.assert_array_equal(rgb_from_fields(by_message), expected)
