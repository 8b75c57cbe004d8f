"""What an evaluation says, as plain data: written to JSON, read by the report and by `anomseg compare`.

Fractions are 0 to 1; None means not measured (no anomaly pixel, no semantic labels, …). Times are milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.output_files import write_results
from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import ConfigError, reason_of

FORMAT_VERSION = 1


@dataclass(frozen=True)
class FrameResult:
    """One frame: its pixels, its own AuPRC and FPR95 (None without anomaly pixels), its times."""

    frame_id: str
    known_px: int
    anomaly_px: int
    auprc: float | None = None
    fpr95: float | None = None
    inference_ms: float | None = None
    network_ms: float | None = None


@dataclass(frozen=True)
class Curves:
    """Points to draw: x and y of equal length. histogram: bin edges (n + 1) and pixel counts (n) of both kinds."""

    recall: tuple[float, ...] = ()
    precision: tuple[float, ...] = ()
    fpr: tuple[float, ...] = ()
    tpr: tuple[float, ...] = ()
    histogram_edges: tuple[float, ...] = ()
    histogram_known: tuple[int, ...] = ()
    histogram_anomaly: tuple[int, ...] = ()
    reliability_confidence: tuple[float, ...] = ()
    reliability_accuracy: tuple[float, ...] = ()
    reliability_share: tuple[float, ...] = ()


@dataclass(frozen=True)
class Components:
    """SegmentMeIfYouCan's component metrics at the best-F1 threshold."""

    siou: float
    ppv: float
    f1: float
    threshold: float


@dataclass(frozen=True)
class AtThreshold:
    """What the bundle's own threshold does here: shares of known and of anomalous pixels above it, None without any.

    source: the rate that the threshold was calibrated for, and on what. In frames without an anomaly mask every
    labelled pixel is known.
    """

    threshold: float
    source: str
    fpr: float | None
    tpr: float | None


@dataclass(frozen=True)
class DriveObject:
    """One object of a drive, followed by overlap: when it appeared (seconds since the first frame), in how many frames
    it was there and detected, its largest area, and the time from appearing to the first detection (None: never)."""

    first_s: float
    frames: int
    largest_px: int
    frames_detected: int
    seconds_to_detection: float | None


@dataclass(frozen=True)
class DriveSize:
    """Objects whose area was from_px or more and (None: no limit) less than below_px: object frames, and detected."""

    from_px: int
    below_px: int | None
    frames: int
    detected: int


@dataclass(frozen=True)
class DriveAlarm:
    """One alarm: when it began (seconds since the first frame), how long it lasted, and its largest area."""

    first_s: float
    duration_s: float
    largest_px: int


@dataclass(frozen=True)
class DriveMoment:
    """A frame with many pixels in alarms."""

    stamp_ns: int
    alarm_px: int


@dataclass(frozen=True)
class Drive:
    """A bag as a drive, see drive.py: alarms by their onsets, objects by the time to their first detection.

    alarm_frames: n and m: alarms are of things that are above the threshold in n of m frames. road_region: alarms
    outside this region of the detector's labels are no alarms, and detect nothing; None: no limit. alarm_share: of the
    pixels, in alarms, mean over the frames. worst: moments of the drive with most pixels in alarms, at least a second
    apart; of several bags together there are none.
    """

    threshold: float
    threshold_source: str
    min_alarm_px: int
    min_coverage: float
    frames: int
    duration_s: float
    alarms: int
    alarms_per_minute: float | None
    alarm_onsets_s: tuple[float, ...] = ()
    objects: tuple[DriveObject, ...] = ()
    objects_detected: int = 0
    median_seconds_to_detection: float | None = None
    sizes: tuple[DriveSize, ...] = ()
    road_region: str | None = None
    alarm_frames: tuple[int, int] = (1, 1)
    events: tuple[DriveAlarm, ...] = ()
    alarm_share: float | None = None
    worst: tuple[DriveMoment, ...] = ()


@dataclass(frozen=True)
class Consistency:
    """Masks of consecutive answers, the first moved to where the scene is in the second: see consistency.py.

    pairs: of masks. iou: of anomalous pixels; miou: mean with that of the others. truth_iou: of the ground truth's own
    masks, about the most that can be had. None where there is nothing to compare.
    """

    threshold: float
    pairs: int
    iou: float | None
    miou: float | None
    truth_iou: float | None


@dataclass(frozen=True)
class Streaming:
    """A result's figures with answers that come late: see streaming.py.

    frames: that had an answer when they were shown. median_age_ms: by how much its frame was older.
    """

    frames: int
    frames_before_first_answer: int
    median_age_ms: float
    auprc: float | None
    fpr95: float | None
    auroc: float | None


