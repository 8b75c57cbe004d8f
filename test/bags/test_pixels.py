from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from anomseg_ros.bags.pixels import frame_from_message, labels_from_message, scores_from_message
from anomseg_ros.errors import FrameError

RANDOM = np.random.default_rng(12)
MASK = RANDOM.integers(0, 20, (6, 9), np.uint8)


def raw(pixels: np.ndarray, encoding: str) -> SimpleNamespace:
    data = np.ascontiguousarray(pixels).view(np.uint8).reshape(-1)
    step = data.size // len(pixels)
    return SimpleNamespace(
        height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, is_bigendian=0, step=step, data=data
    )


def encoded(suffix: str, pixels: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(format=suffix, data=cv2.imencode(f".{suffix}", pixels)[1])


def test_labels_are_read_from_raw_and_png() -> None:
    np.testing.assert_array_equal(labels_from_message(raw(MASK, "mono8")), MASK)
    np.testing.assert_array_equal(labels_from_message(encoded("png", MASK)), MASK)


@pytest.mark.parametrize(
    "message",
    [
        encoded("jpg", MASK),
        encoded("png", np.dstack([MASK] * 3)),
        raw(MASK.astype(np.uint16), "16UC1"),
        raw(np.dstack([MASK] * 3), "rgb8"),
    ],
)
def test_labels_not_lossless_single_channel_are_refused(message: SimpleNamespace) -> None:
    with pytest.raises(FrameError, match=r"expected PNG|cannot be read as one channel|one-channel Image"):
        labels_from_message(message)


def test_scores_are_read_from_32fc1_only() -> None:
    scores = RANDOM.normal(size=(6, 9)).astype(np.float32)
    np.testing.assert_array_equal(scores_from_message(raw(scores, "32FC1")), scores)
    for message in (raw(MASK, "mono8"), encoded("png", MASK)):
        with pytest.raises(FrameError, match="expected 32FC1"):
            scores_from_message(message)


def test_frames_are_read_from_raw_and_compressed() -> None:
    rgb = RANDOM.integers(0, 256, (6, 9, 3), np.uint8)
    np.testing.assert_array_equal(frame_from_message(raw(rgb[..., ::-1], "bgr8")), rgb)
    np.testing.assert_array_equal(frame_from_message(encoded("png", rgb[..., ::-1])), rgb)
