from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.errors import MetricError
from anomseg_ros.evaluation.bag_drive import DriveTracker
from anomseg_ros.evaluation.results import Drive, DriveSize

SIZE = (40, 60)
Box = tuple[int, int, int, int]
"""row, column, height, width"""


def drawn(boxes: list[Box], value: int = 1) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    for row, column, height, width in boxes:
        mask[row : row + height, column : column + width] = value
    return mask


def drive(frames: list[tuple[list[Box], list[Box]]], **options: float) -> Drive:
    """Return what is told of frames at 2 Hz, each (boxes of the prediction, boxes of the ground truth)."""
    tracker = DriveTracker(0.5, "by hand", **{"min_alarm_px": 4, **options})
    for index, (predicted, true) in enumerate(frames):
        tracker.add(7 * 10**9 + index * 500_000_000, drawn(predicted).astype(np.float32), drawn(true))
    return tracker.result()


def test_an_alarm_is_counted_when_it_begins() -> None:
    moving = [([(5, 10 + 3 * index, 4, 6)], []) for index in range(6)]  # 6 wide, moves by 3: shares pixels
    told = drive(moving)
    assert (told.alarms, told.alarm_onsets_s) == (1, (0.0,))
    jumping = [([(5, 10 * index, 4, 6)], []) for index in range(5)]
    assert drive(jumping).alarms == 5
    blinking = [([(5, 5, 4, 6)] if index % 2 == 0 else [], []) for index in range(6)]
    assert drive(blinking).alarm_onsets_s == (0.0, 1.0, 2.0)


def test_alarms_per_minute_count_the_last_frame_s_own_time() -> None:
    told = drive([([(5, 5, 4, 6)], []), ([], []), ([(20, 30, 3, 3)], []), ([], [])])
    assert told.duration_s == 2.0  # 4 frames at 2 Hz
    assert told.alarms_per_minute == 2 / 2.0 * 60
    assert drive([([(5, 5, 4, 6)], [])]).alarms_per_minute is None


def test_what_touches_an_object_or_is_small_is_no_alarm() -> None:
    touching = ([(5, 5, 4, 20)], [(8, 24, 4, 4)])  # they share one pixel
    assert drive([touching]).alarms == 0
    apart = ([(5, 5, 4, 20)], [(8, 25, 4, 4)])
    assert drive([apart]).alarms == 1
    assert drive([([(0, 0, 1, 3)], [])]).alarms == 0
    assert drive([([(0, 0, 2, 2)], [])]).alarms == 1
    corner = ([(0, 0, 2, 1), (2, 1, 1, 2)], [])  # two boxes that meet at a corner are one region of 4 pixels
    assert drive([corner]).alarms == 1


def test_ignored_pixels_are_no_alarm_and_cut_the_mask() -> None:
    tracker = DriveTracker(0.5, "by hand", min_alarm_px=4)
    anomaly = drawn([(5, 5, 4, 6)], 255)
    tracker.add(0, drawn([(5, 5, 4, 6)]).astype(np.float32), anomaly)
    tracker.add(1, drawn([(5, 3, 4, 8)]).astype(np.float32), anomaly)  # 8 pixels are left of it
    assert tracker.result().alarms == 1


def test_the_threshold_itself_is_known() -> None:
    tracker = DriveTracker(0.5, "by hand", min_alarm_px=1)
    tracker.add(0, np.full(SIZE, 0.5, np.float32), drawn([]))
    tracker.add(1, np.full(SIZE, np.nextafter(np.float32(0.5), np.float32(1)), np.float32), drawn([]))
    assert tracker.onsets_ns == [1]


def test_time_to_first_detection_of_each_object() -> None:
    left, right = (10, 5, 10, 10), (10, 40, 10, 10)
    told = drive(
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


def test_an_object_is_followed_while_it_grows_splits_and_ends() -> None:
    told = drive(
        [
            ([], [(10, 20, 2, 2)]),
            ([], [(9, 19, 4, 6)]),
            ([], [(8, 18, 8, 4), (8, 24, 8, 4)]),  # a pole before it: two regions, one object
            ([(8, 24, 8, 4)], [(8, 18, 8, 4), (8, 24, 8, 4)]),
            ([], []),
            ([(8, 18, 8, 4)], [(8, 18, 8, 4)]),  # gone for a frame: a new one
        ]
    )
    assert [(seen.first_s, seen.frames, seen.largest_px) for seen in told.objects] == [(0.0, 4, 64), (2.5, 1, 32)]
    assert [seen.seconds_to_detection for seen in told.objects] == [1.5, 0.0]


def test_of_two_objects_that_meet_the_larger_goes_on() -> None:
    small, large = (10, 5, 4, 4), (10, 20, 8, 10)
    told = drive([([], [small, large]), ([], [(10, 5, 8, 25)])])
    assert [seen.frames for seen in told.objects] == [1, 2]


def test_detection_rate_by_size() -> None:
    small, large = (0, 0, 5, 5), (10, 10, 15, 20)  # 25 and 300 pixels
    told = drive([([small, large], [small, large]), ([large], [small, large]), ([], [large])])
    rows = {size.from_px: size for size in told.sizes}
    assert rows[1] == DriveSize(1, 100, frames=2, detected=1)
    assert rows[300] == DriveSize(300, 1000, frames=3, detected=2)
    assert sum(size.frames for size in told.sizes) == 5 and told.sizes[-1].below_px is None


def test_a_frame_without_an_answer_delays_detection_and_ends_no_alarm() -> None:
    thing, alarm = (10, 5, 10, 10), (30, 40, 5, 5)
    tracker = DriveTracker(0.5, "by hand", min_alarm_px=4)
    for index, predicted in enumerate([[alarm], None, [alarm, thing]]):
        scores = None if predicted is None else drawn(predicted).astype(np.float32)
        tracker.add(index * 10**9, scores, drawn([] if index == 0 else [thing]))
    told = tracker.result()
    assert (told.alarms, told.frames) == (1, 3)
    (seen,) = told.objects
    assert (seen.first_s, seen.frames, seen.frames_detected, seen.seconds_to_detection) == (1.0, 2, 1, 1.0)


def test_frames_of_another_size_begin_anew() -> None:
    tracker = DriveTracker(0.5, "by hand", min_alarm_px=1)
    tracker.add(0, np.ones((4, 4), np.float32), np.zeros((4, 4), np.uint8))
    tracker.add(1, np.ones((6, 6), np.float32), np.zeros((6, 6), np.uint8))
    assert tracker.result().alarms == 2


def test_wrong_frames_are_refused() -> None:
    tracker = DriveTracker(0.5, "by hand")
    with pytest.raises(MetricError, match="no frame"):
        tracker.result()
    with pytest.raises(MetricError, match=r"scores are \(2, 2\), ground truth \(2, 3\)"):
        tracker.add(0, np.ones((2, 2), np.float32), np.zeros((2, 3), np.uint8))
    tracker.add(5, np.ones((2, 2), np.float32), np.zeros((2, 2), np.uint8))
    with pytest.raises(MetricError, match="give frames in order"):
        tracker.add(5, np.ones((2, 2), np.float32), np.zeros((2, 2), np.uint8))
