from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from anomseg_ros.errors import ConfigError
from anomseg_ros.scenes.anomalies import make_anomaly
from anomseg_ros.scenes.mesh import ModelBuilder
from anomseg_ros.scenes.render import ANOMALY, Canvas
from anomseg_ros.scenes.scene import Pose, View, clip_near
from anomseg_ros.scenes.sequence import (
    ALL_KINDS,
    HELD_OUT_KINDS,
    TRAIN_KINDS,
    SyntheticConfig,
    SyntheticFrame,
    SyntheticSequence,
)
from anomseg_ros.scenes.street import draw_textures

SMALL = SyntheticConfig(height_px=128, width_px=256, anomaly_probability=1.0)


def assert_same(first: SyntheticFrame, second: SyntheticFrame) -> None:
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.anomaly, second.anomaly)
    assert (first.index, first.time_s) == (second.index, second.time_s)


@pytest.mark.slow
def test_frame_is_independent_of_frames_drawn_before() -> None:
    in_order = list(SyntheticSequence(4, SMALL).frames(8))
    assert_same(SyntheticSequence(4, SMALL).frame(7), in_order[7])
    backwards = SyntheticSequence(4, SMALL)
    for index in (7, 200, 3):
        backwards.frame(index)
    assert_same(backwards.frame(3), in_order[3])
    assert_same(backwards.frame(7), in_order[7])


def test_different_seeds_give_different_scenes() -> None:
    first, second = SyntheticSequence(1, SMALL).frame(0), SyntheticSequence(2, SMALL).frame(0)
    assert (first.labels != second.labels).mean() > 0.05


@pytest.mark.parametrize(("height_px", "width_px"), [(128, 256), (97, 131), (33, 241), (200, 64)])
def test_frames_have_the_configured_size_types_and_ranges(height_px: int, width_px: int) -> None:
    config = dataclasses.replace(SMALL, height_px=height_px, width_px=width_px, hood_probability=1.0)
    frame = SyntheticSequence(3, config).frame(11)
    assert frame.image.shape == (height_px, width_px, 3)
    assert frame.labels.shape == frame.anomaly.shape == (height_px, width_px)
    assert frame.image.dtype == frame.labels.dtype == frame.anomaly.dtype == np.uint8
    assert set(np.unique(frame.labels)) <= {*range(19), 255}
    assert set(np.unique(frame.anomaly)) <= {0, 1, 255}
    assert frame.index == 11
    assert frame.time_s == pytest.approx(11 / config.rate_hz)


@pytest.mark.slow
@pytest.mark.parametrize("hood", [0.0, 1.0])
def test_pixels_are_unlabelled_if_anomalous_or_ignored(hood: float) -> None:
    config = dataclasses.replace(SMALL, hood_probability=hood)
    for seed in range(4):
        frame = SyntheticSequence(seed, config).frame(20)
        assert np.array_equal(frame.labels == 255, frame.anomaly != 0)
        assert (frame.anomaly == 255).any() == bool(hood)
        assert not hood or (frame.anomaly[-1] == 255).mean() > 0.5


@pytest.mark.slow
def test_every_class_occurs_within_a_few_seeds() -> None:
    counts = np.zeros(256, np.int64)
    config = SyntheticConfig(height_px=256, width_px=512)
    for seed in range(12):
        sequence = SyntheticSequence(seed, config)
        for index in (0, 60):
            counts += np.bincount(sequence.frame(index).labels.ravel(), minlength=256)
    rare = 16  # trams are the class "train" of Cityscapes and occur in few towns
    missing = [train_id for train_id in range(19) if train_id != rare and counts[train_id] < 150]
    assert missing == []
    assert counts[[0, 2, 8, 10]].min() > 0.05 * counts.sum()


@pytest.mark.slow
def test_style_can_be_chosen() -> None:
    city = dataclasses.replace(SMALL, styles=("urban",))
    country = dataclasses.replace(SMALL, styles=("rural",))
    built = [
        np.mean([(SyntheticSequence(s, c).frame(0).labels == 2).mean() for s in range(4)]) for c in (city, country)
    ]
    assert built[0] > 5 * built[1]


