"""Thresholds by alarms per minute from an unlabelled drive: every alarm is a false one.

An alarm is what `bag evaluate` counts (drive.py): a region of the mask of some area, counted when it begins. At lower
thresholds regions merge, until the whole frame is one alarm. So the threshold is the lowest one for which all higher
ones keep the number of alarms as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.bundle import Contract
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.thresholds import AlarmThreshold
from anomseg_ros.core.types import ScoreMap
from anomseg_ros.datasets.unlabelled_drive import UnlabelledDrive
from anomseg_ros.errors import MetricError
from anomseg_ros.evaluation.drive import DriveTracker
from anomseg_ros.evaluation.drive_thresholds import (
    TOLERANCE,
    DriveRequest,
    DriveThresholds,
    drive_frames,
    split_blocks,
)
from anomseg_ros.metrics.pixel_curves import PixelCurves
from anomseg_ros.metrics.reliability import threshold_at_fpr

HIGHEST_RATE = 0.1
CANDIDATES = 60
"""Thresholds that are tried: those of so many pixel rates from HIGHEST_RATE down to less than one pixel."""

TELLING_ALARMS = 3
"""A part of the drive in which the target allows fewer alarms than this is too short to tell whether it holds."""


@dataclass(frozen=True)
class HeldBackAlarms:
    """A threshold by alarms per minute. alarms, held_back: numbers in the frames used and in those held back."""

    score: str
    target_per_minute: float
    threshold: float
    alarms: int
    minutes: float
    held_back: int
    held_back_minutes: float

    @property
    def held_back_per_minute(self) -> float:
        """Alarms per minute in the frames held back."""
        return self.held_back / self.held_back_minutes

    @property
    def ratio(self) -> float:
        """Alarms per minute in the frames held back, as a multiple of the target."""
        return self.held_back_per_minute / self.target_per_minute

    @property
    def tells(self) -> bool:
        """Whether the frames held back are long enough to tell."""
        return self.target_per_minute * self.held_back_minutes >= TELLING_ALARMS

    @property
    def holds(self) -> bool:
        """Whether there are no more than TOLERANCE times as many alarms as wanted. Fewer are no fault."""
        return self.ratio <= TOLERANCE


def check_minutes(request: DriveRequest) -> None:
    """Raise MetricError if a part of the drive is too short for a target, and DatasetError if frames have no times."""
    if not request.target_alarms_per_minute:
        return
    used, held_back = split_blocks(len(request.drive))
    minutes, lowest = minutes_of(request.drive, used), min(request.target_alarms_per_minute)
    minutes_of(request.drive, held_back)
    if lowest * minutes < 1:
        raise MetricError(
            f"{lowest:g} alarms per minute allow no alarm in the {60 * minutes:.1f} s that the thresholds come from; "
            f"give a drive of at least {1.5 / lowest:.1f} minutes, or a higher target"
        )


def calibrate_alarms(
    request: DriveRequest, found: DriveThresholds, progress: Progress = no_progress
) -> tuple[HeldBackAlarms, ...]:
    """Return a threshold per score and target, with the alarms in the frames held back. Raises the package's errors."""
    check_minutes(request)
    used, held_back = split_blocks(len(request.drive))
    minutes, held_back_minutes = minutes_of(request.drive, used), minutes_of(request.drive, held_back)
    targets = request.target_alarms_per_minute
    budgets = {target: int(target * minutes + 1e-9) for target in sorted(targets)}
    counters = {
        score: AlarmCounter(candidates(counted), request.min_alarm_px, max(budgets.values()))
        for score, counted in found.curves.items()
    }
    _count(request, used, counters, "alarms", progress)
    chosen = {(score, target): counters[score].lowest(budgets[target]) for score in counters for target in budgets}
    values = {score: sorted({chosen[score, target][0] for target in budgets}, reverse=True) for score in counters}
    checks = {score: AlarmCounter(values[score], request.min_alarm_px) for score in counters}
    _count(request, held_back, checks, "alarms held back", progress)
    return tuple(
        HeldBackAlarms(score, target, threshold, alarms, minutes, checks[score].alarms_at(threshold), held_back_minutes)
        for (score, target), (threshold, alarms) in chosen.items()
    )


