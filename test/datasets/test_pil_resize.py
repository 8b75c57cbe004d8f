from __future__ import annotations

import numpy as np
import PIL
import pytest
from PIL import Image

from anomseg_ros.datasets.pil_resize import resize_bilinear, resize_nearest
from anomseg_ros.errors import FrameError

CAMERA_SIZES = [(720, 1280), (1080, 1920), (1024, 2048), (360, 480), (512, 1024), (512, 700), (300, 1024)]


def noise(height_px: int, width_px: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng([seed, height_px, width_px])
    return generator.integers(0, 256, (height_px, width_px, channels), dtype=np.uint8)


@pytest.mark.parametrize(("height_px", "width_px"), CAMERA_SIZES)
def test_camera_frames_equal_pillow(height_px: int, width_px: int) -> None:
    image = noise(height_px, width_px)
    for filter_, ours in ((Image.Resampling.BILINEAR, resize_bilinear), (Image.Resampling.NEAREST, resize_nearest)):
        expected = np.asarray(Image.fromarray(image).resize((1024, 512), filter_))
        assert np.array_equal(ours(image, 512, 1024), expected)


def test_random_sizes_equal_pillow() -> None:
    generator = np.random.default_rng(7)
    for case in range(150):
        height_px, width_px, to_height_px, to_width_px = map(int, generator.integers(1, 150, 4))
        # Pillow 13 changed the order of the passes if the height shrinks more than the width.
        to_height_px = max(to_height_px, height_px) if case % 3 else to_height_px
        image = noise(height_px, width_px, case)
        image = np.where(image > 127, 255, 0).astype(np.uint8) if case % 2 else image
        image = image[:, :, 0].copy() if case % 5 == 0 else image
        picture, size = Image.fromarray(image), (to_width_px, to_height_px)
        nearest = np.asarray(picture.resize(size, Image.Resampling.NEAREST))
        assert np.array_equal(resize_nearest(image, to_height_px, to_width_px), nearest)
        if to_height_px >= height_px or int(PIL.__version__.split(".")[0]) < 13:
            bilinear = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
            assert np.array_equal(resize_bilinear(image, to_height_px, to_width_px), bilinear)


def test_horizontal_pass_comes_first() -> None:
    """The vertical pass first would give 160 and 150."""
    image = [[95, 130, 194], [217, 207, 235], [15, 163, 33], [215, 217, 130], [248, 189, 16], [69, 184, 232]]
    assert resize_bilinear(np.array(image, np.uint8), 1, 2).tolist() == [[160, 151]]


def test_frame_of_the_target_size_is_returned_unchanged() -> None:
    image = noise(20, 30)
    assert resize_bilinear(image, 20, 30) is image and resize_nearest(image, 20, 30) is image


def test_unsupported_arrays_and_sizes_are_refused() -> None:
    with pytest.raises(FrameError, match="float32 pixels of shape"):
        resize_bilinear(np.zeros((2, 2, 3), np.float32), 1, 1)
    with pytest.raises(FrameError, match="to 0 x 5 pixels"):
        resize_nearest(np.zeros((2, 2), np.uint8), 0, 5)
    with pytest.raises(FrameError, match=r"shape \(2, 2, 5\)"):
        resize_nearest(np.zeros((2, 2, 5), np.uint8), 1, 5)
