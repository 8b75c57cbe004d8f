from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomseg_ros.core.resources import share_file
from anomseg_ros.core.video import Video
from anomseg_ros.datasets.road_drive import RoadCamera, RoadObject, RoadScene, load_road_scene, paste_on_road
from anomseg_ros.errors import ConfigError

CAMERA = RoadCamera(
    width_px=400, height_px=200, focal_px=400, above_road_m=1.2, horizon_px=80, vanishing_px=190, speed_mps=10
)
BOX = RoadObject("a box", "box", 5, size_m=1.0, lateral_m=1.0, passed_at_s=6.0)
SCENE = RoadScene("nowhere", CAMERA, (BOX,))
RATE_HZ = 10.0


def road(count: int) -> list[np.ndarray]:
    frame = np.random.default_rng(0).integers(60, 90, (200, 400, 3), np.uint8)
    return [frame.copy() for _ in range(count)]


def box(anomaly: np.ndarray) -> tuple[int, int, int, int]:
    """Return first and last row, first and last column of the anomaly."""
    rows, columns = np.flatnonzero(anomaly.any(axis=1)), np.flatnonzero(anomaly.any(axis=0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


@pytest.mark.parametrize("index", [20, 35, 45, 52])
def test_objects_are_placed_by_the_pinhole_model(index: int) -> None:
    frame = list(paste_on_road(road(index + 1), RATE_HZ, SCENE))[index]
    distance_m = 10 * (6.0 - index / RATE_HZ)
    top, bottom, left, right = box(frame.anomaly)
    assert bottom == pytest.approx(80 + 400 * 1.2 / distance_m, abs=2)
    assert (left + right) / 2 == pytest.approx(190 + 400 * 1.0 / distance_m, abs=2)
    assert max(bottom - top, right - left) == pytest.approx(400 * 1.0 / distance_m, abs=2.5)


def test_object_shifts_when_the_camera_moves_sideways() -> None:
    moving = replace(SCENE, camera=replace(CAMERA, path=((0.0, 0.0), (4.0, 0.8))))
    still, moved = (list(paste_on_road(road(46), RATE_HZ, scene))[45].anomaly for scene in (SCENE, moving))
    shift_px = (sum(box(still)[2:]) - sum(box(moved)[2:])) / 2
    assert shift_px == pytest.approx(400 * 0.8 / 15, abs=1)


def test_only_the_object_and_its_shadow_change_the_frame() -> None:
    frames = road(46)
    before = frames[45].copy()
    pasted = list(paste_on_road(frames, RATE_HZ, SCENE))[45]
    assert np.array_equal(frames[45], before) and pasted.labels is None
    assert set(np.unique(pasted.anomaly)) == {0, 1}
    top, bottom, left, right = box(pasted.anomaly)
    changed = (pasted.image != before).any(axis=2)
    assert changed[pasted.anomaly == 1].mean() > 0.9
    changed[top - 4 : bottom + 12, left - 12 : right + 12] = False
    assert not changed.any()
    assert pasted.image[bottom + 2, left:right].mean() < before[bottom + 2, left:right].mean() - 5  # the shadow


@pytest.mark.parametrize("passed_at_s", [0.0, 13.0])
def test_objects_behind_or_too_far_are_not_pasted(passed_at_s: float) -> None:
    scene = replace(SCENE, objects=(replace(BOX, passed_at_s=passed_at_s),))
    (frame,) = paste_on_road(road(1), RATE_HZ, scene)
    assert not frame.anomaly.any() and np.array_equal(frame.image, road(1)[0])


def test_near_objects_hide_far_ones() -> None:
    near, far = (replace(BOX, lateral_m=0.0, passed_at_s=passed_at_s) for passed_at_s in (1.0, 2.0))
    both, alone = (
        next(paste_on_road(road(1), RATE_HZ, replace(SCENE, objects=objects))) for objects in ((near, far), (near,))
    )
    rows, columns = np.nonzero(alone.anomaly)
    inside = alone.anomaly.copy()
    inside[rows.max() - 3 :] = 0  # both objects have a shadow there
    # The near object adapts to the brightness of its surroundings, which the far object changes.
    assert np.abs(both.image[inside == 1].astype(int) - alone.image[inside == 1]).max() < 30
    assert columns.size and both.anomaly.sum() >= alone.anomaly.sum()


def test_shipped_scene_fits_the_shipped_video() -> None:
    scene, video = load_road_scene(share_file("demo/drive.yaml")), Video(share_file("demo/drive.mp4"))
    first = next(paste_on_road(video, video.rate_hz, scene))
    assert first.anomaly.shape == (540, 960)
    assert video.frame_count is not None
    duration_s = video.frame_count / video.rate_hz
    assert all(0 < standing.passed_at_s < duration_s + 1 for standing in scene.objects)
    for name in ("README.md", "LICENSE"):
        assert "Udacity" in share_file(f"demo/{name}").read_text()


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"frame 0 is 80x60, the scene's camera 400x200; give the video"):
        next(paste_on_road([np.zeros((60, 80, 3), np.uint8)], RATE_HZ, SCENE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("size_m: 1.1, ", "missing key.*'size_m'"),
        ("furniture=>furnitures", "unknown kind of object 'furnitures'"),
        ("size_m: 1.1=>size_m: -1", r"size_m is -1\.0"),
        ("focal_px: 1126.0=>focal_px: 0", r"focal_px is 0\.0; expected a number above 0"),
        ("[[0.0, 0.0], [4.1=>[[5.0, 0.0], [4.1", "in order of time"),
        ("speed_mps=>speed", "unknown key 'speed'; did you mean 'speed_mps'"),
        ("objects:=>objects: [", "cannot be read"),
    ],
)
def test_invalid_scenes_are_refused(change: str, message: str, tmp_path: Path) -> None:
    old, _, new = change.partition("=>")
    text = share_file("demo/drive.yaml").read_text()
    assert old in text
    (tmp_path / "scene.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load_road_scene(tmp_path / "scene.yaml")


def test_missing_scene_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"road scene .*scene\.yaml' cannot be read"):
        load_road_scene(tmp_path / "scene.yaml")