def with_alarm_thresholds(contract: Contract, found: Sequence[HeldBackAlarms], calibrated_on: str) -> Contract:
    """Return the contract with these thresholds; its scores have thresholds by rate already."""
    tables = dict(contract.thresholds)
    for one in found:
        threshold = AlarmThreshold(one.threshold, calibrated_on)
        tables[one.score] = tables[one.score].with_alarms({one.target_per_minute: threshold})
    return replace(contract, thresholds=tables)


class AlarmCounter:
    """Counts the alarms of several thresholds, from frame to frame of a stretch, not from one stretch to the next.

    A threshold with more alarms than `limit` is given up, and all lower ones with it.
    """

    def __init__(self, thresholds: Sequence[float], min_alarm_px: int, limit: int | None = None) -> None:
        """thresholds: falling."""
        self._thresholds, self._min_alarm_px, self._limit = list(thresholds), min_alarm_px, limit
        self._before = [0] * len(thresholds)
        self._trackers: list[DriveTracker] = []

    def add(self, stamp_ns: int, scores: ScoreMap, counted: npt.NDArray[np.uint8], *, follows: bool) -> None:
        """Count the next frame; follows: it continues the stretch of the last one. Raises MetricError."""
        if not follows or not self._trackers:
            self._before = [self._alarms(number) for number in range(len(self._thresholds))]
            self._trackers = [DriveTracker(one, "", self._min_alarm_px) for one in self._thresholds]
        for number, tracker in enumerate(self._trackers):
            tracker.add(stamp_ns, scores, counted)
            if self._limit is not None and self._alarms(number) > self._limit:
                del self._thresholds[number:], self._trackers[number:]
                break

    def lowest(self, budget: int) -> tuple[float, int]:
        """Return the lowest threshold that, as all higher ones, has at most so many alarms, and their number.

        Raises MetricError if there is none.
        """
        best: tuple[float, int] | None = None
        for number, threshold in enumerate(self._thresholds):
            alarms = self._alarms(number)
            if alarms > budget:
                break
            best = threshold, alarms
        if best is None:
            raise MetricError(f"no threshold has at most {budget} alarms")
        return best

    def alarms_at(self, threshold: float) -> int:
        """Return the number of alarms of a threshold."""
        return self._alarms(self._thresholds.index(threshold))

    def most(self) -> int:
        """Return the most alarms that any of the thresholds has."""
        return max(map(self._alarms, range(len(self._thresholds))))

    def _alarms(self, number: int) -> int:
        return self._before[number] + (len(self._trackers[number].onsets_ns) if self._trackers else 0)


def candidates(counted: PixelCurves) -> list[float]:
    """Return the thresholds to try, falling; no pixel counted is above the first one."""
    rates = np.geomspace(HIGHEST_RATE, 0.5 / max(counted.known_px, 10), CANDIDATES)
    return sorted({threshold_at_fpr(counted, float(rate)).threshold for rate in rates}, reverse=True)


def minutes_of(drive: UnlabelledDrive, indices: Sequence[int]) -> float:
    """Return how long frames of a drive last, each up to the next one. Raises DatasetError where they have no times."""
    gaps: list[int] = []
    for before, index in pairwise(indices):
        if index == before + 1 and drive.follows(index):
            gaps.append(drive.stamp_ns(index) - drive.stamp_ns(before))
    if not gaps:
        drive.stamp_ns(indices[0])
        return 0.0
    stretches = len(indices) - len(gaps)
    return (sum(gaps) + stretches * median(gaps)) / 60e9


def _count(
    request: DriveRequest, indices: Sequence[int], counters: Mapping[str, AlarmCounter], part: str, progress: Progress
) -> None:
    before = None
    for done, frame in enumerate(drive_frames(request, indices), start=1):
        follows = before == frame.index - 1 and request.drive.follows(frame.index)
        stamp_ns = request.drive.stamp_ns(frame.index)
        for score, counter in counters.items():
            counter.add(stamp_ns, frame.scores(score), frame.counted, follows=follows)
        before = frame.index
        progress(part, done, len(indices))
