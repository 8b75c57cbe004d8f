from __future__ import annotations

import time

import numpy as np
import pytest

from anomseg_ros.datasets.pil_resize import resize_bilinear, resize_nearest
from anomseg_ros.errors import FrameError

Image = pytest.importorskip("PIL.Image", reason="Pillow is absent; it comes with the extra `dev`")

CAMERA_SIZES = [(720, 1280), (1080, 1920), (1024, 2048), (360, 480), (512, 1024), (512, 700), (300, 1024)]


def noise(height_px: int, width_px: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng([seed, height_px, width_px])
    return generator.integers(0, 256, (height_px, width_px, channels), dtype=np.uint8)


@pytest.mark.parametrize(("height_px", "width_px"), CAMERA_SIZES)
def test_frames_equal_pillow(height_px: int, width_px: int) -> None:
    image = noise(height_px, width_px)
    for filter_, ours in ((Image.BILINEAR, resize_bilinear), (Image.NEAREST, resize_nearest)):
        expected = np.asarray(Image.fromarray(image).resize((1024, 512), filter_))
        assert np.array_equal(ours(image, 512, 1024), expected)


def test_any_sizes_equal_pillow() -> None:
    generator = np.random.default_rng(7)
    for case in range(150):
        height_px, width_px, to_height_px, to_width_px = map(int, generator.integers(1, 150, 4))
        # Pillow 13 changed the order of its passes where the height shrinks more than the width.
        to_height_px = max(to_height_px, height_px) if case % 3 else to_height_px
        image = noise(height_px, width_px, case)
        image = np.where(image > 127, 255, 0).astype(np.uint8) if case % 2 else image
        image = image[:, :, 0].copy() if case % 5 == 0 else image
        picture, size = Image.fromarray(image), (to_width_px, to_height_px)
        nearest = np.asarray(picture.resize(size, Image.NEAREST))
        assert np.array_equal(resize_nearest(image, to_height_px, to_width_px), nearest)
        if to_height_px >= height_px or int(Image.__version__.split(".")[0]) < 13:
            bilinear = np.asarray(picture.resize(size, Image.BILINEAR))
            assert np.array_equal(resize_bilinear(image, to_height_px, to_width_px), bilinear)


def test_extremes_stay_in_range() -> None:
    for value in (0, 255):
        image = np.full((97, 131, 3), value, np.uint8)
        assert (resize_bilinear(image, 33, 257) == value).all()


def test_it_is_fast_enough_for_frames() -> None:
    image = noise(1080, 1920)
    resize_bilinear(image, 512, 1024)
    durations_s = []
    for _ in range(5):
        start_s = time.perf_counter()
        resize_bilinear(image, 512, 1024)
        durations_s.append(time.perf_counter() - start_s)
    # 16 ms on an idle core; threads of OpenBLAS waiting for each other made this 1500 ms on a busy machine.
    assert min(durations_s) < 0.2


def test_other_arrays_are_refused() -> None:
    with pytest.raises(FrameError, match="float32 pixels of shape"):
        resize_bilinear(np.zeros((2, 2, 3), np.float32), 1, 1)  # type: ignore[arg-type]
    with pytest.raises(FrameError, match="to 0 x 5 pixels"):
        resize_nearest(np.zeros((2, 2), np.uint8), 0, 5)
