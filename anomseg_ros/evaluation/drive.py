"""Figures of a drive beyond pixel metrics: false alarms, time to the first detection, and detection by object size.

All figures come from masks (score > threshold) of consecutive frames. Regions are 8-connected. Regions of consecutive
frames belong to the same thing if they share pixels. Pixels whose ground truth is 255 are not in the mask.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.tracks import AlarmRule, Tracker
from anomseg_ros.core.types import ScoreMap
from anomseg_ros.datasets.dataset import ANOMALY, VOID
from anomseg_ros.errors import MetricError
from anomseg_ros.evaluation.results import Drive, DriveAlarm, DriveMoment, DriveObject, DriveSize

MIN_ALARM_PX = 50
"""Smallest area of an alarm, the node's default of min_component_px."""

MIN_COVERAGE = 0.1
"""Smallest share of an object's pixels in the mask for the object to count as detected."""

SIZE_EDGES_PX = (1, 100, 300, 1_000, 3_000, 10_000, 30_000)
"""Lower edges of the bins of object area."""

MOMENTS, MOMENTS_APART_NS = 12, 1_000_000_000
"""Worst moments of a drive, and the shortest time between two of them."""

_Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class DriveSpec:
    """Score and threshold of the mask, origin of the threshold, and the rules for alarms; see DriveTracker."""

    score: str
    threshold: float
    threshold_source: str
    min_alarm_px: int = MIN_ALARM_PX
    alarm_frames: tuple[int, int] = (1, 1)

    def tracker(self) -> DriveTracker:
        """Return a tracker with these settings."""
        return DriveTracker(self.threshold, self.threshold_source, self.min_alarm_px, alarm_frames=self.alarm_frames)


@dataclass
class _Object:
    first_ns: int
    detected_ns: int | None = None
    frames: int = 0
    frames_detected: int = 0
    largest_px: int = 0


@dataclass
class _Alarm:
    first_ns: int
    last_ns: int
    largest_px: int = 0


