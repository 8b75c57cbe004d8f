"""Latency-aware streaming accuracy: what is known of the frame that is shown now, with answers that come late.

Streaming perception (Li et al., Towards Streaming Perception, ECCV 2020) judges, at the time of every frame, the newest
answer that is finished by then against the ground truth of that frame. Tian et al. (Latency-aware Road Anomaly
Segmentation in Videos, arXiv 2401.04942, 2024) ask for it of road anomalies, comparing the answer to the frame at T
with the ground truth at T + latency. Their exact formula was not at hand, so the figures are ours after them: those of
a protocol, over the pairs (scores of the newest finished answer, ground truth of the frame shown). The latency is
neither assumed nor constant: when frames were shown and answered is what was recorded.

With no latency these are the protocol's own figures. Any other latency is a frame's at least, since an answer to a
frame is never there when the frame is shown. Frames before the first answer are left out, and counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import median
from typing import Protocol as Structure

from anomseg_ros.core.types import Outputs
from anomseg_ros.evaluation.measures import MeasureSpec, scores_in_protocol
from anomseg_ros.evaluation.observers import Observer, SeenFrame
from anomseg_ros.evaluation.recorded import Timeline
from anomseg_ros.evaluation.results import Streaming
from anomseg_ros.metrics.protocols import PixelAccumulator, protocol


class Recording(Structure):
    """Where the outputs of frames are found by their stamps."""

    @property
    def stamps_ns(self) -> frozenset[int]: ...

    def outputs(self, stamp_ns: int) -> Outputs: ...


@dataclass
class StreamingCounts:
    """Pixels of frames shown by the score of the newest answer, by protocol; mergeable.

    ages_ns: by how much each answer's frame is older than the frame shown. early: frames before the first answer.
    """

    spec: MeasureSpec
    curves: dict[str, PixelAccumulator] = field(default_factory=dict)
    ages_ns: list[int] = field(default_factory=list)
    early: int = 0

    def __post_init__(self) -> None:
        """Make what is not given yet. Labels were not shown with the road that they would limit scores to."""
        for name in self.spec.protocols:
            if protocol(name).road_region is None:
                self.curves.setdefault(name, protocol(name).new_accumulator(exact=self.spec.exact))

    def merge(self, other: StreamingCounts) -> StreamingCounts:
        """Return the counts of both."""
        # The type of an accumulator is its protocol's, so both sides are of one kind.
        curves = {name: one.merge(other.curves[name]) for name, one in self.curves.items()}  # type: ignore[arg-type]
        return StreamingCounts(self.spec, curves, self.ages_ns + other.ages_ns, self.early + other.early)

    def result(self, name: str) -> Streaming | None:
        """Return the figures of a protocol; None without an answer, or for a protocol that is not counted."""
        curves = self.curves.get(name)
        if curves is None or not self.ages_ns:
            return None
        read = protocol(name).read(curves) if curves.known_px and curves.anomaly_px else None
        return Streaming(
            frames=len(self.ages_ns),
            frames_before_first_answer=self.early,
            median_age_ms=median(self.ages_ns) / 1e6,
            auprc=None if read is None else read.auprc,
            fpr95=None if read is None else read.fpr95,
            auroc=None if read is None else read.auroc,
        )


class StreamingObserver(Observer):
    """Counts the newest answer's scores against the ground truth of each frame; see the module.

    recording: of the answers; others in the timeline are passed over. stamps_ns: of the frames by their index.
    """

    def __init__(self, spec: MeasureSpec, timeline: Timeline, recording: Recording, stamps_ns: Sequence[int]) -> None:
        self.counts = StreamingCounts(spec)
        self._score, self._recording, self._stamps_ns = spec.scores[0], recording, stamps_ns
        self._shown_ns = timeline.shown_ns
        self._answers = _NewestAnswers(timeline, recording.stamps_ns)
        self._newest: tuple[int, Outputs] | None = None

    def add(self, frame: SeenFrame) -> None:
        """Count a frame. Raises MetricError, BagError or FrameError for scores that cannot be read or counted."""
        stamp_ns = self._stamps_ns[frame.index]
        if stamp_ns not in self._shown_ns or frame.views[0].anomaly is None:
            return
        answer_ns = self._answers.at(self._shown_ns[stamp_ns])
        if answer_ns is None:
            self.counts.early += 1
            return
        if self._newest is None or self._newest[0] != answer_ns:
            self._newest = answer_ns, self._recording.outputs(answer_ns)
        for name, curves in self.counts.curves.items():
            view, _ = frame.of_size(protocol(name).size_px)
            if view.anomaly is not None and view.counts_in(protocol(name)):
                scores = scores_in_protocol(self._newest[1], (self._score, name), view.anomaly.shape)
                protocol(name).add(curves, scores, view.anomaly)
        self.counts.ages_ns.append(stamp_ns - answer_ns)


class _NewestAnswers:
    """Stamps of the newest frames that are answered by a time."""

    def __init__(self, timeline: Timeline, recorded: Collection[int]) -> None:
        # No answer is there before its frame is shown, whatever clocks say.
        finished = sorted(
            (max(answered_ns, timeline.shown_ns[stamp_ns]), stamp_ns)
            for stamp_ns, answered_ns in timeline.answered_ns.items()
            if stamp_ns in timeline.shown_ns and stamp_ns in recorded
        )
        self._times_ns = [time_ns for time_ns, _ in finished]
        self._stamps_ns = list(accumulate((stamp_ns for _, stamp_ns in finished), max))

    def at(self, time_ns: int) -> int | None:
        position = bisect_right(self._times_ns, time_ns)
        return self._stamps_ns[position - 1] if position else None


def pooled_streaming(of_bags: Sequence[StreamingCounts | None]) -> Mapping[str, Streaming]:
    """Return protocol -> the figures of all bags together; empty without any."""
    counts = [one for one in of_bags if one is not None]
    if not counts:
        return {}
    pooled = counts[0]
    for one in counts[1:]:
        pooled = pooled.merge(one)
    told = {name: pooled.result(name) for name in pooled.curves}
    return {name: result for name, result in told.items() if result is not None}
