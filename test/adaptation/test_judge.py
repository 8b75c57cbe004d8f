"""Alarms at equal detection of pasted objects, with a bundle that sees colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_trees import write
from painted_frames import GREEN, street

from anomseg_ros.adaptation.judge import Detection, Figures, count_alarms, see_objects, wanted_objects
from anomseg_ros.adaptation.pasted_drive import object_pixels, pasted_drive
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.datasets.unlabelled_drive import open_drive
from anomseg_ros.errors import MetricError
from anomseg_ros.evaluation.drive_thresholds import DriveRequest, calibrate_on_drive, split_blocks

FRAMES = 20
USED, HELD_BACK = split_blocks(FRAMES)


@pytest.fixture
def request_(painted: Bundle, tmp_path: Path) -> DriveRequest:
    """A drive at 10 Hz whose every frame has two green and olive patches, each a false alarm."""
    for number in range(FRAMES):
        write(tmp_path / "street" / f"{number:02d}.png", street()[0])
    drive = open_drive([tmp_path / "street"], rate_hz=10)
    return DriveRequest(painted, drive, ("void",), (0.02,), min_alarm_px=4)


@pytest.fixture
def green_objects(tmp_path: Path) -> str:
    """A folder of green discs, which the bundle is sure of."""
    disc = np.zeros((60, 60, 4), np.uint8)
    cv2.circle(disc, (30, 30), 25, (*GREEN[::-1], 255), -1)
    for number in range(20):
        (tmp_path / "objects").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "objects" / f"{number}.png"), disc)
    return str(tmp_path / "objects")


def test_alarms_are_counted_where_the_objects_are_detected(request_: DriveRequest, green_objects: str) -> None:
    pasted = pasted_drive(request_.drive, (green_objects,), seed=1)
    seen = see_objects(request_, pasted, HELD_BACK)
    assert len(seen.lowest_scores) >= len(HELD_BACK) and seen.lowest_scores[-1] > 0.9
    found = calibrate_on_drive(request_)
    figures = count_alarms(request_, HELD_BACK, found.checked["void"], seen, len(seen.lowest_scores))
    assert figures.detected == figures.objects and figures.frames == len(HELD_BACK)
    assert figures.alarms == 2, "the patches stay where they are, so each is one alarm"
    assert figures.minutes == pytest.approx(len(HELD_BACK) / 600)
    assert figures.alarms_per_minute == pytest.approx(2 / figures.minutes)
    assert 0 < figures.pixel_rate < 0.01


def test_a_frame_gets_the_same_objects_each_time_and_its_own(request_: DriveRequest) -> None:
    one, same = (pasted_drive(request_.drive, ("procedural",), seed=3).load(2) for _ in range(2))
    other = pasted_drive(request_.drive, ("procedural",), seed=3).load(3)
    seeded = pasted_drive(request_.drive, ("procedural",), seed=4).load(2)
    assert (one.image == same.image).all() and (one.anomaly == same.anomaly).all()
    assert (one.anomaly != other.anomaly).any() and (one.anomaly != seeded.anomaly).any()
    assert set(np.unique(one.anomaly)) == {0, 1}
    assert (one.image == request_.drive.load(2).image)[one.anomaly == 0].mean() > 0.9


def test_objects_on_the_own_vehicle_do_not_count(request_: DriveRequest, tmp_path: Path) -> None:
    covered = open_drive([tmp_path / "street"], ego_mask=np.ones((4, 8), np.uint8))
    with pytest.raises(MetricError, match="no pasted object lies where pixels count; look at the ego mask"):
        see_objects(replace(request_, drive=covered), pasted_drive(covered, ("procedural",), 1), HELD_BACK)


def test_drives_without_times_have_no_alarms_per_minute(request_: DriveRequest, tmp_path: Path) -> None:
    untimed = replace(request_, drive=open_drive([tmp_path / "street"]))
    seen, checked = Detection((0.5,)), calibrate_on_drive(untimed).checked["void"]
    figures = count_alarms(untimed, HELD_BACK, checked, seen, 1)
    assert figures.minutes is None and figures.alarms_per_minute is None and figures.alarms == 2


def test_thresholds_detect_the_wanted_number() -> None:
    seen = Detection((0.9, 0.7, 0.7, 0.2))
    assert [seen.detected(value) for value in (0.95, 0.9, 0.8, 0.7, 0.1)] == [0, 0, 1, 1, 4]
    assert seen.detected(seen.threshold_for(1)) == 1 and seen.detected(seen.threshold_for(2)) == 3
    assert wanted_objects(seen, 0.1) == 4, "what is detected at the threshold of the drive"
    assert wanted_objects(seen, 0.95) == 2, "half of the objects at least"


def test_objects_are_regions_of_some_size() -> None:
    anomaly = np.zeros((10, 20), np.uint8)
    anomaly[1:4, 1:4], anomaly[6, 6], anomaly[8:10, 10:20], anomaly[0, 19] = 1, 1, 1, 255
    assert [len(rows) for rows, _ in object_pixels(anomaly, 2)] == [9, 20]


def test_better_means_fewer_alarms_and_no_more_pixels() -> None:
    one = Figures(10, 5, 0.5, 0.01, 20, 30, None)
    assert replace(one, alarms=19).is_better_than(one)
    assert not one.is_better_than(one) and not replace(one, pixel_rate=0.005).is_better_than(one)
    assert not replace(one, alarms=19, pixel_rate=0.011).is_better_than(one)