@pytest.mark.slow
def test_horizon_is_on_the_principal_row() -> None:
    for seed in range(6):
        sequence = SyntheticSequence(seed, dataclasses.replace(SMALL, hood_probability=0.0))
        labels = sequence.frame(5).labels
        horizon = sequence.camera.cy
        rows = np.arange(len(labels))[:, None] * np.ones_like(labels)
        assert rows[labels == 10].max() <= horizon + 1
        assert rows[np.isin(labels, (0, 1, 9))].min() >= horizon - 0.5


@pytest.mark.slow
def test_camera_matrix_maps_road_points_to_road_pixels() -> None:
    config = dataclasses.replace(SMALL, anomaly_probability=0.0, hood_probability=0.0)
    for seed in range(6):
        sequence = SyntheticSequence(seed, config)
        camera = sequence.camera
        assert camera.matrix().shape == (3, 3)
        depth = sequence._camera_height_m * camera.fy / (config.height_px - 2 - camera.cy)
        pixel = camera.matrix() @ np.array([0.0, sequence._camera_height_m, depth])
        x, y = pixel[:2] / pixel[2]
        assert y == pytest.approx(config.height_px - 2)
        assert sequence.frame(0).labels[round(y), round(x)] == 0


@pytest.mark.slow
def test_anomalies_are_on_or_beside_the_road() -> None:
    config = SyntheticConfig(height_px=256, width_px=512, anomaly_probability=1.0)
    touching, total = 0, 0
    for seed in range(6):
        frame = SyntheticSequence(seed, config).frame(0)
        columns = np.flatnonzero((frame.anomaly == 1).any(axis=0))
        bottoms = frame.labels.shape[0] - 1 - (frame.anomaly[::-1, columns] == 1).argmax(axis=0)
        inside = bottoms < frame.labels.shape[0] - 1
        below = frame.labels[bottoms[inside] + 1, columns[inside]]
        touching, total = touching + int(np.isin(below, (0, 1, 9)).sum()), total + len(below)
    assert total > 100
    assert touching > 0.6 * total


def test_anomalies_are_visible_at_their_mask() -> None:
    without, with_ = (
        SyntheticSequence(5, dataclasses.replace(SMALL, anomaly_probability=p, hood_probability=0.0)).frame(20)
        for p in (0.0, 1.0)
    )
    mask = with_.anomaly == 1
    assert mask.sum() > 30
    difference = np.abs(without.image.astype(int) - with_.image.astype(int)).max(axis=2)
    assert np.median(difference[mask]) > 15
    # Only anomalies and their shadows on the ground change, so the sky does not.
    sky = (with_.labels == 10) & (without.labels == 10)
    assert difference[sky].max() <= 1 or np.mean(difference[sky] > 1) < 0.01
    assert without.anomaly.max() == 0


def test_no_anomaly_at_probability_zero() -> None:
    config = dataclasses.replace(SMALL, anomaly_probability=0.0)
    assert all((frame.anomaly != 1).all() for frame in SyntheticSequence(0, config).frames(3))


def test_kinds_are_disjoint_and_change_only_the_anomalies() -> None:
    assert not set(TRAIN_KINDS) & set(HELD_OUT_KINDS)
    frames = [
        SyntheticSequence(2, dataclasses.replace(SMALL, anomaly_kinds=kinds)).frame(10)
        for kinds in (TRAIN_KINDS, HELD_OUT_KINDS)
    ]
    known = (frames[0].anomaly == 0) & (frames[1].anomaly == 0)
    assert np.array_equal(frames[0].labels[known], frames[1].labels[known])
    assert not np.array_equal(frames[0].anomaly, frames[1].anomaly)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_each_kind_is_drawn_at_about_its_size(kind: str) -> None:
    sequence = SyntheticSequence(0, SMALL)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        model = make_anomaly(kind, rng, draw_textures(rng), 1.0)
        extent = model.vertices.max(axis=0) - model.vertices.min(axis=0)
        assert 0.4 < extent.max() < 2.2
        assert model.vertices[:, 1].min() > -0.02
        canvas = Canvas(View(sequence.camera, 1.5, sequence._course, 0.0), sequence._light)
        canvas.draw(model, Pose(0.0, 6.0, 0.0))
        assert (canvas.labels == ANOMALY).sum() > 50
        assert set(np.unique(canvas.labels)) <= {ANOMALY, 255}
        assert model.shadows


