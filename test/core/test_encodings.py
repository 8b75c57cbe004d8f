from __future__ import annotations

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
def test_values_keep_every_bit(encoding: str, code: str, big: bool, padding: int) -> None:
    values = RANDOM.integers(0, 200, (5, 7)).astype(np.dtype(code).newbyteorder(">" if big else "<"))
    read = values_from_fields(fields(values, encoding, padding, big))
    assert read.dtype == np.dtype(code) and read.dtype.isnative
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("padding", [0, 3])
def test_bgr_is_turned_and_padding_left_out(padding: int) -> None:
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
def test_bad_values_name_the_field(changed: dict[str, object], text: str) -> None:
    with pytest.raises(FrameError, match=text):
        values_from_fields(fields(np.zeros((5, 7), np.uint8), "mono8")._replace(**changed))


def test_every_encoding_gives_rgb_of_the_images_size() -> None:
    for name, encoding in ENCODINGS.items():
        rows = RANDOM.integers(0, 256, (8 * encoding.rows_per_two // 2, 12 * encoding.bytes_per_pixel), np.uint8)
        image = ImageFields(8, 12, name, False, rows.shape[1], rows.tobytes())
        assert rgb_from_fields(image).shape == (8, 12, 3), name
