from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from anomseg_ros.core.labels import UNLABELLED
from anomseg_ros.datasets.transforms import CAMERA, LIGHT, PADDING, WARPS, WEATHER, AugmentConfig, augment
from anomseg_ros.errors import ConfigError

HEIGHT, WIDTH = 40, 60
LABELS = np.add.outer(np.arange(HEIGHT) // 8, np.arange(WIDTH) // 8 * 5).astype(np.uint8)
IMAGE = np.stack([LABELS * 3, 255 - LABELS * 3, LABELS * 3], -1).astype(np.uint8)
"""A frame whose colours encode its labels, so that tests can compare image and labels."""


def config(**changes: Any) -> AugmentConfig:
    return AugmentConfig(**{**{"crop_height_px": 24, "crop_width_px": 32, "flip": 0.0}, **changes})


def draw(seed: int = 0, padding_label: int = UNLABELLED, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    return augment(IMAGE, LABELS, config(**changes), np.random.default_rng(seed), padding_label)


def test_crop_without_changes_is_a_part_of_the_frame() -> None:
    corners = set()
    for seed in range(20):
        image, labels = draw(seed)
        assert image.shape == (24, 32, 3) and labels.shape == (24, 32)
        assert np.array_equal(image[..., 0], labels * 3)
        corners.add(int(labels[0, 0]))
    assert len(corners) > 3


def test_input_frame_is_not_modified() -> None:
    before = IMAGE.copy(), LABELS.copy()
    for seed in range(5):
        image, labels = draw(seed, flip=0.5, scale=(0.5, 2.0), gain=(0.5, 1.5), noise_sigma=20.0)
        image[:], labels[:] = 0, 0
    assert np.array_equal(IMAGE, before[0]) and np.array_equal(LABELS, before[1])


def test_same_generator_state_gives_the_same_sample() -> None:
    changes: dict[str, Any] = {"flip": 0.5, "scale": (0.5, 2.0), "gain": (0.5, 1.5), "tint": 0.1, "blur_sigma_px": 2.0}
    first, again, other = (draw(seed, noise_sigma=9.0, **changes) for seed in (7, 7, 8))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_flip_mirrors_image_and_labels() -> None:
    whole = {"crop_height_px": HEIGHT, "crop_width_px": WIDTH}
    image, labels = draw(flip=1.0, **whole)
    assert np.array_equal(image, IMAGE[:, ::-1]) and np.array_equal(labels, LABELS[:, ::-1])
    flipped = [not np.array_equal(draw(seed, flip=0.3, **whole)[1], LABELS) for seed in range(200)]
    assert 0.2 < np.mean(flipped) < 0.4


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.9])
def test_image_and_labels_stay_aligned_at_every_scale(scale: float) -> None:
    for seed in range(10):
        image, labels = draw(seed, scale=(scale, scale))
        known = labels != UNLABELLED
        off = np.abs(image[..., 0].astype(int) - labels.astype(int) * 3) > 3
        assert off[known].mean() < (0.0 if scale == 1 else 0.5) + 1e-9
        middle = np.abs(image[..., 0].astype(int) - labels.astype(int) * 3)[known]
        assert np.median(middle) <= 3


def test_larger_scale_enlarges_regions() -> None:
    def steps(scale: float) -> float:
        """Return the mean number of label edges per row."""
        rows = [np.count_nonzero(np.diff(draw(seed, scale=(scale, scale))[1], axis=1)) / 24 for seed in range(20)]
        return float(np.mean(rows))

    assert steps(2.0) == pytest.approx(steps(1.0) / 2, rel=0.25)


def test_shrunken_frame_is_padded_below_and_on_the_right() -> None:
    for label in (UNLABELLED, 253):
        image, labels = draw(padding_label=label, scale=(0.5, 0.5))  # 20x30 of the 24x32
        assert (labels[21:] == label).all() and (labels[:, 31:] == label).all()
        assert (labels[:20, :30] != label).all()
        assert (image[22:] == PADDING).all()


def test_gain_gamma_and_tint_change_the_colours() -> None:
    flat = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)

    def mean(**changes: Any) -> np.ndarray:
        image, _ = augment(flat, LABELS, config(**changes), np.random.default_rng(0))
        return np.asarray(image.reshape(-1, 3).mean(0))

    assert mean() == pytest.approx([100] * 3)
    assert mean(gain=(1.5, 1.5)) == pytest.approx([150] * 3)
    assert mean(gamma=(2.0, 2.0)) == pytest.approx([round(255 * (100 / 255) ** 2)] * 3)
    tinted = mean(tint=0.2)
    assert np.ptp(tinted) > 5 and (np.abs(tinted - 100) <= 20).all()


