from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from paste_samples import Counting, disc

from anomseg_ros.core.labels import CITYSCAPES
from anomseg_ros.errors import ConfigError
from anomseg_ros.outliers.cut_paste import OUTLIER, PasteConfig, paste_objects
from anomseg_ros.outliers.distractors import GROUND_KINDS, SURFACE_KINDS, Scene, add_distractors
from anomseg_ros.outliers.looks import FrameLooks, edge_width_px, matched, measure, noise_level
from anomseg_ros.outliers.objects import ProceduralObjects

PLAIN = PasteConfig(objects=(1, 1), scale=(1, 1), tone_match=0, feather_radius_px=0)
ALL = PasteConfig(
    placement="road",
    min_area_px=60,
    feather_range_px=(0.5, 1.5),
    max_upscale=4.0,
    cut_share=0.2,
    cut_objects="border",
    color_match=(0.0, 0.8),
    blur_match=(0.0, 1.0),
    noise_match=(0.0, 1.0),
    lighting=0.3,
    jpeg_share=0.5,
    shadow=0.7,
    distractor_share=0.7,
)


def steps(seed: int = 0) -> np.ndarray:
    """Return blocks of 16 px in random greys, uint8 (160, 160)."""
    return np.kron(np.random.default_rng(seed).integers(40, 220, (10, 10)), np.ones((16, 16))).astype(np.uint8)


@pytest.mark.parametrize("sigma_px", [1.0, 1.5, 2.5])
def test_edge_width_is_measured(sigma_px: float) -> None:
    blurred = np.asarray(cv2.GaussianBlur(steps(), (0, 0), sigma_px), np.uint8)
    assert edge_width_px(blurred) == pytest.approx(sigma_px, rel=0.3)
    half = np.zeros_like(blurred)
    half[:, :80] = 1
    sharp_beside = np.where(half, blurred, steps())
    assert edge_width_px(
        sharp_beside.astype(np.uint8), np.asarray(cv2.erode(half, np.ones((9, 9))), np.uint8)
    ) == pytest.approx(sigma_px, rel=0.35)
    assert edge_width_px(np.full((20, 20), 90, np.uint8)) == 0


@pytest.mark.parametrize("sigma", [2.0, 6.0])
def test_noise_level_is_measured(sigma: float) -> None:
    noise = np.random.default_rng(0).normal(120, sigma, (120, 160))
    assert noise_level(np.clip(noise.round(), 0, 255).astype(np.uint8)) == pytest.approx(sigma, rel=0.1)


def match_looks(
    config: PasteConfig, frame: FrameLooks, image: np.ndarray, below: np.ndarray, seed: int = 0
) -> np.ndarray:
    alpha = np.full(image.shape[:2], 255, np.uint8)
    return matched(image, alpha, below, frame, config, np.random.default_rng(seed))


def test_color_match_moves_the_mean_to_the_surroundings() -> None:
    image, below = cv2.merge([steps(1), steps(2), steps(3)]), np.full((160, 160, 3), (30, 60, 90), np.uint8)
    frame = FrameLooks(1.0, 0.0, np.array([40.0, 40.0, 40.0]))
    own = image.reshape(-1, 3).mean(axis=0)
    for share in (0.0, 0.5, 1.0):
        found = match_looks(replace(PLAIN, color_match=(share, share), lighting=1e-9), frame, image, below)
        assert found.reshape(-1, 3).mean(axis=0) == pytest.approx(
            (1 - share) * own + share * np.array([30, 60, 90]), abs=9
        )
    assert found.std() < 0.95 * image.std()


def test_blur_match_blurs_only_sharp_objects() -> None:
    sharp = cv2.merge([steps(1)] * 3)
    soft = cv2.GaussianBlur(sharp, (0, 0), 2.5)
    frame = FrameLooks(2.0, 0.0, np.full(3, 50.0))
    config = replace(PLAIN, blur_match=(1.0, 1.0))
    found = match_looks(config, frame, sharp, sharp)[:, :, 0].round().astype(np.uint8)
    assert edge_width_px(found) == pytest.approx(2.0, rel=0.3)
    assert np.array_equal(match_looks(config, frame, soft, sharp), soft.astype(np.float32))


