"""What a bundle does on the held-back part of a drive: alarms at equal detection of pasted objects.

A threshold alone says little of a bundle, since another bundle has other scores. So each bundle is judged at the
highest threshold at which it detects a given number of objects. Number and objects are the same for all bundles. The
objects are pasted into the frames held back. The alarms and the share of pixels above that threshold are counted in
these frames without objects, where every alarm is a false one.

An object is detected if MIN_COVERAGE of its pixels are above the threshold, as in `bag evaluate`. At low thresholds
regions merge, until the whole frame is one alarm. So the alarms of a threshold are the most that any threshold from it
upwards has, as in evaluation/drive_alarms.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anomseg_ros.adaptation.pasted_drive import object_pixels
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.datasets.unlabelled_drive import UnlabelledDrive
from anomseg_ros.errors import DatasetError, MetricError
from anomseg_ros.evaluation.calibrate import share_above
from anomseg_ros.evaluation.drive import MIN_COVERAGE
from anomseg_ros.evaluation.drive_alarms import AlarmCounter, minutes_of
from anomseg_ros.evaluation.drive_thresholds import DriveRequest, drive_frames
from anomseg_ros.metrics.pixel_curves import PixelCurves
from anomseg_ros.metrics.reliability import threshold_at_fpr

MAX_PASTED_FRAMES = 60
"""Frames with objects, spread over the frames held back; one to three objects each."""

LEAST_DETECTED = 0.5
"""Bundles are compared where at least this share of the objects is detected. Detecting nothing takes no alarm."""

_HIGHER_THRESHOLDS = 10
"""Thresholds above the one that is judged, whose alarms are counted as well."""

_FRAME_NS = 100_000_000
"""Time between frames whose time nothing states; no figure depends on it."""


@dataclass(frozen=True)
class Detection:
    """How well a bundle sees the pasted objects.

    lowest_scores: of each object, the highest threshold (exclusive) at which it is detected, falling.
    """

    lowest_scores: tuple[float, ...]

    def detected(self, threshold: float) -> int:
        """Return the number of objects detected at a threshold."""
        return sum(score > threshold for score in self.lowest_scores)

    def threshold_for(self, count: int) -> float:
        """Return the highest float32 threshold at which at least `count` objects are detected."""
        return float(np.nextafter(np.float32(self.lowest_scores[count - 1]), np.float32(-np.inf)))


@dataclass(frozen=True)
class Figures:
    """What a bundle does on the frames held back, at the threshold that detects `detected` of the `objects`.

    pixel_rate: share of the pixels that count above it. alarms: see the module. minutes: None where the frames have no
    times.
    """

    objects: int
    detected: int
    threshold: float
    pixel_rate: float
    alarms: int
    frames: int
    minutes: float | None = None

    @property
    def alarms_per_minute(self) -> float | None:
        """Alarms per minute, where the frames have times."""
        return self.alarms / self.minutes if self.minutes else None

    def is_better_than(self, other: Figures) -> bool:
        """Return whether there are fewer alarms and no more pixels in them."""
        return self.alarms < other.alarms and self.pixel_rate <= other.pixel_rate


def see_objects(
    request: DriveRequest, pasted: UnlabelledDrive, held_back: Sequence[int], progress: Progress = no_progress
) -> Detection:
    """Return how well a bundle sees the objects in frames held back, by the request's first score.

    Args:
        request: bundle, its first score, and the region.
        pasted: the request's drive with objects.
        held_back: frames of the drive.
        progress: called after each frame.

    Raises:
        MetricError: no object lies where pixels count.
    """
    step = max(1, -(-len(held_back) // MAX_PASTED_FRAMES))
    indices, score = held_back[::step], request.scores[0]
    # Objects are not part of a road as the network sees it, so they count everywhere but on the own vehicle.
    on_pasted = replace(request, drive=pasted, scores=(score,), road=None)
    found: list[float] = []
    for done, frame in enumerate(drive_frames(on_pasted, indices), start=1):
        scores = frame.scores(score)
        for pixels in object_pixels(frame.counted, request.min_alarm_px):
            values = np.sort(scores[pixels])[::-1]
            found.append(float(values[max(0, int(np.ceil(MIN_COVERAGE * len(values))) - 1)]))
        progress("pasted objects", done, len(indices))
    if not found:
        raise MetricError("no pasted object lies where pixels count; look at the ego mask")
    return Detection(tuple(sorted(found, reverse=True)))


def count_alarms(
    request: DriveRequest,
    held_back: Sequence[int],
    checked: PixelCurves,
    detection: Detection,
    wanted: int,
    progress: Progress = no_progress,
) -> Figures:
    """Return a bundle's figures at the threshold that detects `wanted` objects.

    Args:
        request: bundle, its first score, drive and region.
        held_back: frames of the drive.
        checked: their pixels by score.
        detection: of the pasted objects.
        wanted: number of objects to detect.
        progress: called after each frame.
    """
    score, threshold = request.scores[0], detection.threshold_for(wanted)
    rate = share_above(checked, threshold)[0]
    assert rate is not None
    counter = AlarmCounter(_from(threshold, checked, rate), request.min_alarm_px)
    before = None
    for done, frame in enumerate(drive_frames(replace(request, scores=(score,)), held_back), start=1):
        follows = before == frame.index - 1 and request.drive.follows(frame.index)
        counter.add(_stamp_ns(request.drive, frame.index), frame.scores(score), frame.counted, follows=follows)
        before = frame.index
        progress("alarms held back", done, len(held_back))
    return Figures(
        objects=len(detection.lowest_scores),
        detected=detection.detected(threshold),
        threshold=threshold,
        pixel_rate=rate,
        alarms=counter.most(),
        frames=len(held_back),
        minutes=_minutes(request.drive, held_back),
    )


def wanted_objects(detection: Detection, threshold: float) -> int:
    """Return the number of objects at which bundles are compared: what the given bundle detects at its threshold of
    the drive, and at least LEAST_DETECTED of all."""
    least = int(np.ceil(LEAST_DETECTED * len(detection.lowest_scores)))
    return max(detection.detected(threshold), least, 1)


def _from(threshold: float, checked: PixelCurves, rate: float) -> list[float]:
    """Return a threshold and some higher ones, falling."""
    lowest = 0.5 / max(checked.known_px, 10)
    rates = np.geomspace(lowest, max(rate, 2 * lowest), _HIGHER_THRESHOLDS + 1)[:-1]
    higher = {threshold_at_fpr(checked, float(one)).threshold for one in rates}
    return sorted({threshold, *(one for one in higher if one > threshold)}, reverse=True)


def _stamp_ns(drive: UnlabelledDrive, index: int) -> int:
    try:
        return drive.stamp_ns(index)
    except DatasetError:  # only the order matters to the alarms
        return index * _FRAME_NS


def _minutes(drive: UnlabelledDrive, indices: Sequence[int]) -> float | None:
    try:
        return minutes_of(drive, indices) or None
    except DatasetError:
        return None
