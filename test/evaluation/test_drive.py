from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anomseg_ros.errors import MetricError
from anomseg_ros.evaluation.drive import DriveSpec, DriveTracker, pooled_drive
from anomseg_ros.evaluation.results import Drive, DriveAlarm, DriveMoment, DriveSize

SIZE = (40, 60)
Box = tuple[int, int, int, int]
"""row, column, height, width"""


def mask_of(boxes: list[Box], value: int = 1) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    for row, column, height, width in boxes:
        mask[row : row + height, column : column + width] = value
    return mask


def drive_of(frames: list[tuple[list[Box], list[Box]]], **options: Any) -> Drive:
    """Return the drive of frames at 2 Hz. A frame is (boxes of the prediction, boxes of the ground truth)."""
    settings: dict[str, Any] = {"min_alarm_px": 4, **options}
    tracker = DriveTracker(0.5, "by hand", **settings)
    for index, (predicted, true) in enumerate(frames):
        tracker.add(7 * 10**9 + index * 500_000_000, mask_of(predicted).astype(np.float32), mask_of(true))
    return tracker.result()


def test_alarm_is_counted_once_when_it_begins() -> None:
    moving = [
        ([(5, 10 + 3 * index, 4, 6)], []) for index in range(6)
    ]  # width 6, moves by 3, so consecutive boxes overlap
    told = drive_of(moving)
    assert (told.alarms, told.alarm_onsets_s) == (1, (0.0,))
    jumping = [([(5, 10 * index, 4, 6)], []) for index in range(5)]
    assert drive_of(jumping).alarms == 5
    blinking = [([(5, 5, 4, 6)] if index % 2 == 0 else [], []) for index in range(6)]
    assert drive_of(blinking).alarm_onsets_s == (0.0, 1.0, 2.0)


def test_duration_includes_the_last_frame() -> None:
    told = drive_of([([(5, 5, 4, 6)], []), ([], []), ([(20, 30, 3, 3)], []), ([], [])])
    assert told.duration_s == 2.0  # 4 frames at 2 Hz
    assert told.alarms_per_minute == 2 / 2.0 * 60
    assert drive_of([([(5, 5, 4, 6)], [])]).alarms_per_minute is None


def test_small_regions_and_regions_touching_objects_are_no_alarm() -> None:
    touching = ([(5, 5, 4, 20)], [(8, 24, 4, 4)])  # they share one pixel
    assert drive_of([touching]).alarms == 0
    apart = ([(5, 5, 4, 20)], [(8, 25, 4, 4)])
    assert drive_of([apart]).alarms == 1
    assert drive_of([([(0, 0, 1, 3)], [])]).alarms == 0
    assert drive_of([([(0, 0, 2, 2)], [])]).alarms == 1
    corner = ([(0, 0, 2, 1), (2, 1, 1, 2)], [])  # two boxes that touch at a corner are one region of 4 pixels
    assert drive_of([corner]).alarms == 1


def test_ignored_pixels_are_excluded_from_alarms() -> None:
    tracker = DriveTracker(0.5, "by hand", min_alarm_px=4)
    anomaly = mask_of([(5, 5, 4, 6)], 255)
    tracker.add(0, mask_of([(5, 5, 4, 6)]).astype(np.float32), anomaly)
    tracker.add(1, mask_of([(5, 3, 4, 8)]).astype(np.float32), anomaly)  # 8 pixels of the box are not ignored
    assert tracker.result().alarms == 1


def test_score_equal_to_the_threshold_is_no_alarm() -> None:
    tracker = DriveTracker(0.5, "by hand", min_alarm_px=1)
    tracker.add(0, np.full(SIZE, 0.5, np.float32), mask_of([]))
    tracker.add(1, np.full(SIZE, np.nextafter(np.float32(0.5), np.float32(1)), np.float32), mask_of([]))
    assert tracker.onsets_ns == [1]


def test_each_object_has_a_time_to_first_detection() -> None:
    left, right = (10, 5, 10, 10), (10, 40, 10, 10)
    told = drive_of(
        [
            ([], [left]),
            ([(10, 5, 1, 9)], [left, right]),  # 9 of 100 pixels: not yet
            ([(10, 5, 1, 10)], [left, right]),  # 10 of 100: detected
            ([], [left, right]),
        ]
    )
    assert [seen.seconds_to_detection for seen in told.objects] == [1.0, None]
    assert [seen.first_s for seen in told.objects] == [0.0, 0.5]
    assert [(seen.frames, seen.frames_detected) for seen in told.objects] == [(4, 1), (3, 0)]
    assert (told.objects_detected, told.median_seconds_to_detection, told.alarms) == (1, 1.0, 0)


def test_object_is_followed_while_it_grows_splits_and_ends() -> None:
    told = drive_of(
        [
            ([], [(10, 20, 2, 2)]),
            ([], [(9, 19, 4, 6)]),
            ([], [(8, 18, 8, 4), (8, 24, 8, 4)]),  # a pole splits the object into two regions
            ([(8, 24, 8, 4)], [(8, 18, 8, 4), (8, 24, 8, 4)]),
            ([], []),
            ([(8, 18, 8, 4)], [(8, 18, 8, 4)]),  # a new object, because it was missing for a frame
        ]
    )
    assert [(seen.first_s, seen.frames, seen.largest_px) for seen in told.objects] == [(0.0, 4, 64), (2.5, 1, 32)]
    assert [seen.seconds_to_detection for seen in told.objects] == [1.5, 0.0]


