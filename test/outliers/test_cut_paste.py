from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from paste_samples import Counting, disc

from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.datasets import open_named
from anomseg_ros.errors import ConfigError, DatasetError
from anomseg_ros.outliers.cut_paste import OUTLIER, PasteConfig, paste_objects
from anomseg_ros.outliers.objects import ALL_KINDS, ProceduralObjects

HEIGHT, WIDTH = 240, 320


def frame(seed: int = 0) -> tuple[RgbImage, LabelImage]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    labels = rng.choice(np.array([0, 1, 10, 255], np.uint8), (HEIGHT, WIDTH))
    return image, labels


def paste(config: PasteConfig, source: object = None, seed: int = 0) -> tuple[RgbImage, LabelImage]:
    return paste_objects(*frame(), source or ProceduralObjects(), np.random.default_rng(seed), config)  # type: ignore[arg-type]


def test_pixels_depend_only_on_the_random_state() -> None:
    first, second, other = (paste(PasteConfig(), seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert not np.array_equal(first[1], other[1])


def test_input_frame_is_not_modified() -> None:
    image, labels = frame()
    before = image.copy(), labels.copy()
    paste_objects(image, labels, ProceduralObjects(), np.random.default_rng(0), PasteConfig())
    assert np.array_equal(image, before[0]) and np.array_equal(labels, before[1])


@pytest.mark.parametrize("max_share", [0.05, 0.1, 0.4])
def test_share_count_and_area_stay_within_their_bounds(max_share: float) -> None:
    for seed in range(25):
        source = Counting(disc(60))
        config = PasteConfig(objects=(2, 3), max_share=max_share, feather_radius_px=2, min_area_px=500)
        _, labels = paste(config, source, seed)
        assert 2 <= source.draws <= 3
        outlier = labels == OUTLIER
        assert outlier.mean() <= max_share
        count, _, stats, _ = cv2.connectedComponentsWithStats(outlier.astype(np.uint8))
        assert count - 1 <= source.draws
        assert stats[1:, cv2.CC_STAT_AREA].min() >= 500


def test_number_of_objects_takes_all_values_of_its_range() -> None:
    drawn = set()
    for seed in range(30):
        source = Counting(disc(40))
        paste(PasteConfig(objects=(1, 3)), source, seed)
        drawn.add(source.draws)
    assert drawn == {1, 2, 3}


def test_scale_is_spread_log_uniformly_over_its_range() -> None:
    sides = []
    for seed in range(60):
        config = PasteConfig(objects=(1, 1), scale=(0.5, 1.5), feather_radius_px=0, min_area_px=100)
        _, labels = paste(config, Counting(np.ones((60, 60), bool)), seed)
        sides.append(np.sqrt((labels == OUTLIER).sum()))
    assert min(sides) >= 0.5 * 60 - 1 and max(sides) <= 1.5 * 60
    # The median is the geometric mean of the bounds, not the arithmetic mean.
    assert abs(np.median(sides) - np.sqrt(0.75) * 60) < 8


def test_objects_are_resized_to_the_area_bounds() -> None:
    grown = paste(PasteConfig(objects=(1, 1), min_area_px=2000), Counting(disc(10)))[1]
    assert 2000 <= (grown == OUTLIER).sum() <= 2600
    source = Counting(np.ones((600, 600), bool))
    shrunk = paste(PasteConfig(objects=(1, 1), max_share=0.1), source)[1]
    assert 0.05 <= (shrunk == OUTLIER).mean() <= 0.1


def test_alpha_is_the_blurred_mask() -> None:
    image, labels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    config = PasteConfig(objects=(1, 1), scale=(1, 1), feather_radius_px=5, tone_match=0)
    source = Counting(np.ones((80, 80), bool), value=200)
    pasted, marked = paste_objects(image, labels, source, np.random.default_rng(1), config)
    rows, columns = np.nonzero(marked == OUTLIER)
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    solid = np.zeros((HEIGHT, WIDTH), np.float64)
    solid[top:bottom, left:right] = 1
    assert (bottom - top, right - left) == (80, 80)  # alpha is one half along straight edges
    alpha = cv2.GaussianBlur(solid, (31, 31), 5, borderType=cv2.BORDER_CONSTANT)
    expected = 40 + 160 * alpha
    assert np.abs(pasted.astype(float) - expected[:, :, None]).max() <= 1.5
    rim = (alpha > 0.05) & (alpha < 0.95)
    assert rim.any() and ((pasted[rim] > 40) & (pasted[rim] < 200)).all()
    assert (alpha[marked == OUTLIER] > 0.49).all() and (alpha[marked != OUTLIER] < 0.51).all()
    assert (pasted[alpha == 0] == 40).all() and (pasted[top + 16 : bottom - 16, left + 16 : right - 16] == 200).all()


def test_distant_pixels_and_other_labels_are_unchanged() -> None:
    image, labels = frame()
    solid = ProceduralObjects(("blob",))  # has no thin parts, which are blended into the frame without a label
    for seed in range(20):
        pasted, marked = paste_objects(image, labels, solid, np.random.default_rng(seed), PasteConfig())
        outlier = marked == OUTLIER
        assert outlier.any()
        assert np.array_equal(marked[~outlier], labels[~outlier])
        # The blur extends 3 sigma = 15 px beyond the mask, which is little larger than the labelled area.
        near = cv2.dilate(outlier.astype(np.uint8), np.ones((61, 61), np.uint8)) > 0
        assert np.array_equal(pasted[~near], image[~near])


def test_feather_radius_0_gives_hard_edges() -> None:
    image, labels = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    config = PasteConfig(feather_radius_px=0, tone_match=0)
    pasted, marked = paste_objects(image, labels, Counting(disc(50)), np.random.default_rng(0), config)
    assert np.array_equal(pasted[:, :, 0] > 0, marked == OUTLIER)


def test_background_of_a_cut_out_is_not_visible() -> None:
    mask = disc(80)
    source = Counting(mask)
    source.given.image[~mask] = (0, 255, 0)
    source.given.image[mask] = (200, 100, 100)
    image, labels = np.full((HEIGHT, WIDTH, 3), 100, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    config = PasteConfig(objects=(1, 1), scale=(1, 1), tone_match=0)
    pasted, _ = paste_objects(image, labels, source, np.random.default_rng(0), config)
    assert pasted[:, :, 1].max() <= 104 and pasted[:, :, 0].max() == 200


def test_low_share_is_the_share_of_low_objects() -> None:
    def low(share: float) -> float:
        bottoms = []
        for seed in range(60):
            config = PasteConfig(objects=(1, 1), low_share=share, feather_radius_px=0, min_area_px=100)
            rows = np.nonzero(paste(config, Counting(disc(30)), seed)[1] == OUTLIER)[0]
            bottoms.append(rows.max() + 1 >= HEIGHT // 3)
        return float(np.mean(bottoms))

    assert low(1.0) == 1.0
    assert 0.5 < low(0.0) < 1.0


def test_tone_match_adapts_the_brightness_to_the_surroundings() -> None:
    image, labels = np.full((HEIGHT, WIDTH, 3), 20, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    means = []
    for share in (0.0, 0.5, 1.0):
        config = PasteConfig(objects=(1, 1), tone_match=share, feather_radius_px=0)
        pasted, marked = paste_objects(image, labels, Counting(disc(60)), np.random.default_rng(0), config)
        means.append(pasted[marked == OUTLIER].mean())
    assert means[0] == 200 > means[1] > means[2]


def test_source_gets_other_frames_or_this_one() -> None:
    image, labels = frame()
    other = frame(1)[0]
    for frames, expected in (((), image), ((other,), other)):
        source = Counting(disc(40))
        paste_objects(image, labels, source, np.random.default_rng(0), PasteConfig(), frames)
        assert source.frames[0] is expected


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"objects": (0, 3)}, r"objects is \(0, 3\)"),
        ({"objects": (3, 1)}, r"1 <= fewest <= most"),
        ({"scale": (0.0, 1.0)}, r"scale is"),
        ({"max_share": 1.2}, r"max_share is 1.2; expected a share"),
        ({"feather_radius_px": -1.0}, r"feather_radius_px is -1.0"),
        ({"min_area_px": 0}, r"min_area_px is 0"),
        ({"low_share": 2.0}, r"low_share"),
        ({"tone_match": -0.1}, r"tone_match"),
        ({"scale": (float("nan"), 1.0)}, r"scale is \(nan"),
    ],
)
def test_invalid_configurations_are_refused(change: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PasteConfig(**change)  # type: ignore[arg-type]


def test_small_frames_get_fewer_objects_or_an_error() -> None:
    image, labels = frame()
    small = image[:60, :80], labels[:60, :80]
    source = Counting(disc(40))
    _, marked = paste_objects(*small, source, np.random.default_rng(2), PasteConfig(objects=(1, 3)))
    assert source.draws == 1 and (marked == OUTLIER).sum() >= 1000
    with pytest.raises(ConfigError, match=r"80x60 has no room for 2 object\(s\) of min_area_px 1000"):
        paste_objects(*small, source, np.random.default_rng(2), PasteConfig(objects=(2, 3)))
    needle = Counting(np.ones((2, 400), bool))
    with pytest.raises(ConfigError, match=r"none of 20 objects has 1000 to .* lower min_area_px"):
        paste_objects(*small, needle, np.random.default_rng(2), PasteConfig(objects=(1, 1)))


def test_invalid_frames_labels_and_masks_are_refused() -> None:
    image, labels = frame()
    with pytest.raises(DatasetError, match="hold 254 already"):
        paste_objects(image, np.full_like(labels, OUTLIER), Counting(disc(40)), np.random.default_rng(0), PasteConfig())
    with pytest.raises(DatasetError, match=r"labels uint8 \(240, 319\)"):
        paste_objects(image, labels[:, 1:], Counting(disc(40)), np.random.default_rng(0), PasteConfig())
    with pytest.raises(DatasetError, match="its mask is empty"):
        empty = Counting(np.zeros((40, 40), bool))
        paste_objects(image, labels, empty, np.random.default_rng(0), PasteConfig())


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_can_be_pasted_with_the_paper_settings(kind: str) -> None:
    for seed in range(5):
        _, labels = paste(PasteConfig(), ProceduralObjects((kind,)), seed)
        assert (labels == OUTLIER).sum() >= 1000


def test_real_frames_are_pasted_in_time(shared_data: Path) -> None:
    dataset = open_named(f"camvid={shared_data / 'CamVid'}:train")
    frames = [dataset.load(index) for index in range(0, 60, 10)]
    source, took_ms = ProceduralObjects(), []
    for seed, real in enumerate(frames * 4):
        assert real.labels is not None
        start = time.process_time()
        image, labels = paste_objects(
            real.image, real.labels, source, np.random.default_rng(seed), PasteConfig(), [frames[0].image]
        )
        took_ms.append((time.process_time() - start) * 1e3)
        outlier = labels == OUTLIER
        assert 1000 <= outlier.sum() <= 0.4 * outlier.size
        changed = np.abs(image.astype(int) - real.image).max(axis=2) > 8
        assert changed[outlier].mean() > 0.5
    # The target is 8 ms. The limit is higher, because other processes share the caches.
    assert np.median(took_ms) < 40
