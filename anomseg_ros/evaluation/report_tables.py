"""Tables of a report as plain values: the summary as the papers print it, single figures, frames worst first."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from anomseg_ros.evaluation.report_page import NOT_MEASURED, count, fixed, percent
from anomseg_ros.evaluation.results import Consistency, Drive, FrameResult, Live, Result, Streaming

OverlayKey = tuple[str, str, str, str, str]
Fact = tuple[str, str, str]
"""Name, value and note; a value of NOT_MEASURED is not shown."""


@dataclass(frozen=True)
class Figure:
    """One sub-column of the summary."""

    name: str
    of: Callable[[Result], float | None]
    highest_is_best: bool
    depends_on_score: bool = True


_FIGURES = (
    Figure("AuPRC", lambda result: result.auprc, True),
    Figure("FPR95", lambda result: result.fpr95, False),
    Figure("mIoU", lambda result: result.miou, True, depends_on_score=False),
)


@dataclass(frozen=True)
class Cell:
    """A figure, whether it is the best of its column, and whether it is that of the bundle's row above."""

    value: float | None
    is_best: bool = False
    is_repeated: bool = False


@dataclass(frozen=True)
class Summary:
    """One protocol's table: figures by dataset; rows of (bundle, score) with a cell per figure."""

    protocol: str
    columns: Mapping[str, Sequence[Figure]]
    rows: Mapping[tuple[str, str], Sequence[Cell]]


def summary(protocol: str, results: Sequence[Result]) -> Summary:
    """Return one protocol's table: rows bundle and score, columns AuPRC and FPR95 per dataset, best of a column marked.

    mIoU has a column where it was measured. It is the same for all scores of a bundle, and stated once.
    """
    columns = {dataset: _figures_of(dataset, results) for dataset in dict.fromkeys(one.dataset for one in results)}
    cells = {(result.bundle, result.score, result.dataset): result for result in results}
    rows: dict[tuple[str, str], list[Cell]] = {(one.bundle, one.score): [] for one in results}
    for dataset, figures in columns.items():
        for figure in figures:
            best = _best(figure, dataset, results)
            stated: dict[str, float] = {}
            for row, values in rows.items():
                result = cells.get((*row, dataset))
                value = None if result is None else figure.of(result)
                if value is None:
                    values.append(Cell(None))
                    continue
                is_repeated = not figure.depends_on_score and stated.get(row[0]) == value
                values.append(Cell(value, value == best and not is_repeated, is_repeated))
                stated.setdefault(row[0], value)
    return Summary(protocol, columns, rows)


def _figures_of(dataset: str, results: Sequence[Result]) -> list[Figure]:
    """Return what some result of a dataset has: one without anomalies has mIoU only."""
    own = [result for result in results if result.dataset == dataset]
    measured = [figure for figure in _FIGURES if any(figure.of(result) is not None for result in own)]
    return measured or list(_FIGURES[:2])


def _best(figure: Figure, dataset: str, results: Sequence[Result]) -> float | None:
    values = [value for result in results if result.dataset == dataset if (value := figure.of(result)) is not None]
    if len(set(values)) < 2:
        return None  # best of one, or of equals, says nothing
    return max(values) if figure.highest_is_best else min(values)


def facts(result: Result) -> list[Fact]:
    """Return the single figures of a result, with bounds of errors where they are not zero; mIoU is in the summary."""
    named = {
        "Network": result.network,
        "Precision": result.precision,
        "Backend": result.backend,
        "Bundle SHA-256": result.bundle_sha256 and result.bundle_sha256[:12] + "…",
    }
    total = result.known_px + result.anomaly_px
    share = f"{100 * result.anomaly_px / total:.2f} % of all" if total else ""
    return [
        ("AuPRC, %", percent(result.auprc), _bound(result.auprc_error)),
        ("FPR95, %", percent(result.fpr95), _bound(result.fpr95_error)),
        ("AUROC, %", percent(result.auroc), _bound(result.auroc_error)),
        ("Best F1, %", percent(result.best_f1), _at(result.best_f1_threshold)),
        ("ECE, %", percent(result.ece), "calibration error"),
        *_component_facts(result),
        *_threshold_facts(result),
        ("Pipeline, ms", fixed(result.wall_ms, 1), "per frame, all steps"),
        ("Frames", count(result.frames), f"{count(result.frames_skipped)} skipped" if result.frames_skipped else ""),
        ("Known pixels", count(result.known_px) if result.known_px else NOT_MEASURED, ""),
        ("Anomalous pixels", count(result.anomaly_px) if result.known_px else NOT_MEASURED, share),
        *((name, value, "") for name, value in named.items() if value),
    ]