def test_larger_of_two_merging_objects_continues() -> None:
    small, large = (10, 5, 4, 4), (10, 20, 8, 10)
    told = drive_of([([], [small, large]), ([], [(10, 5, 8, 25)])])
    assert [seen.frames for seen in told.objects] == [1, 2]


def test_detections_are_counted_by_object_size() -> None:
    small, large = (0, 0, 5, 5), (10, 10, 15, 20)  # 25 and 300 pixels
    told = drive_of([([small, large], [small, large]), ([large], [small, large]), ([], [large])])
    rows = {size.from_px: size for size in told.sizes}
    assert rows[1] == DriveSize(1, 100, frames=2, detected=1)
    assert rows[300] == DriveSize(300, 1000, frames=3, detected=2)
    assert sum(size.frames for size in told.sizes) == 5 and told.sizes[-1].below_px is None


def test_unanswered_frame_delays_detection_and_continues_alarms() -> None:
    thing, alarm = (10, 5, 10, 10), (30, 40, 5, 5)
    tracker = DriveTracker(0.5, "by hand", min_alarm_px=4)
    for index, predicted in enumerate([[alarm], None, [alarm, thing]]):
        scores = None if predicted is None else mask_of(predicted).astype(np.float32)
        tracker.add(index * 10**9, scores, mask_of([] if index == 0 else [thing]))
    told = tracker.result()
    assert (told.alarms, told.frames) == (1, 3)
    (seen,) = told.objects
    assert (seen.first_s, seen.frames, seen.frames_detected, seen.seconds_to_detection) == (1.0, 2, 1, 1.0)


def test_alarm_restarts_when_the_frame_size_changes() -> None:
    tracker = DriveTracker(0.5, "by hand", min_alarm_px=1)
    tracker.add(0, np.ones((4, 4), np.float32), np.zeros((4, 4), np.uint8))
    tracker.add(1, np.ones((6, 6), np.float32), np.zeros((6, 6), np.uint8))
    assert tracker.result().alarms == 2


def test_invalid_frames_are_refused() -> None:
    tracker = DriveTracker(0.5, "by hand")
    with pytest.raises(MetricError, match="no frame"):
        tracker.result()
    with pytest.raises(MetricError, match=r"scores are \(2, 2\), ground truth \(2, 3\)"):
        tracker.add(0, np.ones((2, 2), np.float32), np.zeros((2, 3), np.uint8))
    tracker.add(5, np.ones((2, 2), np.float32), np.zeros((2, 2), np.uint8))
    with pytest.raises(MetricError, match="give frames in order"):
        tracker.add(5, np.ones((2, 2), np.float32), np.zeros((2, 2), np.uint8))


def test_alarms_and_detections_need_n_of_m_frames() -> None:
    thing, false = (5, 5, 6, 6), (20, 30, 6, 6)
    seen = [([thing, false], [thing]), ([thing], [thing]), ([thing, false], [thing]), ([thing], [thing])]
    at_once = drive_of(seen)
    assert (at_once.alarms, at_once.objects[0].seconds_to_detection, at_once.alarm_frames) == (2, 0.0, (1, 1))
    told = drive_of(seen, alarm_frames=(2, 2))
    assert (told.alarms, told.objects[0].seconds_to_detection, told.alarm_frames) == (0, 0.5, (2, 2))
    assert told.objects[0].frames_detected == 3


def test_drive_spec_creates_a_tracker_with_its_settings() -> None:
    tracker = DriveSpec("void", 0.5, "by hand", 7, (3, 5)).tracker()
    assert (tracker.min_alarm_px, tracker.alarm_frames) == (7, (3, 5))


def test_alarms_have_an_area_and_a_duration() -> None:
    growing = [([(5, 5, 4, 4 + index)], []) for index in range(3)]
    told = drive_of([*growing, ([], []), ([(20, 30, 3, 3)], []), ([], [])])
    assert told.events == (DriveAlarm(0.0, 1.5, 24), DriveAlarm(2.0, 0.5, 9))
    assert told.alarm_share == pytest.approx((16 + 20 + 24 + 9) / (6 * 40 * 60))
    # Moments are a second apart: the second largest frame is too close to the largest one.
    assert told.worst == (DriveMoment(8 * 10**9, 24), DriveMoment(7 * 10**9, 16), DriveMoment(9 * 10**9, 9))
    objects_only = drive_of([([(5, 5, 4, 4)], [(5, 5, 4, 4)])])
    assert (objects_only.events, objects_only.alarm_share, objects_only.worst) == ((), 0.0, ())


def test_pooled_drives_keep_the_alarms_of_each() -> None:
    one, other = drive_of([([(5, 5, 4, 6)], []), ([], [])]), drive_of([([], []), ([(5, 5, 4, 3)], []), ([], [])])
    pooled = pooled_drive([one, None, other])
    assert pooled is not None and pooled.events == (DriveAlarm(0.0, 0.5, 24), DriveAlarm(1.5, 0.5, 12))
    assert pooled.alarm_share == pytest.approx((24 + 12) / (5 * 40 * 60)) and pooled.worst == ()