@dataclass(frozen=True)
class Live:
    """A bag played through the node. Frames of the bag, answered by the node, dropped by it (it took a newer one),
    lost on the way to it, unusable; figure name -> live minus no-drop. Times by percentile name: the node's stamp to
    output, its arrival to last output, and from sending a frame to a listener's having its last output."""

    rate: float
    frames: int
    answered: int
    dropped: int
    lost: int
    bad: int
    latency_ms: Mapping[str, float]
    processing_ms: Mapping[str, float]
    difference: Mapping[str, float]
    age_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One bundle on one dataset by one score and protocol; see metrics/protocols.py for what the numbers mean."""

    bundle: str
    dataset: str
    score: str
    protocol: str
    frames: int
    auprc: float | None
    fpr95: float | None
    auroc: float | None
    miou: float | None
    frames_skipped: int = 0
    known_px: int = 0
    anomaly_px: int = 0
    auprc_error: float | None = None
    auroc_error: float | None = None
    fpr95_error: float | None = None
    best_f1: float | None = None
    best_f1_threshold: float | None = None
    iou: Mapping[str, float] | None = None
    components: Components | None = None
    at_threshold: AtThreshold | None = None
    """None where the bundle has no calibrated threshold of the score."""
    ece: float | None = None
    inference_ms: Mapping[str, float] | None = None
    network_ms: Mapping[str, float] | None = None
    bundle_sha256: str | None = None
    network: str | None = None
    precision: str | None = None
    backend: str | None = None
    curves: Curves = Curves()
    per_frame: tuple[FrameResult, ...] = ()
    wall_ms: float | None = None
    """Time per frame of the whole pipeline: loading, inference and measuring, which overlap."""
    notes: tuple[str, ...] = ()
    """What was not measured or may surprise, and why."""
    drive: Drive | None = None
    """Bags only: figures of the score that makes the mask."""
    consistency: Consistency | None = None
    """As drive."""
    streaming: Streaming | None = None
    """Bags of which it is known when frames were shown and answered."""
    live: Live | None = None
    """Figures of a bag that was played through the node."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two results comparable: bundle, dataset, score, protocol."""
        return self.bundle, self.dataset, self.score, self.protocol


@dataclass(frozen=True)
class Figures:
    """AuPRC, FPR95 and mIoU; in a ratio, 1 is no change."""

    auprc: float | None = None
    fpr95: float | None = None
    miou: float | None = None


@dataclass(frozen=True)
class CorruptedFigures:
    """The figures of all frames under one kind of corruption at one severity, 1 to 5."""

    kind: str
    severity: int
    frames: int
    figures: Figures


@dataclass(frozen=True)
class Robustness:
    """One clean result again under corruptions, see datasets/corruptions.py: the figures of clean frames, their mean
    over all corruptions, None where one of them lacks the figure, mean over clean, and each corruption's."""

    bundle: str
    dataset: str
    score: str
    protocol: str
    clean: Figures
    mean: Figures
    ratio: Figures
    corruptions: tuple[CorruptedFigures, ...]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The clean result's key."""
        return self.bundle, self.dataset, self.score, self.protocol


@dataclass(frozen=True)
class Evaluation:
    """Results, and everything that is needed to repeat them."""

    format_version: int
    results: tuple[Result, ...]
    created: str = ""
    command: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The request: bundles with their digests, datasets with their paths and frame counts, options."""
    robustness: tuple[Robustness, ...] = ()
    """What corruptions were asked for made of the results; never among the results themselves."""


def save_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write JSON, see write_results. NaN and infinity are refused: None is what was not measured."""
    write_results(path, json.dumps(to_plain(evaluation, keep_none=True), indent=1, allow_nan=False) + "\n")


def stated_frames(evaluation: Evaluation, source: str) -> tuple[Delivered, ...]:
    """Return, of every result that lists its frames, the number of frames that it states and those it lists."""
    return tuple(
        Delivered(f"{source}: {one.bundle} on {one.dataset}, {one.score}", "frames", one.frames, len(one.per_frame))
        for one in evaluation.results
        if one.per_frame
    )


def load_evaluation(path: Path) -> Evaluation:
    """Read what save_evaluation wrote. Raises ConfigError naming the file and what is wrong with it."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is not an evaluation: {reason_of(error)}; `anomseg evaluate --json {path.name}` writes one"
        ) from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise ConfigError(f"{path}: evaluation format {version!r}, this anomseg_ros reads {FORMAT_VERSION}")
    return from_plain(Evaluation, data, str(path))