def test_noise_match_adds_the_noise_of_the_frame_to_clean_objects() -> None:
    clean = np.full((120, 120, 3), 120, np.uint8)
    noisy = np.clip(np.random.default_rng(1).normal(120, 8, clean.shape).round(), 0, 255).astype(np.uint8)
    config, frame = replace(PLAIN, noise_match=(1.0, 1.0)), FrameLooks(1.0, 8.0, np.full(3, 50.0))
    assert match_looks(config, frame, clean, clean).std() == pytest.approx(8, rel=0.1)
    grey = cv2.cvtColor(noisy, cv2.COLOR_RGB2GRAY)
    frame = FrameLooks(1.0, noise_level(grey), np.full(3, 50.0))
    assert np.array_equal(match_looks(config, frame, noisy, noisy), noisy)


def test_lighting_and_jpeg_change_the_object() -> None:
    flat, frame = np.full((64, 64, 3), 120, np.uint8), FrameLooks(1.0, 0.0, np.full(3, 50.0))
    lit = [match_looks(replace(PLAIN, lighting=0.4), frame, flat, flat, seed) for seed in range(9)]
    assert max(np.ptp(one) for one in lit) > 30 and all(one.min() >= 72 and one.max() <= 168 for one in lit)
    noisy = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not np.array_equal(match_looks(replace(PLAIN, jpeg_share=1.0), frame, noisy, noisy), noisy)
    assert np.array_equal(match_looks(PLAIN, frame, noisy, noisy), noisy)


def test_measure_covers_the_whole_frame() -> None:
    image = np.stack([steps(1), steps(2), np.full((160, 160), 9, np.uint8)], axis=2)
    looks = measure(image)
    assert looks.contrast == pytest.approx(image.reshape(-1, 3).std(axis=0)) and looks.edge_px > 0


def test_feather_radius_varies_within_its_range() -> None:
    image, labels = np.zeros((200, 200, 3), np.uint8), np.zeros((200, 200), np.uint8)
    rims = []
    for seed in range(12):
        config = replace(PLAIN, feather_range_px=(0.5, 4.0))
        pasted, _ = paste_objects(image, labels, Counting(disc(80)), np.random.default_rng(seed), config)
        rims.append(int(((pasted[:, :, 0] > 10) & (pasted[:, :, 0] < 190)).sum()))
    assert max(rims) > 3 * min(rims)


# --- shadows and distractors ---


