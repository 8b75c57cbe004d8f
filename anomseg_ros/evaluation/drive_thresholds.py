"""Thresholds from an unlabelled drive, and how well they hold on a part of it that they do not come from.

Neighbouring frames are almost equal, so the drive is cut into blocks of consecutive frames, and every third block is
held back. All pixels are known except the own vehicle and, with a road region, what is outside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.preprocess import resized_scores
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.road_region import RoadRegion
from anomseg_ros.core.types import Outputs, RgbImage
from anomseg_ros.datasets.dataset import VOID
from anomseg_ros.datasets.unlabelled_drive import UnlabelledDrive
from anomseg_ros.errors import MetricError
from anomseg_ros.evaluation.calibrate import NATIVE_PROTOCOL, ThresholdChange, share_above, threshold_changes
from anomseg_ros.evaluation.drive import MIN_ALARM_PX
from anomseg_ros.evaluation.measures import MeasureSpec
from anomseg_ros.evaluation.passes import PassTask, model_source, seen_frames
from anomseg_ros.evaluation.workers import Workers
from anomseg_ros.metrics.pixel_curves import PixelCurves

MIN_FRAMES = 20
"""Fewer frames say too little of a road: their thresholds would be those of a single view."""

BLOCK_FRAMES = 30
MAX_HELD_BACK_BLOCKS = 10
"""A drive is cut into blocks of at least BLOCK_FRAMES, as many as possible; no more than these are held back."""

SHOWN_RATE = 0.01
"""The node's default of target_fpr."""

_TAIL_STEP_PX = 4
"""Step between the rows and columns that a frame's quantile is taken from."""

TOLERANCE = 2.0
"""A rate holds if it is at most this factor above or below its target on the part held back."""


@dataclass(frozen=True)
class DriveRequest:
    """A drive, and the bundle to run on it. road: where pixels count, None for everywhere. min_alarm_px: smallest area
    of an alarm."""

    bundle: Bundle
    drive: UnlabelledDrive
    scores: tuple[str, ...]
    target_fprs: tuple[float, ...]
    road: RoadRegion | None = None
    backend: str = "onnxruntime"
    options: BackendOptions = field(default_factory=BackendOptions)
    target_alarms_per_minute: tuple[float, ...] = ()
    min_alarm_px: int = MIN_ALARM_PX

    @property
    def shown_rate(self) -> float:
        """The target rate of the page of frames: the one closest to SHOWN_RATE."""
        return min(self.target_fprs, key=lambda rate: abs(rate - SHOWN_RATE))


@dataclass(frozen=True)
class HeldBackRate:
    """A calibrated threshold and the rate on the part held back. ratio: of this rate to the target."""

    change: ThresholdChange
    fpr: float

    @property
    def ratio(self) -> float:
        """The rate on the part held back, as a multiple of the target."""
        return self.fpr / self.change.target_fpr

    @property
    def holds(self) -> bool:
        """Whether the rate is within TOLERANCE of the target."""
        return 1 / TOLERANCE <= self.ratio <= TOLERANCE


@dataclass(frozen=True)
class DriveThresholds:
    """used, held_back: numbers of frames. roadless: frames without a road, in which all pixels count.

    tails: frame's index -> about the quantile 1 - shown_rate of its first score. The higher it is, the more of the
    frame is above the threshold. curves, checked: pixels by score of the frames used, and of those held back.
    """

    rates: tuple[HeldBackRate, ...]
    used: int
    held_back: int
    roadless: int
    tails: Mapping[int, float]
    curves: Mapping[str, PixelCurves]
    checked: Mapping[str, PixelCurves]

    @property
    def changes(self) -> list[ThresholdChange]:
        """The calibrated thresholds."""
        return [rate.change for rate in self.rates]


