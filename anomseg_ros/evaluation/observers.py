"""What looks at the frames of a pass, in their order: the measures of a dataset, and the figures of a drive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anomseg_ros.core.preprocess import resized_scores
from anomseg_ros.core.road_region import RoadRegion, limited_scores
from anomseg_ros.core.types import Outputs
from anomseg_ros.evaluation.drive import DriveSpec
from anomseg_ros.evaluation.measures import Measures, TimedOutputs, require_finite
from anomseg_ros.evaluation.results import Drive
from anomseg_ros.evaluation.views import View

Seen = tuple[View, TimedOutputs | None]
"""A frame at one size, and what the detector said of it, None where nobody needs that."""


@dataclass(frozen=True)
class SeenFrame:
    """A frame at every size that is needed; seen: what the detector said, None for a frame that it did not answer."""

    index: int
    frame_id: str
    views: tuple[View, ...]
    seen: tuple[Seen, ...] | None = None

    def of_size(self, size_px: tuple[int, int] | None) -> tuple[View, Outputs | None]:
        """Return the view of a size and its outputs, None where there are none."""
        view = next(view for view in self.views if view.size_px == size_px)
        answers = [timed for other, timed in self.seen or () if other is view and timed is not None]
        return view, answers[0].outputs if answers else None


class Observer:
    """Takes the frames of a pass. A frame is shown to `check` of every observer before any observer counts it."""

    def check(self, frame: SeenFrame) -> None:
        """Raise MetricError for a frame that cannot be counted."""

    def add(self, frame: SeenFrame) -> None:
        """Count a frame. Raises MetricError; nothing of the frame is then counted here."""
        raise NotImplementedError


class MeasuresObserver(Observer):
    """Adds frames to measures; the first observer, since only adding shows whether it can. A frame without an answer is
    left out. times_only: nothing but times is measured; first_index: index in the measures of the dataset's first
    frame."""

    def __init__(self, measures: Measures, first_index: int = 0, *, times_only: bool = False) -> None:
        self._measures, self._first_index, self._times_only = measures, first_index, times_only

    def add(self, frame: SeenFrame) -> None:
        """Count a frame; see Measures.add."""
        if frame.seen is None:
            return
        add = self._measures.add_times if self._times_only else self._measures.add
        sizes = self._measures.spec.sizes
        seen = [(view, timed) for view, timed in frame.seen if view.size_px in sizes]
        add(self._first_index + frame.index, frame.frame_id, seen)


class DriveObserver(Observer):
    """Follows alarms and objects at the frames' own size, and again with alarms limited to the road, if there is one.

    stamps_ns: of the frames by their index. A frame without an answer is part of the drive; one without an anomaly mask
    is not.
    """

    def __init__(self, spec: DriveSpec, road: RoadRegion | None, stamps_ns: Sequence[int]) -> None:
        self._score, self._road, self._stamps_ns = spec.score, road, stamps_ns
        self._trackers = [spec.tracker() for _ in range(1 if road is None else 2)]

    def check(self, frame: SeenFrame) -> None:
        """Raise MetricError for scores that are not finite."""
        _, outputs = frame.of_size(None)
        if outputs is not None:
            require_finite(frame.frame_id, self._score, outputs.scores[self._score])

    def add(self, frame: SeenFrame) -> None:
        """Follow what is in the next frame."""
        view, outputs = frame.of_size(None)
        if view.anomaly is None:
            return
        scores = None if outputs is None else resized_scores(outputs.scores[self._score], *view.anomaly.shape)
        for tracker, limited in zip(self._trackers, (False, True), strict=False):
            if limited and scores is not None and outputs is not None:
                scores = limited_scores(scores, outputs.region, -np.inf)
            tracker.add(self._stamps_ns[frame.index], scores, view.anomaly)

    @property
    def drives(self) -> tuple[Drive | None, Drive | None]:
        """What happened so far, and the same with alarms limited to the road; None without a frame, or a road."""
        told = [tracker.result() if tracker.stamps_ns else None for tracker in self._trackers]
        limited = told[1] if len(told) > 1 else None
        return told[0], None if limited is None or self._road is None else replace(limited, road_region=self._road.name)