def _bound(error: float | None) -> str:
    return f"error ≤ {100 * error:.1g}" if error else ""


def _at(threshold: float | None) -> str:
    return f"at score ≥ {threshold:.4g}" if threshold is not None else ""


def _component_facts(result: Result) -> list[Fact]:
    parts = result.components
    if parts is None:
        return []
    return [
        ("Component sIoU, %", percent(parts.siou), _at(parts.threshold)),
        ("Component PPV, %", percent(parts.ppv), ""),
        ("Component F1, %", percent(parts.f1), "mean over thresholds"),
    ]


def _threshold_facts(result: Result) -> list[Fact]:
    found = result.at_threshold
    if found is None:
        return []
    where = f"score > {found.threshold:.4g}, {found.source}"
    return [
        ("FPR at the bundle's threshold, %", percent(found.fpr), where),
        ("Found at the bundle's threshold, %", percent(found.tpr), "share of the anomalous pixels"),
    ]


def drive_facts(drive: Drive) -> list[Fact]:
    """Return alarms per minute, objects detected and the time that took."""
    frames_n, frames_m = drive.alarm_frames
    objects = f"{drive.objects_detected} of {len(drive.objects)}" if drive.objects else NOT_MEASURED
    return [
        ("Alarms per minute", fixed(drive.alarms_per_minute, 2), f"{drive.alarms} in {drive.duration_s:.1f} s"),
        *((name.capitalize(), value, "") for name, value in alarm_words(drive).items()),
        ("Objects detected", objects, ""),
        ("Median time to detection, s", fixed(drive.median_seconds_to_detection, 2), "of the objects detected"),
        ("Alarms limited to", drive.road_region or NOT_MEASURED, ""),
        ("Threshold", f"{drive.threshold:.4g}", drive.threshold_source),
        ("Smallest alarm", f"{count(drive.min_alarm_px)} px", ""),
        ("Frames for an alarm", f"{frames_n} of {frames_m}" if frames_n > 1 else NOT_MEASURED, ""),
    ]


def alarm_words(drive: Drive) -> dict[str, str]:
    """Return area and duration of the alarms in words, by name; empty for a drive without alarms."""
    if not drive.events:
        return {}
    areas, seconds = [one.largest_px for one in drive.events], [one.duration_s for one in drive.events]
    words = {
        "largest area of an alarm": f"{count(round(median(areas)))} px (median), {count(max(areas))} px (most)",
        "duration of an alarm": f"{median(seconds):.2f} s (median), {max(seconds):.2f} s (longest)",
    }
    if drive.alarm_share is not None:
        words["pixels in alarms"] = f"{percent(drive.alarm_share, 3)} % of all"
    return words


def is_unlabelled(result: Result) -> bool:
    """Return whether a result has the figures of a drive and none that need ground truth."""
    return result.drive is not None and result.auprc is None and result.miou is None and result.known_px == 0


def consistency_facts(consistency: Consistency) -> list[Fact]:
    """Return the temporal consistency of the masks, and of the ground truth's."""
    return [
        ("Temporal consistency, %", percent(consistency.iou), f"IoU of {count(consistency.pairs)} pairs of masks"),
        ("The same, mIoU, %", percent(consistency.miou), "with that of the other pixels"),
        ("Of the ground truth, %", percent(consistency.truth_iou), "IoU by the same flow"),
    ]