def test_grey_blur_and_noise_change_their_share_of_frames() -> None:
    noisy = np.random.default_rng(1).integers(60, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)

    def changed(**changes: Any) -> float:
        sharp = (augment(noisy, LABELS, config(), np.random.default_rng(seed))[0] for seed in range(200))
        other = (augment(noisy, LABELS, config(**changes), np.random.default_rng(seed))[0] for seed in range(200))
        return float(np.mean([not np.array_equal(a, b) for a, b in zip(sharp, other, strict=True)]))

    assert 0.15 < changed(blur_sigma_px=2.0) < 0.35
    assert 0.15 < changed(noise_sigma=8.0) < 0.35
    assert 0.4 < changed(grey=0.5) < 0.6


def test_disabled_effects_draw_no_random_numbers() -> None:
    after, plain = np.random.default_rng(3), np.random.default_rng(3)
    augment(IMAGE, LABELS, config(scale=(0.5, 2.0), gain=(0.5, 1.5)), after)
    plain.random(), plain.uniform(0, 1), plain.integers(0, 9), plain.integers(0, 9)  # flip, scale, place
    plain.uniform(0, 1), plain.uniform(0, 1), plain.uniform(0, 1, 3)  # gain, gamma, tint
    assert after.bit_generator.state == plain.bit_generator.state


def test_whole_frame_is_resized_to_the_crop_at_any_scale() -> None:
    for seed in range(5):
        image, labels = draw(seed, whole_frame=1.0, scale=(2.0, 2.0), aspect=(0.5, 2.0))
        assert np.array_equal(labels, cv2.resize(LABELS, (32, 24), interpolation=cv2.INTER_NEAREST_EXACT))
        assert np.array_equal(image, cv2.resize(IMAGE, (32, 24), interpolation=cv2.INTER_AREA))
    size: dict[str, Any] = {"crop_height_px": HEIGHT, "crop_width_px": WIDTH, "scale": (2.0, 2.0)}
    whole = [np.array_equal(draw(seed, whole_frame=0.4, **size)[1], LABELS) for seed in range(200)]
    assert 0.3 < np.mean(whole) < 0.5


@pytest.mark.parametrize("name", [*WARPS, *WEATHER, *LIGHT, *CAMERA])
def test_effects_change_their_share_of_frames_and_are_repeatable(name: str) -> None:
    size: dict[str, Any] = {"crop_height_px": HEIGHT, "crop_width_px": WIDTH}
    changed = [not np.array_equal(draw(seed, **{**size, name: 0.4})[0], IMAGE) for seed in range(100)]
    assert 0.25 < np.mean(changed) < 0.55
    before = IMAGE.copy()
    first, again, other = (draw(seed, **{**size, name: 1.0}) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0]) and np.array_equal(IMAGE, before)
    assert first[0].flags.c_contiguous and first[1].flags.c_contiguous
    if name not in WARPS:
        assert np.array_equal(first[1], LABELS)


def test_frame_has_at_most_one_weather() -> None:
    shares: dict[str, Any] = {"fog": 0.5, "snow": 0.5}
    for seed in range(10):
        both = draw(seed, **shares)[0]
        # One random number selects the weather, as with a single share.
        alone = draw(seed, fog=0.5)[0] if not np.array_equal(draw(seed, fog=0.5)[0], draw(seed)[0]) else None
        assert not np.array_equal(both, draw(seed)[0])
        assert alone is None or np.array_equal(both, alone)


def test_warped_labels_keep_their_values() -> None:
    special = LABELS.copy()
    special[:, ::7], special[:, 1::7], special[:, 2::7], special[:, 3::7] = 252, 253, 254, 255
    for seed in range(10):
        _, labels = augment(IMAGE, special, config(mount=1.0, lens=1.0), np.random.default_rng(seed), 251)
        assert set(np.unique(labels)) <= {*np.unique(special).tolist(), 251}


def test_objects_are_pasted_before_weather_light_and_camera() -> None:
    def paste(image: np.ndarray, labels: np.ndarray, _: float) -> tuple[np.ndarray, np.ndarray]:
        image, labels = image.copy(), labels.copy()
        image[4:20, 4:20], labels[4:20, 4:20] = (255, 0, 255), 254
        return image, labels

    for seed in range(5):
        image, labels = augment(IMAGE, LABELS, config(night=1.0), np.random.default_rng(seed), UNLABELLED, paste)
        assert (labels[4:20, 4:20] == 254).all() and image[4:20, 4:20, 0].mean() < 250
    plain, _ = augment(IMAGE, LABELS, config(), np.random.default_rng(0), UNLABELLED, paste)
    assert (plain[4:20, 4:20] == (255, 0, 255)).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_height_px": 0},
        {"scale": (0.0, 1.0)},
        {"scale": (2.0, 1.0)},
        {"aspect": (1.0, 0.5)},
        {"gain": (-1.0, 1.0)},
        {"flip": 1.5},
        {"flip": float("nan")},
        {"tint": -0.1},
        {"noise_sigma": -1.0},
        {"whole_frame": 1.5},
        {"lens": -0.5},
        {"jpeg": 2.0},
        {"fog": 0.6, "snow": 0.5},
    ],
)
def test_invalid_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes)).partition("_px")[0].replace("crop_height", "crop")):
        config(**changes)
