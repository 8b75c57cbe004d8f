"""Temporal consistency: whether consecutive masks say the same of the same things.

Tian et al. (Latency-aware Road Anomaly Segmentation in Videos, arXiv 2401.04942, 2024) ask for it of road anomalies.
Their formula was not at hand; this is the usual one of video segmentation (Liu et al., Efficient Semantic Video
Segmentation with Per-frame Inference, ECCV 2020), so the figures are ours after them. The mask of the answer before is
moved by optical flow to where the scene is now and compared with the mask of now; pixels are summed over all pairs.
`iou` is of the anomalous pixels, `miou` the mean with that of the others. A mask that is always empty, or always full,
is consistent: read AuPRC beside it.

Flow is dense inverse search (Kroeger et al., ECCV 2016) at 512 pixels across, preset medium. It errs at the edges of
things and where they cover one another, so the ground truth's own masks are compared in the same way: `truth_iou` is
about the most that can be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.preprocess import resized_scores
from anomseg_ros.core.temporal_filter import FrameFlow
from anomseg_ros.datasets.dataset import ANOMALY, VOID
from anomseg_ros.evaluation.drive import DriveSpec
from anomseg_ros.evaluation.observers import Observer, SeenFrame
from anomseg_ros.evaluation.results import Consistency
from anomseg_ros.metrics.mask_pairs import NO_PAIRS, MaskPairs

MAX_PAIR_S = 1.0
"""Answers that are further apart are no pair."""

FLOW_WIDTH_PX = 512

_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ConsistencyCounts:
    """The pairs of masks of some bags, all of one threshold, and the pairs of their ground truth."""

    threshold: float
    predicted: MaskPairs = NO_PAIRS
    true: MaskPairs = NO_PAIRS

    def plus(self, other: ConsistencyCounts) -> ConsistencyCounts:
        """Return the sums."""
        return ConsistencyCounts(self.threshold, self.predicted.plus(other.predicted), self.true.plus(other.true))

    def result(self) -> Consistency | None:
        """Return the figures; None without a pair."""
        if not self.predicted.pairs:
            return None
        return Consistency(
            threshold=self.threshold,
            pairs=self.predicted.pairs,
            iou=self.predicted.iou,
            miou=self.predicted.miou,
            truth_iou=self.true.iou,
        )


@dataclass(frozen=True)
class _Before:
    stamp_ns: int
    gray: npt.NDArray[np.uint8]
    mask: _Bools
    anomalous: _Bools


class ConsistencyObserver(Observer):
    """Compares the masks of consecutive answers, at the frames' own size; frames without an answer are passed over.

    stamps_ns: of the frames by their index. Pixels that were not in view before, or whose ground truth is 255, are not
    counted.
    """

    def __init__(self, spec: DriveSpec, stamps_ns: Sequence[int]) -> None:
        self._spec, self._stamps_ns = spec, stamps_ns
        self.counts = ConsistencyCounts(spec.threshold)
        self._flow: FrameFlow | None = None
        self._before: _Before | None = None

    def add(self, frame: SeenFrame) -> None:
        """Compare a frame's mask with the one before."""
        view, outputs = frame.of_size(None)
        if outputs is None or view.anomaly is None:
            return
        height, width = view.anomaly.shape
        if self._flow is None or self._flow.shape != (height, width):
            self._flow = FrameFlow(height, width, FLOW_WIDTH_PX, cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
            self._before = None
        scores = resized_scores(outputs.scores[self._spec.score], height, width)
        stamp_ns, gray = self._stamps_ns[frame.index], self._flow.small(view.image)
        now = _Before(stamp_ns, gray, scores > np.float32(self._spec.threshold), view.anomaly == ANOMALY)
        if self._before is not None and stamp_ns - self._before.stamp_ns <= MAX_PAIR_S * 1e9:
            self._compare(self._flow, self._before, now, view.anomaly != VOID)
        self._before = now

    def _compare(self, flow: FrameFlow, before: _Before, now: _Before, counted: _Bools) -> None:
        places = flow.between(before.gray, now.gray)
        counted &= flow.in_view(places)
        pairs = [
            MaskPairs.of(flow.nearest(old, places), new, counted)
            for old, new in ((before.mask, now.mask), (before.anomalous, now.anomalous))
        ]
        self.counts = self.counts.plus(ConsistencyCounts(self._spec.threshold, *pairs))


def pooled_consistency(of_bags: Sequence[ConsistencyCounts | None]) -> Consistency | None:
    """Return the figures of all bags' pairs together; None without any."""
    counts = [one for one in of_bags if one is not None]
    if not counts:
        return None
    pooled = counts[0]
    for one in counts[1:]:
        pooled = pooled.plus(one)
    return pooled.result()
