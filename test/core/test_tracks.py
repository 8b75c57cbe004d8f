from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.core.tracks import AlarmRule, Alarms, Tracker

SHAPE = (60, 200)
TENTH_S = 100_000_000
Box = tuple[int, int, int, int]
"""row, column, height, width"""


def mask_of(*boxes: Box, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    for row, column, height, width in boxes:
        mask[row : row + height, column : column + width] = 255
    return mask


def alarms(tracker: Tracker, frame: int, mask: np.ndarray, rule: AlarmRule | None = None) -> Alarms:
    return tracker.alarms((frame + 1) * TENTH_S, mask, mask.astype(np.float32), rule or AlarmRule())


def ids_by_column(result: Alarms) -> dict[int, int]:
    """Return column of a box -> id of its track."""
    return {alarm.component.x_px: alarm.track_id for alarm in result.alarms}


def test_objects_keep_their_ids() -> None:
    tracker = Tracker()
    assert ids_by_column(alarms(tracker, 0, mask_of((5, 10, 10, 20), (40, 100, 8, 8)))) == {10: 1, 100: 2}
    # The smaller object grows beyond the larger one, so that their order changes. Both move.
    assert ids_by_column(alarms(tracker, 1, mask_of((5, 14, 10, 20), (38, 98, 16, 16)))) == {14: 1, 98: 2}
    assert ids_by_column(alarms(tracker, 2, mask_of((5, 18, 10, 20), (20, 60, 5, 5), (38, 96, 16, 16)))) == {
        18: 1,
        60: 3,
        96: 2,
    }


def test_default_rule_returns_the_mask_at_once() -> None:
    mask = mask_of((5, 10, 10, 20), (40, 100, 1, 2))
    result = alarms(Tracker(), 0, mask, AlarmRule(min_area_px=10))
    assert result.mask is mask and [alarm.component.area_px for alarm in result.alarms] == [200]


def test_objects_passing_each_other_keep_their_ids() -> None:
    """Boxes of width 12 move towards each other at 100 px/s on adjacent rows. Their velocities distinguish them."""
    tracker = Tracker()
    for frame in range(12):
        right, left = 20 + 10 * frame, 145 - 10 * frame
        assert ids_by_column(alarms(tracker, frame, mask_of((10, right, 12, 12), (23, left, 12, 12)))) == {
            right: 1,
            left: 2,
        }


def test_fast_object_is_matched_at_its_predicted_position() -> None:
    """The object moves by more than its own size between frames and is missing in one of them."""
    tracker = Tracker()
    assert ids_by_column(alarms(tracker, 0, mask_of((10, 10, 12, 12)))) == {10: 1}
    assert ids_by_column(alarms(tracker, 1, mask_of((10, 25, 12, 12)))) == {
        25: 1
    }  # 15 px: no overlap, but within a diagonal
    assert alarms(tracker, 2, mask_of()).alarms == []
    assert ids_by_column(alarms(tracker, 3, mask_of((10, 55, 12, 12)))) == {55: 1}
    # A box far from the predicted position or of a very different size is a new object.
    assert ids_by_column(alarms(tracker, 4, mask_of((10, 110, 12, 12)))) == {110: 2}
    assert ids_by_column(alarms(tracker, 5, mask_of((24, 111, 3, 3)))) == {111: 3}


def test_track_ends_after_the_timeout_or_a_reset() -> None:
    tracker, rule = Tracker(), AlarmRule(timeout_s=0.25)
    there = mask_of((10, 10, 12, 12))
    assert ids_by_column(alarms(tracker, 0, there, rule)) == {10: 1}
    assert ids_by_column(alarms(tracker, 2, there, rule)) == {10: 1}
    assert ids_by_column(alarms(tracker, 5, there, rule)) == {10: 2}
    assert ids_by_column(alarms(tracker, 3, there, rule)) == {10: 3}  # the stamps go back
    assert ids_by_column(alarms(tracker, 4, mask_of((10, 10, 12, 12), shape=(60, 201)), rule)) == {10: 4}
    tracker.reset()
    assert ids_by_column(alarms(tracker, 5, there, rule)) == {10: 5}


def test_alarm_needs_n_of_m_frames() -> None:
    tracker, rule = Tracker(), AlarmRule(frames_n=2, frames_m=3)
    there, both = mask_of((10, 10, 12, 12)), mask_of((10, 10, 12, 12), (40, 100, 8, 8))
    first = alarms(tracker, 0, there, rule)
    assert not first.alarms and not first.mask.any()
    assert not alarms(tracker, 1, mask_of(), rule).alarms
    third = alarms(tracker, 2, both, rule)  # the first in two of three frames, the second for the first time
    assert ids_by_column(third) == {10: 1} and (third.mask == there).all()
    assert not alarms(tracker, 3, mask_of(), rule).alarms
    assert ids_by_column(alarms(tracker, 4, both, rule)) == {
        10: 1,
        100: 2,
    }  # the first stays confirmed, the second is in two of three frames
    assert ids_by_column(alarms(Tracker(), 0, there, AlarmRule())) == {10: 1}


def test_n_of_m_ignores_older_frames() -> None:
    tracker, rule = Tracker(), AlarmRule(frames_n=2, frames_m=2, timeout_s=10.0)
    there = mask_of((10, 10, 12, 12))
    for frame in range(0, 10, 2):
        assert not alarms(tracker, frame, there, rule).alarms
        assert not alarms(tracker, frame + 1, mask_of(), rule).alarms
    assert not alarms(tracker, 10, there, rule).alarms
    assert ids_by_column(alarms(tracker, 11, there, rule)) == {10: 1}


def test_small_regions_are_no_alarm_under_any_rule() -> None:
    rule = AlarmRule(min_area_px=50, frames_n=2, frames_m=2)
    tracker, mask = Tracker(), mask_of((10, 10, 12, 12), (40, 100, 2, 2))
    alarms(tracker, 0, mask, rule)
    assert (alarms(tracker, 1, mask, rule).mask == mask_of((10, 10, 12, 12))).all()


@pytest.mark.parametrize("count", [0, 1, 150])
def test_many_noise_regions_get_unique_ids(count: int) -> None:
    rng, tracker = np.random.default_rng(0), Tracker()
    seen: set[int] = set()
    for frame in range(5):
        mask = np.zeros((400, 400), np.uint8)
        mask[rng.integers(0, 400, count), rng.integers(0, 400, count)] = 255
        result = alarms(tracker, frame, mask)
        numbers = [alarm.track_id for alarm in result.alarms]
        assert len(set(numbers)) == len(numbers)
        seen.update(numbers)
    assert len(seen) >= count
