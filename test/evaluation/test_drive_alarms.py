"""Thresholds by alarms per minute: the lowest that keep the number, checked on the part held back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import write
from drives import write_pictures
from painted_frames import BLUE, GREEN, HEIGHT_PX, OLIVE, WIDTH_PX, painted_bundle

from anomseg_ros.core.thresholds import AlarmThreshold, ThresholdTable
from anomseg_ros.datasets.unlabelled_drive import open_drive
from anomseg_ros.errors import DatasetError, MetricError
from anomseg_ros.evaluation.drive import DriveTracker
from anomseg_ros.evaluation.drive_alarms import (
    AlarmCounter,
    calibrate_alarms,
    check_minutes,
    minutes_of,
    with_alarm_thresholds,
)
from anomseg_ros.evaluation.drive_thresholds import DriveRequest, calibrate_on_drive

GREEN_FRAMES, OLIVE_FRAMES = (4, 5, 12), (2, 3, 7, 10, 15, 16)
"""Of every 20 frames: 2 alarms above 0.99, and 4 above 0.9 beside them. They are of 64 pixels."""


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> DriveRequest:
    """A drive of 60 frames at 10 Hz, of which the 20 in the middle are held back."""
    folder = tmp_path_factory.mktemp("alarms")
    for number in range(60):
        frame = np.full((HEIGHT_PX, WIDTH_PX, 3), BLUE, np.uint8)
        if number % 20 in GREEN_FRAMES:
            frame[20:28, 20:28] = GREEN
        if number % 20 in OLIVE_FRAMES:
            frame[60:68, 90:98] = OLIVE
        write(folder / "street" / f"{number}.png", frame)
    drive = open_drive([folder / "street"], rate_hz=10)
    return DriveRequest(painted_bundle(folder / "painted"), drive, ("void",), (0.01,))


def test_alarms_stay_below_the_target(request_: DriveRequest) -> None:
    request = replace(request_, target_alarms_per_minute=(180, 60, 15))
    found = {one.target_per_minute: one for one in calibrate_alarms(request, calibrate_on_drive(request))}
    assert {target: (one.alarms, one.held_back) for target, one in found.items()} == {
        60: (4, 2),
        180: (12, 6),
        15: (0, 0),
    }
    assert 0.9 < found[60].threshold < 0.99 < found[15].threshold and 0.01 < found[180].threshold + 0.02 < 0.9
    assert all(
        one.minutes == pytest.approx(4 / 60) and one.held_back_minutes == pytest.approx(2 / 60)
        for one in found.values()
    )
    assert found[60].ratio == pytest.approx(1) and found[60].holds
    assert (found[60].tells, found[180].tells) == (False, True)
    bigger = replace(request, min_alarm_px=65)
    assert all(one.alarms == one.held_back == 0 for one in calibrate_alarms(bigger, calibrate_on_drive(bigger)))


def test_other_part_of_the_drive_is_told(tmp_path: Path, request_: DriveRequest) -> None:
    for number in range(60):
        frame = np.full((HEIGHT_PX, WIDTH_PX, 3), BLUE, np.uint8)
        if 20 <= number < 40 and number % 4 < 2:
            frame[20:28, 20:28] = GREEN
        write(tmp_path / "street" / f"{number}.png", frame)
    drive = open_drive([tmp_path / "street"], rate_hz=10)
    request = replace(request_, drive=drive, target_alarms_per_minute=(60,))
    (one,) = calibrate_alarms(request, calibrate_on_drive(request))
    assert (one.alarms, one.held_back) == (0, 5) and one.ratio == pytest.approx(2.5) and not one.holds


def test_thresholds_are_written_beside_those_by_rate(request_: DriveRequest) -> None:
    request = replace(request_, target_alarms_per_minute=(60,))
    (one,) = calibrate_alarms(request, calibrate_on_drive(request))
    tables = {
        "void": ThresholdTable("camvid", {0.01: 0.5}, by_target_alarms_per_minute={1.0: AlarmThreshold(0.9, "x")})
    }
    contract = with_alarm_thresholds(replace(request.bundle.contract, thresholds=tables), [one], "my drive")
    assert contract.thresholds["void"] == ThresholdTable(
        "camvid",
        {0.01: 0.5},
        by_target_alarms_per_minute={1.0: AlarmThreshold(0.9, "x"), 60: AlarmThreshold(one.threshold, "my drive")},
    )


def test_drive_that_is_too_short_or_without_times_is_refused(request_: DriveRequest, tmp_path: Path) -> None:
    message = (
        r"10 alarms per minute allow no alarm in the 4\.0 s that the thresholds come from; give a drive of at least"
    )
    with pytest.raises(MetricError, match=message):
        check_minutes(replace(request_, target_alarms_per_minute=(10, 100)))
    drive = open_drive([write_pictures(tmp_path / "timeless", 20)])
    with pytest.raises(DatasetError, match=r"timeless' have no times, .*: give the rate .* such as --fps 10"):
        check_minutes(replace(request_, drive=drive, target_alarms_per_minute=(10,)))
    with pytest.raises(DatasetError, match=r"the rate is 0 Hz; expected a number above 0"):
        open_drive([tmp_path / "timeless"], rate_hz=0)


def test_minutes_leave_out_what_is_between_stretches(tmp_path: Path) -> None:
    folders = [write_pictures(tmp_path / name, 10) for name in ("one", "two")]
    drive = open_drive(folders, rate_hz=10)
    assert minutes_of(drive, range(20)) == pytest.approx(2 / 60)
    assert minutes_of(drive, (*range(5), *range(10, 15))) == pytest.approx(1 / 60)
    assert minutes_of(drive.without(["one/4"]), range(19)) == pytest.approx(1.9 / 60)
    assert [drive.follows(index) for index in (0, 1, 10, 11)] == [False, True, False, True]
    assert minutes_of(open_drive(folders, rate_hz=10, every=2), range(10)) == pytest.approx(2 / 60)


def test_counter_agrees_with_the_figures_of_a_drive() -> None:
    rng = np.random.default_rng(0)
    scores = [np.kron(rng.random((8, 16)), np.ones((8, 8))).astype(np.float32) for _ in range(12)]
    known, thresholds = np.zeros((64, 128), np.uint8), [0.95, 0.8, 0.5]
    counter, limited = AlarmCounter(thresholds, 50), AlarmCounter(thresholds, 50, limit=100)
    trackers = [[DriveTracker(one, "") for one in thresholds] for _ in range(2)]
    for number, frame in enumerate(scores):
        for one in (counter, limited):
            one.add(number, frame, known, follows=number not in (0, 6))
        for tracker in trackers[number // 6]:
            tracker.add(number, frame, known)
    expected = [sum(len(part[index].onsets_ns) for part in trackers) for index in range(3)]
    assert [counter.alarms_at(one) for one in thresholds] == expected and expected[0] < 100 < expected[1]
    assert counter.lowest(100) == limited.lowest(100) == (0.95, expected[0])
    with pytest.raises(MetricError, match="no threshold has at most 0 alarms"):
        counter.lowest(0)