def test_camera_moves_steadily() -> None:
    sequence = SyntheticSequence(8, dataclasses.replace(SMALL, rate_hz=20.0))
    frames = [frame.labels for frame in sequence.frames(5)]
    changes = [(a != b).mean() for a, b in itertools.pairwise(frames)]
    assert all(0.0 < change < 0.12 for change in changes)
    assert (frames[0] != sequence.frame(400).labels).mean() > max(changes)


def test_street_is_static_at_speed_zero() -> None:
    config = dataclasses.replace(SMALL, speed_mps=(0.0, 0.0), noise_std=(0.0, 0.0))
    first, later = (SyntheticSequence(6, config).frame(i) for i in (0, 30))
    fixed = np.isin(first.labels, (2, 3, 10)) & np.isin(later.labels, (2, 3, 10))
    assert np.array_equal(first.labels[fixed], later.labels[fixed])
    assert fixed.mean() > 0.2


def test_near_objects_hide_far_ones() -> None:
    sequence = SyntheticSequence(0, SMALL)
    canvas = Canvas(View(sequence.camera, 1.5, sequence._course, 0.0), sequence._light)
    for label, z in ((2, 20.0), (13, 8.0)):
        build = ModelBuilder(label)
        build.box((-1.0, 0.0, -1.0), (1.0, 3.0, 1.0), (200.0, 200.0, 200.0))
        canvas.draw(build.finish(), Pose(0.0, z, 0.3))
    middle = canvas.labels[round(sequence.camera.cy), round(sequence.camera.cx)]
    assert middle == 13


def test_polygons_are_clipped_at_the_near_plane() -> None:
    quad = np.array([(-1, 0, 0.5), (1, 0, 0.5), (1, 0, 2.0), (-1, 0, 2.0)], np.float32)
    cut = clip_near(quad, near_m=1.0)
    assert cut[:, 2].min() == pytest.approx(1.0)
    assert cut[:, 2].max() == pytest.approx(2.0)
    assert len(clip_near(quad, near_m=3.0)) == 0


def test_jpeg_changes_the_image_but_not_the_labels() -> None:
    plain = SyntheticSequence(1, SMALL).frame(0)
    coded = SyntheticSequence(1, dataclasses.replace(SMALL, jpeg_quality=(10, 10))).frame(0)
    assert np.array_equal(plain.labels, coded.labels)
    difference = np.abs(plain.image.astype(int) - coded.image.astype(int))
    assert 0.5 < difference.mean() < 30


@pytest.mark.parametrize(
    "bad",
    [
        {"height_px": 8},
        {"width_px": 100.5},
        {"rate_hz": 0.0},
        {"anomaly_probability": 1.2},
        {"anomaly_kinds": ()},
        {"anomaly_kinds": ("boxx",)},
        {"styles": ("urban", "desert")},
        {"camera_height_m": (2.0, 1.0)},
        {"visibility_m": (1.0, 100.0)},
        {"noise_std": (0.0, float("nan"))},
        {"jpeg_quality": (0, 90)},
    ],
)
def test_invalid_setting_error_names_it(bad: dict[str, Any]) -> None:
    name = next(iter(bad))
    expected = {"anomaly_kinds": "anomaly kind", "styles": "scene style"}.get(name, name)
    with pytest.raises(ConfigError, match=expected):
        SyntheticConfig(**bad)


def test_misspelt_kind_error_suggests_the_closest() -> None:
    with pytest.raises(ConfigError, match="known: box"):
        SyntheticConfig(anomaly_kinds=("boxx",))


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1"])
def test_invalid_seed_is_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed"):
        SyntheticSequence(seed, SMALL)


def test_negative_frame_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="frame index"):
        SyntheticSequence(0, SMALL).frame(-1)
