from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.core.bundle import InputSpec
from anomseg_ros.core.preprocess import resized_labels, resized_scores, tensor_from_frame
from anomseg_ros.errors import FrameError


def frame(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_frame_of_the_input_size_is_not_copied() -> None:
    pixels = frame(8, 16)
    tensor = tensor_from_frame(pixels, InputSpec(8, 16))
    assert tensor.shape == (1, 8, 16, 3)
    assert np.shares_memory(tensor, pixels)


def test_bgr_input_gets_bgr() -> None:
    pixels = frame(8, 16)
    tensor = tensor_from_frame(pixels, InputSpec(8, 16, channel_order="bgr"))
    assert (tensor[0] == pixels[..., ::-1]).all()
    assert tensor.flags.c_contiguous


def test_resizing_keeps_mean_and_borders() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 200
    tensor = tensor_from_frame(pixels, InputSpec(16, 32))
    assert tensor.shape == (1, 16, 32, 3)
    assert (tensor[0, :, 0] == 0).all() and (tensor[0, :, -1] == 200).all()
    assert tensor.mean() == pytest.approx(100, abs=1)


def test_label_resizing_creates_no_new_values() -> None:
    labels = np.array([[0, 7], [11, 255]], np.uint8)
    assert set(np.unique(resized_labels(labels, 9, 13))) == {0, 7, 11, 255}
    assert resized_labels(labels, 2, 2) is labels


def test_scores_are_interpolated() -> None:
    scores = np.array([[0.0, 1.0]], np.float32)
    resized = resized_scores(scores, 1, 4)
    assert resized.dtype == np.float32
    assert resized[0] == pytest.approx([0.0, 0.25, 0.75, 1.0])


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_invalid_frames_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(FrameError, match=r"non-empty uint8 \(H, W, 3\) RGB"):
        tensor_from_frame(bad, InputSpec(8, 8))