def road(height: int = 200, width: int = 400) -> tuple[np.ndarray, np.ndarray]:
    labels = np.full((height, width), 2, np.uint8)
    labels[height // 2 :] = 0
    return np.random.default_rng(0).integers(100, 140, (height, width, 3), dtype=np.uint8), labels


def test_shadows_darken_the_ground_and_keep_labels() -> None:
    image, labels = road()
    config = replace(PLAIN, placement="road", free_share=0.0, min_area_px=100, size_m=(0.5, 0.8))
    for seed in range(8):
        found = [
            paste_objects(
                image,
                labels,
                Counting(disc(50)),
                np.random.default_rng(seed),
                replace(config, shadow=share),
                classes=CITYSCAPES,
            )
            for share in (0.0, 1.0)
        ]
        (plain, without), (shaded, marked) = found
        assert np.array_equal(without, marked)
        changed = (shaded != plain).any(axis=2)
        assert changed.any() and not changed[marked == OUTLIER].any()
        assert (shaded[changed].astype(int) <= plain[changed]).all()
        foot = np.flatnonzero((marked == OUTLIER).any(axis=1))[-1]
        columns = np.flatnonzero((marked == OUTLIER).any(axis=0))
        assert foot + 2 >= len(changed) or changed[foot - 2 : foot + 4, columns[0] : columns[-1] + 1].any()


@pytest.mark.parametrize("kind", sorted({*GROUND_KINDS, *SURFACE_KINDS}, key=str))
def test_distractors_change_only_pixels_of_their_classes(kind: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomseg_ros.outliers.distractors.GROUND_KINDS", (kind,))
    monkeypatch.setattr("anomseg_ros.outliers.distractors.SURFACE_KINDS", (kind,))
    image, labels = road()
    labels[:, 150:250] = 13  # cars get no distractors
    kept = labels.copy()
    changed = np.zeros_like(labels, bool)
    for seed in range(10):
        scene = Scene(image.copy(), labels, CITYSCAPES, [road()], horizon_px=60.0)
        add_distractors(scene, PasteConfig(feather_range_px=(0.5, 2)), np.random.default_rng(seed))
        changed |= (scene.image != image).any(axis=2)
        again = Scene(image.copy(), labels, CITYSCAPES, [road()], horizon_px=60.0)
        add_distractors(again, PasteConfig(feather_range_px=(0.5, 2)), np.random.default_rng(seed))
        assert np.array_equal(scene.image, again.image)
    assert np.array_equal(labels, kept)
    assert changed[labels == 0].any() and not changed[labels == 13].any()


def test_distractors_are_in_their_share_of_frames_and_keep_labels() -> None:
    image, labels = road()
    changed = []
    for seed in range(40):
        config = replace(PLAIN, distractor_share=0.5, low_share=1.0)
        pasted, marked = paste_objects(
            image,
            labels,
            Counting(disc(30)),
            np.random.default_rng(seed),
            config,
            (image,),
            CITYSCAPES,
            None,
            (labels,),
        )
        known = marked != OUTLIER
        assert np.array_equal(marked[known], labels[known])
        changed.append(bool((pasted != image).any(axis=2)[known].any()))
    assert 0.3 < np.mean(changed) < 0.7


def test_frames_without_classes_get_distractors() -> None:
    image, labels = road()
    scene = Scene(image.copy(), np.full_like(labels, 255), ())
    add_distractors(scene, PasteConfig(distractors=(5, 5)), np.random.default_rng(0))
    assert (scene.image != image).any()


def test_all_options_together_are_repeatable_and_label_only_objects() -> None:
    image, labels = road(256, 512)
    for seed in range(25):
        arguments = ((image,), CITYSCAPES, 60.0, (labels,))
        first, again = (
            paste_objects(image, labels, ProceduralObjects(), np.random.default_rng(seed), ALL, *arguments)
            for _ in "ab"
        )
        assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
        outlier = first[1] == OUTLIER
        assert outlier.any() and np.array_equal(first[1][~outlier], labels[~outlier])
        assert outlier.mean() <= ALL.max_share


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"placement": "raod"}, r"unknown paste: placement 'raod'; known: road"),
        ({"cut_objects": "bordr"}, r"unknown paste: cut_objects 'bordr'; known: border"),
        ({"horizon": (0.6, 0.5)}, r"horizon is \(0.6, 0.5\)"),
        ({"horizon": (0.5, 1.0)}, r"horizon is"),
        ({"size_m": (0.0, 2.0)}, r"size_m is .* in metres"),
        ({"camera_height_m": (2.0, 1.0)}, r"camera_height_m is"),
        ({"max_upscale": 0.0}, r"max_upscale is 0.0"),
        ({"feather_range_px": (2.0, 1.0)}, r"feather_range_px is"),
        ({"color_match": (0.5, 1.5)}, r"color_match is"),
        ({"blur_match": (0.5, 0.2)}, r"blur_match is"),
        ({"noise_match": (-0.5, 0.2)}, r"noise_match is"),
        ({"lighting": 1.0}, r"lighting is 1.0"),
        ({"free_share": 1.2}, r"free_share is 1.2; expected a probability"),
        ({"cut_share": -0.1}, r"cut_share is"),
        ({"jpeg_share": 2.0}, r"jpeg_share is"),
        ({"shadow": 2.0}, r"shadow is"),
        ({"distractor_share": 2.0}, r"distractor_share is"),
        ({"distractors": (0, 3)}, r"distractors is \(0, 3\)"),
    ],
)
def test_invalid_configuration_error_names_the_key(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PasteConfig(**change)  # type: ignore[arg-type]
