"""What the pixel figures do not say of a drive: how often it cries wolf, how soon it sees an object, and how small.

Everything is decided on masks (score > threshold) of consecutive frames, where two regions are the same thing if they
share pixels. Regions are 8-connected. Pixels whose ground truth is 255 are left out of the mask.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import ScoreMap
from anomseg_ros.datasets.base import ANOMALY, VOID
from anomseg_ros.errors import MetricError
from anomseg_ros.evaluation.results import Drive, DriveObject, DriveSize

MIN_ALARM_PX = 50
"""Smallest area of an alarm: the node's default min_component_px."""

MIN_COVERAGE = 0.1
"""Share of an object's pixels in the mask from which on it counts as detected."""

SIZE_EDGES_PX = (1, 100, 300, 1_000, 3_000, 10_000, 30_000)
"""Lower edges of the bins of object area."""

_Ids = npt.NDArray[np.int32]


@dataclass
class _Object:
    first_ns: int
    detected_ns: int | None = None
    frames: int = 0
    frames_detected: int = 0
    largest_px: int = 0


@dataclass
class DriveTracker:
    """Takes the frames of a drive in order of their stamps and tells what happened; not mergeable, by its nature.

    An alarm is a region of the mask of at least min_alarm_px that touches no anomaly; it is counted when it begins,
    that is when it shares no pixel with an alarm of the frame before. An object is one or more anomalous regions, each
    of which shares pixels with it in the frame before (the largest share decides); it is detected in a frame whose
    mask covers at least min_coverage of it. An object that moves by more than its own size between two frames is a new
    one.
    """

    threshold: float
    threshold_source: str
    min_alarm_px: int = MIN_ALARM_PX
    min_coverage: float = MIN_COVERAGE
    stamps_ns: list[int] = field(default_factory=list)
    onsets_ns: list[int] = field(default_factory=list)
    _objects: list[_Object] = field(default_factory=list)
    _alarm_count: int = 0
    _sizes: dict[int, list[int]] = field(default_factory=lambda: {edge: [0, 0] for edge in SIZE_EDGES_PX})
    _object_ids: _Ids | None = None
    _alarm_ids: _Ids | None = None

    def add(self, stamp_ns: int, scores: ScoreMap | None, anomaly: npt.NDArray[np.uint8]) -> None:
        """Take the next frame: scores float32 and ground truth uint8 (0, 1, 255), both (H, W).

        scores: None for a frame the detector did not answer: its objects are there and not detected, and an alarm that
        was on before goes on after it.

        Raises MetricError for another size, or a stamp that is not after the one before.
        """
        if scores is not None and scores.shape != anomaly.shape:
            raise MetricError(f"scores are {scores.shape}, ground truth {anomaly.shape}; expected the same size (H, W)")
        if self.stamps_ns and stamp_ns <= self.stamps_ns[-1]:
            raise MetricError(f"stamp {stamp_ns} ns comes after {self.stamps_ns[-1]} ns; give frames in order")
        self.stamps_ns.append(stamp_ns)
        if scores is None:
            self._follow_objects(stamp_ns, np.zeros(anomaly.shape, bool), anomaly == ANOMALY)
            return
        mask = (scores > self.threshold) & (anomaly != VOID)
        self._follow_objects(stamp_ns, mask, anomaly == ANOMALY)
        self._follow_alarms(stamp_ns, mask, anomaly == ANOMALY)

    def result(self) -> Drive:
        """Return what happened. Raises MetricError without a frame."""
        if not self.stamps_ns:
            raise MetricError("no frame to tell of; expected a drive of at least one")
        start_ns = self.stamps_ns[0]
        duration_s = self._duration_s()
        objects = tuple(_told(seen, start_ns) for seen in self._objects)
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
        )

    def _follow_objects(self, stamp_ns: int, mask: npt.NDArray[np.bool_], anomalous: npt.NDArray[np.bool_]) -> None:
        def appear() -> int:
            self._objects.append(_Object(stamp_ns))
            return len(self._objects)

        count, regions = cv2.connectedComponents(anomalous.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        ids = _followed(np.asarray(regions, np.int32), count, self._object_ids, appear)
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
            return self._alarm_count

        _, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        false = stats[:, cv2.CC_STAT_AREA] >= self.min_alarm_px
        false[0] = False
        false[np.unique(regions[anomalous])] = False
        numbers = np.where(false, np.cumsum(false), 0).astype(np.int32)
        self._alarm_ids = _followed(numbers[regions], int(false.sum()) + 1, self._alarm_ids, begin)

    def _duration_s(self) -> float:
        """From the first frame to the end of the last, which is taken to last as long as a typical one; 0 for one."""
        if len(self.stamps_ns) < 2:
            return 0.0
        gaps = [after - before for before, after in zip(self.stamps_ns, self.stamps_ns[1:], strict=False)]
        return (self.stamps_ns[-1] - self.stamps_ns[0] + median(gaps)) / 1e9

    def _size_rows(self) -> tuple[DriveSize, ...]:
        ends = (*SIZE_EDGES_PX[1:], None)
        return tuple(DriveSize(edge, end, *self._sizes[edge]) for edge, end in zip(SIZE_EDGES_PX, ends, strict=True))


def _followed(regions: _Ids, count: int, before: _Ids | None, begin: Callable[[], int]) -> _Ids:
    """Return the regions 1 to count - 1 numbered as the things they share most pixels with in the frame before.

    begin: makes the number of a new thing.
    """
    known: dict[int, int] = {}
    if before is not None and before.shape == regions.shape:
        both = (regions > 0) & (before > 0)
        pairs, shared = np.unique(np.stack([regions[both], before[both]]), axis=1, return_counts=True)
        for position in np.argsort(shared, kind="stable"):
            known[int(pairs[0, position])] = int(pairs[1, position])
    numbers = np.zeros(count, np.int32)
    for region in range(1, count):
        numbers[region] = known.get(region) or begin()
    return numbers[regions]


def _told(seen: _Object, start_ns: int) -> DriveObject:
    return DriveObject(
        first_s=(seen.first_ns - start_ns) / 1e9,
        frames=seen.frames,
        largest_px=seen.largest_px,
        frames_detected=seen.frames_detected,
        seconds_to_detection=None if seen.detected_ns is None else (seen.detected_ns - seen.first_ns) / 1e9,
    )
