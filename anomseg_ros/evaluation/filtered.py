"""Scores of a pass smoothed over time, by the filter of the node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from anomseg_ros.core.temporal_filter import FilterSpec, ScoreFilter
from anomseg_ros.evaluation.measures import TimedOutputs
from anomseg_ros.evaluation.observers import SeenFrame
from anomseg_ros.evaluation.views import Size, View


def filtered_frames(frames: Iterable[SeenFrame], spec: FilterSpec, stamps_ns: Sequence[int]) -> Iterator[SeenFrame]:
    """Yield frames, which come in order, with filtered scores; every size and score has a past of its own.

    stamps_ns: of the frames by their index.
    """
    filters: defaultdict[tuple[Size, str], ScoreFilter] = defaultdict(ScoreFilter)

    def filtered(view: View, timed: TimedOutputs, stamp_ns: int) -> TimedOutputs:
        scores = {
            name: filters[view.size_px, name].filtered(spec, name, stamp_ns, scores, view.image)
            for name, scores in timed.outputs.scores.items()
        }
        return replace(timed, outputs=replace(timed.outputs, scores=scores))

    for frame in frames:
        stamp_ns = stamps_ns[frame.index]
        seen = tuple(
            (view, None if timed is None else filtered(view, timed, stamp_ns)) for view, timed in frame.seen or ()
        )
        yield replace(frame, seen=None if frame.seen is None else seen)