def split_blocks(count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the positions of the frames to calibrate on and of those held back, about a third of `count`.

    Raises MetricError for fewer than MIN_FRAMES.
    """
    if count < MIN_FRAMES:
        raise MetricError(
            f"the drive has {count} frames; thresholds need at least {MIN_FRAMES}, and hundreds are better: give a "
            "longer drive, or several"
        )
    return without_blocks(range(count), 3, 1)


def without_blocks(indices: Sequence[int], parts: int, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the indices without block `number` of every `parts` blocks of consecutive ones, and those of these blocks.

    number: from 0 to parts - 1.
    """
    count = len(indices)
    blocks = parts * max(1, min(MAX_HELD_BACK_BLOCKS, count // (parts * BLOCK_FRAMES)))
    edges = [round(count * block / blocks) for block in range(blocks + 1)]
    taken = {place for block in range(number, blocks, parts) for place in range(edges[block], edges[block + 1])}
    rest = tuple(index for place, index in enumerate(indices) if place not in taken)
    return rest, tuple(indices[place] for place in sorted(taken))


def calibrate_on_drive(
    request: DriveRequest, progress: Progress = no_progress, calibration: Sequence[int] | None = None
) -> DriveThresholds:
    """Return the thresholds that keep the target rates on two thirds of a drive, and their rates on the other third.

    Args:
        request: drive, bundle, scores and rates.
        progress: called after each frame.
        calibration: the frames that the thresholds come from, None for all that are not held back.

    Raises:
        MetricError: too few frames; before any frame is read. Reading frames raises the package's errors.
    """
    used, held_back = split_blocks(len(request.drive))
    used = used if calibration is None else tuple(calibration)
    counted, checked = _Counts(request.scores), _Counts(request.scores)
    _count(request, used, counted, "calibration", progress)
    _count(request, held_back, checked, "held back", progress)
    drive = {score: (curves,) for score, curves in counted.curves.items()}
    changes = threshold_changes(request.bundle, drive, request.target_fprs)
    rates = (_held_back(change, checked.curves[change.score]) for change in changes)
    roadless = counted.roadless + checked.roadless
    tails = counted.tails | checked.tails
    return DriveThresholds(tuple(rates), len(used), len(held_back), roadless, tails, counted.curves, checked.curves)


def drive_frames(request: DriveRequest, indices: Sequence[int]) -> Iterator[DriveFrame]:
    """Yield frames of the drive, in order, with what the bundle says of them. Raises the package's errors."""
    spec = MeasureSpec(request.scores, (NATIVE_PROTOCOL,), road=request.road)
    source = model_source(request.bundle, request.backend, request.options, Workers())
    for frame in seen_frames(PassTask(request.drive, tuple(indices), source, spec)):
        view, outputs = frame.of_size(None)
        assert view.anomaly is not None and outputs is not None
        counted = _limited(view.anomaly, outputs)
        roadless = request.road is not None and outputs.region is None
        yield DriveFrame(frame.index, frame.frame_id, view.image, counted, outputs, roadless)


@dataclass(frozen=True, eq=False)
class DriveFrame:
    """A frame of a drive, uint8 (H, W, 3) RGB. counted: uint8 (H, W), 0 for pixels that count and 255 for others.
    roadless: a road was asked for and none was found, so all pixels count."""

    index: int
    name: str
    image: RgbImage
    counted: npt.NDArray[np.uint8]
    outputs: Outputs
    roadless: bool

    def scores(self, name: str) -> npt.NDArray[np.float32]:
        """Return a score at the frame's own size, float32 (H, W)."""
        height, width = self.counted.shape
        return resized_scores(self.outputs.scores[name], height, width)


class _Counts:
    """What is counted of a part of the drive; see DriveThresholds. curves: pixels by score."""

    def __init__(self, scores: Sequence[str]) -> None:
        self.curves = {score: PixelCurves() for score in scores}
        self.tails: dict[int, float] = {}
        self.roadless = 0

    def add(self, frame: DriveFrame, tail_share: float) -> None:
        """Count a frame. Raises MetricError for scores that are not finite."""
        for number, (score, counted) in enumerate(self.curves.items()):
            scores = frame.scores(score)
            try:
                counted.add(scores, frame.counted)
            except MetricError as error:
                raise MetricError(f"frame {frame.name!r}, score {score!r}: {error}") from error
            if number == 0:
                some = (slice(None, None, _TAIL_STEP_PX),) * 2
                pixels = scores[some][frame.counted[some] != VOID]
                self.tails[frame.index] = float(np.quantile(pixels, 1 - tail_share)) if pixels.size else -np.inf
        self.roadless += frame.roadless


def _count(request: DriveRequest, indices: Sequence[int], counts: _Counts, part: str, progress: Progress) -> None:
    for done, frame in enumerate(drive_frames(request, indices), start=1):
        counts.add(frame, request.shown_rate)
        progress(part, done, len(indices))


def _limited(known: npt.NDArray[np.uint8], outputs: Outputs) -> npt.NDArray[np.uint8]:
    if outputs.region is None:
        return known
    size = known.shape[1], known.shape[0]
    outside = cv2.resize(outputs.region, size, interpolation=cv2.INTER_NEAREST) == 0
    return np.where(outside, np.uint8(VOID), known)


def _held_back(change: ThresholdChange, checked: PixelCurves) -> HeldBackRate:
    fpr = share_above(checked, change.threshold)[0]
    if fpr is None:
        raise MetricError(f"score {change.score!r}: no pixel of the frames held back counts; look at the ego mask")
    return HeldBackRate(change, fpr)
