from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from paste_samples import Counting, disc

from anomseg_ros.core.labels import CAMVID, CITYSCAPES
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.outliers.cut_paste import OUTLIER, PasteConfig, paste_objects
from anomseg_ros.outliers.objects import OutlierObject
from anomseg_ros.outliers.places import draw_ground, draw_horizon

HEIGHT, WIDTH, ROAD_TOP = 240, 480, 100
ROAD = PasteConfig(
    objects=(1, 1), placement="road", free_share=0.0, min_area_px=4, feather_radius_px=0, camera_height_m=(1.5, 1.5)
)


def street() -> tuple[RgbImage, LabelImage]:
    """Return grey noise with labels: building (2) everywhere, road (0) below row 100 in the middle third."""
    labels = np.full((HEIGHT, WIDTH), 2, np.uint8)
    labels[ROAD_TOP:, WIDTH // 3 : 2 * WIDTH // 3] = 0
    image = np.random.default_rng(0).integers(90, 110, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return image, labels


def box(labels: LabelImage) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of the pasted object; bottom and right are exclusive."""
    rows, columns = (np.flatnonzero((labels == OUTLIER).any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def test_object_size_follows_the_distance_on_the_ground() -> None:
    image, labels = street()
    config = replace(ROAD, size_m=(0.5, 0.5))
    bottoms = []
    for seed in range(40):
        source = Counting(disc(60))
        _, marked = paste_objects(
            image, labels, source, np.random.default_rng(seed), config, classes=CITYSCAPES, horizon_px=90.0
        )
        top, left, bottom, right = box(marked)
        expected_px = 0.5 * (bottom - 1 - 90) / 1.5
        assert abs(max(bottom - top, right - left) - expected_px) <= 2
        assert labels[bottom - 1, (left + right) // 2] == 0  # its foot is on the road
        bottoms.append(bottom)
    assert min(bottoms) < 130 and max(bottoms) > 210


def test_sizes_are_log_uniform_within_their_bounds() -> None:
    image, labels = street()
    sizes_m = []
    for seed in range(60):
        config = replace(ROAD, size_m=(0.2, 0.8))
        _, marked = paste_objects(
            image, labels, Counting(disc(60)), np.random.default_rng(seed), config, classes=CITYSCAPES, horizon_px=0.0
        )
        top, _, bottom, _ = box(marked)
        sizes_m.append((bottom - top) * 1.5 / (bottom - 1))
    assert 0.17 < min(sizes_m) < 0.25 and 0.65 < max(sizes_m) < 0.83
    assert abs(np.median(sizes_m) - 0.4) < 0.1


def test_free_share_of_objects_is_placed_anywhere() -> None:
    image, labels = street()
    feet = []
    for seed in range(60):
        config = replace(ROAD, free_share=0.5, min_area_px=200)
        _, marked = paste_objects(
            image, labels, Counting(disc(60)), np.random.default_rng(seed), config, classes=CITYSCAPES
        )
        _, left, bottom, right = box(marked)
        feet.append(labels[bottom - 1, (left + right) // 2] == 0)
    assert 0.45 < np.mean(feet) < 0.9  # objects placed anywhere are sometimes on the road


def test_horizon_is_above_the_road_and_within_its_bounds() -> None:
    _, labels = street()
    rng = np.random.default_rng(0)
    assert 0.4 * HEIGHT < draw_horizon(labels, CITYSCAPES, ROAD, rng) < ROAD_TOP
    assert draw_horizon(labels, CITYSCAPES, replace(ROAD, horizon=(0.1, 0.2)), rng) == pytest.approx(0.2 * HEIGHT)
    drawn = [draw_horizon(np.full_like(labels, 2), CITYSCAPES, ROAD, rng) for _ in range(50)]
    assert min(drawn) >= 0.35 * HEIGHT and max(drawn) <= 0.5 * HEIGHT and np.std(drawn) > 5


def test_ground_is_road_classes_or_the_lower_part() -> None:
    _, labels = street()
    labels[ROAD_TOP:, : WIDTH // 3] = 1  # sidewalk
    rng = np.random.default_rng(0)
    ground = draw_ground(labels, CITYSCAPES, ROAD, rng)
    assert ground is not None and np.array_equal(ground.mask, np.isin(labels, (0, 1)))
    other = draw_ground(np.full_like(labels, 3), CAMVID, ROAD, rng)
    assert other is not None and other.mask[other.rows].all()
    low = draw_ground(labels, (), ROAD, rng, horizon_px=120.0)
    assert low is not None and low.rows[0] == 121 and low.mask[121:].all()
    assert draw_ground(np.full_like(labels, 2), CITYSCAPES, ROAD, rng) is None
    assert draw_ground(labels, CITYSCAPES, ROAD, rng, horizon_px=500.0) is None


def test_frames_without_ground_get_objects_anywhere() -> None:
    image, labels = street()
    _, marked = paste_objects(
        image, np.full_like(labels, 2), Counting(disc(60)), np.random.default_rng(0), ROAD, classes=CITYSCAPES
    )
    assert (marked == OUTLIER).any()


def test_objects_are_not_enlarged_beyond_max_upscale() -> None:
    image, labels = street()
    config = replace(ROAD, size_m=(0.1, 2.0), max_upscale=1.0)
    for seed in range(20):
        _, marked = paste_objects(
            image, labels, Counting(disc(30)), np.random.default_rng(seed), config, classes=CITYSCAPES
        )
        top, left, bottom, right = box(marked)
        assert max(bottom - top, right - left) <= 31


class CutObject(Counting):
    def __init__(self, *sides: str) -> None:
        super().__init__(np.ones((40, 30), bool))
        self.given = OutlierObject(self.given.image, self.given.mask, "test", frozenset(sides))


@pytest.mark.parametrize("placement", ["road", "anywhere"])
@pytest.mark.parametrize("sides", [("bottom",), ("left",), ("right",), ("bottom", "left")])
def test_cut_objects_touch_the_border_of_the_frame(sides: tuple[str, ...], placement: str) -> None:
    image, labels = street()
    config = replace(ROAD, placement=placement, cut_objects="border", feather_radius_px=1.5, min_area_px=200)
    seen = set()
    for seed in range(12):
        _, marked = paste_objects(
            image, labels, CutObject(*sides), np.random.default_rng(seed), config, classes=CITYSCAPES, horizon_px=60.0
        )
        _, left, bottom, right = box(marked)
        assert ("bottom" in sides) <= (bottom == HEIGHT)
        assert (len(sides) == 1 and sides[0] == "bottom") or left == 0 or right == WIDTH
        seen.add(left == 0)
    assert len(seen) == 2 or sides == ("bottom",)  # sometimes mirrored


@pytest.mark.parametrize(("sides", "how"), [(("top",), "border"), (("left", "right"), "border"), (("bottom",), "skip")])
def test_cut_objects_without_a_place_are_omitted(sides: tuple[str, ...], how: str) -> None:
    class CutOrWholeObject(CutObject):
        def draw(self, rng: np.random.Generator, frames: object) -> OutlierObject:
            self.draws += 1
            given = self.given
            return given if rng.random() < 0.7 else OutlierObject(given.image // 2, given.mask, "whole")

    image, labels = street()
    config = PasteConfig(objects=(1, 1), cut_objects=how, tone_match=0, feather_radius_px=0)
    draws = 0
    for seed in range(10):
        source = CutOrWholeObject(*sides)
        pasted, marked = paste_objects(image, labels, source, np.random.default_rng(seed), config)
        assert (pasted[marked == OUTLIER] == 100).all()
        draws += source.draws
    assert draws > 10


def test_cut_share_is_the_share_of_objects_cut_by_the_frame() -> None:
    image, labels = street()
    touching = []
    for seed in range(40):
        config = replace(ROAD, cut_share=0.5, size_m=(0.3, 0.6))
        _, marked = paste_objects(
            image, labels, Counting(disc(60)), np.random.default_rng(seed), config, classes=CITYSCAPES
        )
        _, left, bottom, right = box(marked)
        touching.append(left == 0 or right == WIDTH or bottom == HEIGHT)
    assert 0.3 < np.mean(touching) < 0.75