@dataclass
class DriveTracker:
    """Counts false alarms and detected objects in the frames of a drive, given in the order of stamps.

    An alarm is a region of the mask of at least min_alarm_px that touches no anomaly. It is counted when it begins,
    which means that it shares no pixel with an alarm of the previous frame. An object is one or more anomalous regions
    that share pixels with the object in the previous frame; a region that overlaps several objects belongs to the one
    with the most shared pixels. An object is detected in a frame if the mask covers at least min_coverage of it. An
    object that moves by more than its own size between two frames counts as a new object.

    alarm_frames: n and m. From n = 2 on, the mask holds only regions that the node's tracker saw in n of m frames.

    Counts of two parts of a drive cannot be merged, because alarms and objects continue across the border.
    """

    threshold: float
    threshold_source: str
    min_alarm_px: int = MIN_ALARM_PX
    min_coverage: float = MIN_COVERAGE
    alarm_frames: tuple[int, int] = (1, 1)
    stamps_ns: list[int] = field(default_factory=list)
    onsets_ns: list[int] = field(default_factory=list)
    _objects: list[_Object] = field(default_factory=list)
    _alarm_count: int = 0
    _sizes: dict[int, list[int]] = field(default_factory=lambda: {edge: [0, 0] for edge in SIZE_EDGES_PX})
    _object_ids: _Ids | None = None
    _alarm_ids: _Ids | None = None
    _tracker: Tracker = field(default_factory=Tracker)
    _alarms: list[_Alarm] = field(default_factory=list)
    _alarm_px: list[tuple[int, float]] = field(default_factory=list)

    def add(self, stamp_ns: int, scores: ScoreMap | None, anomaly: npt.NDArray[np.uint8]) -> None:
        """Count the next frame: scores float32 and ground truth uint8 (0, 1, 255), both (H, W).

        scores: None for a frame without an answer. Its objects count as not detected, and an alarm of the previous
        frame continues in the next one.

        Raises MetricError for different sizes, or a stamp that is not later than the previous one.
        """
        if scores is not None and scores.shape != anomaly.shape:
            raise MetricError(f"scores are {scores.shape}, ground truth {anomaly.shape}; expected the same size (H, W)")
        if self.stamps_ns and stamp_ns <= self.stamps_ns[-1]:
            raise MetricError(f"stamp {stamp_ns} ns comes after {self.stamps_ns[-1]} ns; give frames in order")
        self.stamps_ns.append(stamp_ns)
        self._alarm_px.append((0, 0.0))
        if scores is None:
            self._follow_objects(stamp_ns, np.zeros(anomaly.shape, bool), anomaly == ANOMALY)
            return
        mask = self._confirmed_mask(stamp_ns, (scores > self.threshold) & (anomaly != VOID), scores)
        self._follow_objects(stamp_ns, mask, anomaly == ANOMALY)
        self._follow_alarms(stamp_ns, mask, anomaly == ANOMALY)
        self._note_alarms(stamp_ns, int(np.count_nonzero(anomaly != VOID)))

    def _confirmed_mask(self, stamp_ns: int, mask: npt.NDArray[np.bool_], scores: ScoreMap) -> npt.NDArray[np.bool_]:
        rule = AlarmRule(self.min_alarm_px, *self.alarm_frames)
        if rule.is_immediate:
            return mask
        return self._tracker.alarms(stamp_ns, mask.view(np.uint8), scores, rule).mask > 0

    def result(self) -> Drive:
        """Return the figures of all frames. Raises MetricError without a frame."""
        if not self.stamps_ns:
            raise MetricError("the drive has no frames; expected at least one")
        start_ns = self.stamps_ns[0]
        duration_s = self._duration_s()
        objects = tuple(_drive_object(seen, start_ns) for seen in self._objects)
        delays = [seen.seconds_to_detection for seen in objects if seen.seconds_to_detection is not None]
        return Drive(
            threshold=self.threshold,
            threshold_source=self.threshold_source,
            min_alarm_px=self.min_alarm_px,
            min_coverage=self.min_coverage,
            frames=len(self.stamps_ns),
            duration_s=duration_s,
            alarms=len(self.onsets_ns),
            alarms_per_minute=len(self.onsets_ns) * 60 / duration_s if duration_s else None,
            alarm_onsets_s=tuple((stamp_ns - start_ns) / 1e9 for stamp_ns in self.onsets_ns),
            objects=objects,
            objects_detected=len(delays),
            median_seconds_to_detection=median(delays) if delays else None,
            sizes=self._size_rows(),
            alarm_frames=self.alarm_frames,
            events=tuple(self._event(alarm) for alarm in self._alarms),
            alarm_share=sum(share for _, share in self._alarm_px) / len(self._alarm_px),
            worst=worst_moments(self.stamps_ns, [px for px, _ in self._alarm_px]),
        )

    def _follow_objects(self, stamp_ns: int, mask: npt.NDArray[np.bool_], anomalous: npt.NDArray[np.bool_]) -> None:
        def appear() -> int:
            self._objects.append(_Object(stamp_ns))
            return len(self._objects)

        if not anomalous.any():  # the same result, without looking for regions
            self._object_ids = None
            return
        count, regions = cv2.connectedComponents(anomalous.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        ids = _matched_ids(np.asarray(regions, np.int32), count, self._object_ids, appear)
        self._object_ids = ids
        areas = np.bincount(ids.reshape(-1), minlength=len(self._objects) + 1)
        covered = np.bincount(ids[mask], minlength=len(self._objects) + 1)
        for number in map(int, np.flatnonzero(areas[1:]) + 1):
            seen, area_px = self._objects[number - 1], int(areas[number])
            detected = int(covered[number]) >= self.min_coverage * area_px
            seen.frames += 1
            seen.frames_detected += detected
            seen.largest_px = max(seen.largest_px, area_px)
            if detected and seen.detected_ns is None:
                seen.detected_ns = stamp_ns
            counts = self._sizes[SIZE_EDGES_PX[bisect_right(SIZE_EDGES_PX, area_px) - 1]]
            counts[0] += 1
            counts[1] += detected

    def _follow_alarms(self, stamp_ns: int, mask: npt.NDArray[np.bool_], anomalous: npt.NDArray[np.bool_]) -> None:
        def begin() -> int:
            self._alarm_count += 1
            self.onsets_ns.append(stamp_ns)
            self._alarms.append(_Alarm(stamp_ns, stamp_ns))
            return self._alarm_count

        if not mask.any():
            self._alarm_ids = None
            return
        _, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        false = stats[:, cv2.CC_STAT_AREA] >= self.min_alarm_px
        false[0] = False
        false[regions[anomalous]] = False
        numbers = np.where(false, np.cumsum(false), 0).astype(np.int32)
        self._alarm_ids = _matched_ids(numbers[regions], int(false.sum()) + 1, self._alarm_ids, begin)

    def _note_alarms(self, stamp_ns: int, counted_px: int) -> None:
        """Note the areas of the alarms in this frame; counted_px: pixels that could be in one."""
        if self._alarm_ids is None:
            return
        areas = np.bincount(self._alarm_ids[self._alarm_ids > 0], minlength=1)
        for number in map(int, np.flatnonzero(areas)):
            alarm = self._alarms[number - 1]
            alarm.last_ns, alarm.largest_px = stamp_ns, max(alarm.largest_px, int(areas[number]))
        alarm_px = int(areas.sum())
        self._alarm_px[-1] = alarm_px, alarm_px / max(counted_px, 1)

    def _event(self, alarm: _Alarm) -> DriveAlarm:
        frame_ns = median(self._gaps_ns()) if len(self.stamps_ns) > 1 else 0
        first_ns = alarm.first_ns - self.stamps_ns[0]
        return DriveAlarm(first_ns / 1e9, (alarm.last_ns - alarm.first_ns + frame_ns) / 1e9, alarm.largest_px)

    def _gaps_ns(self) -> list[int]:
        return [after - before for before, after in zip(self.stamps_ns, self.stamps_ns[1:], strict=False)]

    def _duration_s(self) -> float:
        """Return the time to the end of the last frame, which lasts a median interval; 0 for a single frame."""
        if len(self.stamps_ns) < 2:
            return 0.0
        return (self.stamps_ns[-1] - self.stamps_ns[0] + median(self._gaps_ns())) / 1e9

    def _size_rows(self) -> tuple[DriveSize, ...]:
        ends = (*SIZE_EDGES_PX[1:], None)
        return tuple(DriveSize(edge, end, *self._sizes[edge]) for edge, end in zip(SIZE_EDGES_PX, ends, strict=True))


def worst_moments(stamps_ns: Sequence[int], alarm_px: Sequence[int]) -> tuple[DriveMoment, ...]:
    """Return the frames with most pixels in alarms, most first, at least MOMENTS_APART_NS apart."""
    moments: list[DriveMoment] = []
    for px, stamp_ns in sorted(zip(alarm_px, stamps_ns, strict=True), key=lambda one: (-one[0], one[1])):
        if px == 0 or len(moments) == MOMENTS:
            break
        if all(abs(stamp_ns - other.stamp_ns) >= MOMENTS_APART_NS for other in moments):
            moments.append(DriveMoment(stamp_ns, px))
    return tuple(moments)


def pooled_drive(of_bags: Sequence[Drive | None]) -> Drive | None:
    """Return several drives as one: times continue from drive to drive, counts add up. None if there are no drives."""
    drives = [drive for drive in of_bags if drive is not None]
    if len(drives) < 2:
        return drives[0] if drives else None
    starts_s = [sum(drive.duration_s for drive in drives[:number]) for number in range(len(drives))]
    timed = list(zip(starts_s, drives, strict=True))
    duration_s, alarms = sum(drive.duration_s for drive in drives), sum(drive.alarms for drive in drives)
    objects = [replace(seen, first_s=start_s + seen.first_s) for start_s, drive in timed for seen in drive.objects]
    delays = [seen.seconds_to_detection for seen in objects if seen.seconds_to_detection is not None]
    return replace(
        drives[0],
        frames=sum(drive.frames for drive in drives),
        duration_s=duration_s,
        alarms=alarms,
        alarms_per_minute=alarms * 60 / duration_s if duration_s else None,
        alarm_onsets_s=tuple(start_s + onset_s for start_s, drive in timed for onset_s in drive.alarm_onsets_s),
        objects=tuple(objects),
        events=tuple(replace(one, first_s=start_s + one.first_s) for start_s, drive in timed for one in drive.events),
        alarm_share=_mean_share(drives),
        worst=(),
        objects_detected=len(delays),
        median_seconds_to_detection=median(delays) if delays else None,
        sizes=tuple(
            replace(same[0], frames=sum(size.frames for size in same), detected=sum(size.detected for size in same))
            for same in zip(*(drive.sizes for drive in drives), strict=True)
        ),
    )


def _mean_share(drives: Sequence[Drive]) -> float | None:
    shares = [(drive.alarm_share, drive.frames) for drive in drives if drive.alarm_share is not None]
    frames = sum(count for _, count in shares)
    return sum(share * count for share, count in shares) / frames if frames else None


def _matched_ids(regions: _Ids, count: int, before: _Ids | None, begin: Callable[[], int]) -> _Ids:
    """Renumber regions 1 to count - 1 by the ids in the previous frame with which they share the most pixels.

    begin: returns the id of a new alarm or object.
    """
    previous: dict[int, int] = {}
    if before is not None and before.shape == regions.shape:
        both = (regions > 0) & (before > 0)
        pairs, shared = np.unique(np.stack([regions[both], before[both]]), axis=1, return_counts=True)
        for position in np.argsort(shared, kind="stable"):
            previous[int(pairs[0, position])] = int(pairs[1, position])
    numbers = np.zeros(count, np.int32)
    for region in range(1, count):
        numbers[region] = previous.get(region) or begin()
    return numbers[regions]


def _drive_object(seen: _Object, start_ns: int) -> DriveObject:
    return DriveObject(
        first_s=(seen.first_ns - start_ns) / 1e9,
        frames=seen.frames,
        largest_px=seen.largest_px,
        frames_detected=seen.frames_detected,
        seconds_to_detection=None if seen.detected_ns is None else (seen.detected_ns - seen.first_ns) / 1e9,
    )