def streaming_facts(streaming: Streaming) -> list[Fact]:
    """Return the figures with answers that come late."""
    return [
        ("Streaming AuPRC, %", percent(streaming.auprc), "newest answer, ground truth of the frame shown"),
        ("Streaming FPR95, %", percent(streaming.fpr95), ""),
        ("Streaming AUROC, %", percent(streaming.auroc), ""),
        ("Age of answers, ms", fixed(streaming.median_age_ms, 0), f"median of {count(streaming.frames)} frames"),
        ("Before the first answer", count(streaming.frames_before_first_answer), "frames, left out"),
    ]


def live_facts(live: Live) -> list[Fact]:
    """Return what the node answered and dropped, its latencies, and the difference to the run without drops."""
    return [
        ("Frames of the bag", count(live.frames), f"played at {live.rate:g} times real time"),
        ("Answered", count(live.answered), ""),
        ("Dropped for a newer one", count(live.dropped), ""),
        ("Lost on the way", count(live.lost), ""),
        ("Unusable", count(live.bad), ""),
        *(
            (f"Latency {name}, ms", f"{value:.1f}", "frame sent to last output received")
            for name, value in live.age_ms.items()
        ),
        *(
            (f"Processing {name}, ms", f"{value:.1f}", "arrival to last output")
            for name, value in live.processing_ms.items()
        ),
        *((f"{name}, live", value, "minus the value without drops") for name, value in live_differences(live).items()),
    ]


def live_differences(live: Live) -> dict[str, str]:
    """Return the differences to the run without drops as texts, by figure: shares in points, others as they are.

    The figures are those of bag_evaluate.differences.
    """
    words = {}
    for name, value in live.difference.items():
        if name in _SHARES:
            words[_SHARES[name]] = f"{100 * value:+.2f} points"
        else:
            words[name.replace("_", " ").capitalize()] = f"{value:+g}"
    return words


_SHARES = {"auprc": "AuPRC", "fpr95": "FPR95", "auroc": "AUROC", "miou": "mIoU"}
"""Figures of a difference that are fractions of 1, with their names."""


@dataclass(frozen=True)
class Column:
    """One sortable column: its header, the raw value to sort by, its text, and the order of a first tap."""

    name: str
    of: Callable[[FrameResult], float | None]
    shown: Callable[[float], str]
    first: str


_COLUMNS = (
    Column("AuPRC, %", lambda frame: frame.auprc, percent, "ascending"),
    Column("FPR95, %", lambda frame: frame.fpr95, percent, "descending"),
    Column("Anomalous px", lambda frame: frame.anomaly_px, lambda value: count(int(value)), "descending"),
    Column("Time, ms", lambda frame: frame.inference_ms, lambda value: f"{value:.1f}", "descending"),
    Column("Network, ms", lambda frame: frame.network_ms, lambda value: f"{value:.1f}", "descending"),
)


@dataclass(frozen=True)
class FrameTable:
    """Frames of a result with the columns that some of them have, and their overlays, JPEG in base 64, by frame id."""

    frames: Sequence[FrameResult]
    columns: Sequence[Column]
    pictures: Mapping[str, str]


def frame_table(result: Result, overlays: Mapping[OverlayKey, bytes]) -> FrameTable:
    """Return the frames, lowest AuPRC first, those without anomalies last, each beside its overlay if any."""
    frames = sorted(result.per_frame, key=lambda frame: (frame.auprc is None, frame.auprc or 0.0))
    pictures = {
        key[4]: base64.b64encode(picture).decode("ascii") for key, picture in overlays.items() if key[:4] == result.key
    }
    # Where nothing was measured frame by frame, there may be something to see.
    frames = frames or [FrameResult(name, 0, 0) for name in pictures]
    columns = [column for column in _COLUMNS if any(column.of(frame) for frame in frames)]
    return FrameTable(frames, columns, pictures)
