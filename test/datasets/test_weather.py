from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from anomseg_ros.datasets.camera_effects import blur_motion, change_response, compress_jpeg, sharpen, shift_colours
from anomseg_ros.datasets.transforms import LIGHT, WEATHER
from anomseg_ros.datasets.weather import add_fog, add_glare, add_grain, add_haze, add_rain, add_snow, make_night

HEIGHT, WIDTH, HORIZON = 96, 160, 40.0


def scene() -> np.ndarray:
    """Return a bright sky over textured ground."""
    rng = np.random.default_rng(0)
    image = rng.integers(40, 140, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[: int(HORIZON)] = cv2.GaussianBlur(rng.integers(200, 250, (40, WIDTH, 3), dtype=np.uint8), (0, 0), 2)
    return image


def mean_of(effect: Callable[..., np.ndarray], image: np.ndarray, *place: float) -> np.ndarray:
    """Return the mean of ten draws, float (H, W, 3)."""
    drawn = [effect(image, *place, np.random.default_rng(seed)) for seed in range(10)]
    return np.mean(np.stack(drawn).astype(np.float64), axis=0)


def contrast(image: np.ndarray, rows: slice) -> float:
    return float(np.asarray(image, np.float64)[rows].std())


@pytest.mark.parametrize("name", [*WEATHER, *LIGHT])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (31, 77)])
@pytest.mark.parametrize("horizon_px", [-300.0, 0.0, 15.0, 900.0])
def test_weather_and_light_accept_any_size_and_horizon(name: str, shape: tuple[int, int], horizon_px: float) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = image.copy()
    for seed in range(3):
        changed = {**WEATHER, **LIGHT}[name](image, horizon_px, np.random.default_rng(seed))
        assert changed.shape == image.shape and changed.dtype == np.uint8 and changed is not image
    assert np.array_equal(image, before)


def test_fog_reduces_the_contrast_of_far_ground_most() -> None:
    image = scene()
    for seed in range(5):
        foggy = add_fog(image, HORIZON, np.random.default_rng(seed))
        far = contrast(foggy, slice(41, 47)) / contrast(image, slice(41, 47))
        near = contrast(foggy, slice(88, 96)) / contrast(image, slice(88, 96))
        assert far < 0.9 * near and near < 1.0


def test_haze_reduces_the_contrast_of_near_ground() -> None:
    image = scene()
    assert contrast(add_haze(image, HORIZON, np.random.default_rng(0)), slice(88, 96)) < 0.95 * contrast(
        image, slice(88, 96)
    )


@pytest.mark.parametrize("effect", [add_rain, add_snow])
def test_rain_and_snow_brighten_some_pixels_of_dark_ground(effect: Callable[..., np.ndarray]) -> None:
    dark = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    for seed in range(5):
        fallen = effect(dark, -1e6, np.random.default_rng(seed))  # horizon far above the frame: no mist
        bright = (fallen[..., 1] > 55).mean()
        assert 0.002 < bright < 0.95


def test_night_darkens_the_sky_more_than_the_ground() -> None:
    image = scene()
    dark = mean_of(make_night, image, HORIZON)
    sky, ground = (slice(0, 30), slice(50, 96))
    assert dark[ground].mean() < 0.8 * image[ground].mean()
    assert dark[sky].mean() / image[sky].mean() < 0.6 * dark[ground].mean() / image[ground].mean()


def test_glare_never_darkens() -> None:
    for level in (20, 120):
        image = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
        for seed in range(6):
            lit = add_glare(image, HORIZON, np.random.default_rng(seed))
            assert (lit >= level - 1).all() and lit.max() > level + 40


def test_grain_has_the_given_deviation_and_no_bias() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = add_grain(grey, 6.0, np.random.default_rng(0)).astype(np.float64)
    assert noisy.std() == pytest.approx(6.0, rel=0.03) and noisy.mean() == pytest.approx(128.0, abs=0.2)


@pytest.mark.parametrize("effect", [blur_motion, change_response, compress_jpeg, sharpen, shift_colours])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (31, 77)])
def test_camera_effects_accept_any_size(effect: Callable[..., np.ndarray], shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = image.copy()
    for seed in range(3):
        changed = effect(image, np.random.default_rng(seed))
        assert changed.shape == image.shape and changed.dtype == np.uint8
    assert np.array_equal(image, before)


def test_camera_effects_change_contrast_and_colours_as_named() -> None:
    image = scene()
    rng = np.random.default_rng
    ground = slice(50, 96)
    for seed in range(5):
        assert contrast(blur_motion(image, rng(seed)), ground) < contrast(image, ground)
        assert contrast(sharpen(image, rng(seed)), ground) > contrast(image, ground)
        shifted = shift_colours(image, rng(seed))
        assert np.array_equal(shifted[..., 1], image[..., 1]) and not np.array_equal(shifted[..., 0], image[..., 0])
        jpeg = compress_jpeg(image, rng(seed)).astype(int)
        assert abs(jpeg.mean() - image.mean()) < 2 and not np.array_equal(jpeg, image)
    # Red stays red. With RGB and BGR confused, JPEG would blur it like blue or swap the channels.
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    assert np.abs(compress_jpeg(red, rng(0)).astype(int) - red).max() < 12


def test_response_curves_rise_and_may_tint_grey() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (2, 1, 3))
    for seed in range(20):
        curved = change_response(ramp, np.random.default_rng(seed)).astype(int)
        assert (np.diff(curved.sum(-1)[0]) >= -3).all()
    assert np.ptp(curved[0, 128]) > 0
