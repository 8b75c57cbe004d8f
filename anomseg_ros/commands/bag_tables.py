"""The tables that `anomseg bag evaluate` prints of a drive."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from anomseg_ros.evaluation.bag_evaluate import BagPart
from anomseg_ros.evaluation.report_page import percent
from anomseg_ros.evaluation.report_tables import alarm_words, is_unlabelled, live_differences
from anomseg_ros.evaluation.results import Drive, Live, Result, Streaming


def drive_table(result: Result, drive: Drive) -> Table:
    """Return the alarms and detections of a drive."""
    title = (
        f"{result.dataset}: {result.score} > {drive.threshold:g} ({drive.threshold_source}), {drive.duration_s:.1f} s"
    )
    if drive.road_region is not None:
        title += f"; alarms limited to the region {drive.road_region!r}"
    table = Table(title=title, title_justify="left", show_header=False)
    rate = "-" if drive.alarms_per_minute is None else f"{drive.alarms_per_minute:.2f} per minute"
    table.add_row("alarms", f"{drive.alarms} of {drive.min_alarm_px} px or more, {rate}")
    for name, value in alarm_words(drive).items():
        table.add_row(name, value)
    delay = drive.median_seconds_to_detection
    detected = _detected_objects(drive) + ("" if delay is None else f", after {delay:.2f} s (median)")
    if drive.objects or result.anomaly_px:
        table.add_row("objects detected", detected)
    for size in drive.sizes:
        if size.frames:
            upper = "px or more" if size.below_px is None else f"to {size.below_px - 1} px"
            share = f"{100 * size.detected / size.frames:.1f} % of {size.frames} object frames"
            table.add_row(f"detected at {size.from_px} {upper}", share)
    if (consistency := result.consistency) is not None:
        shares = {
            "anomaly IoU": consistency.iou,
            "mIoU": consistency.miou,
            "of the ground truth itself": consistency.truth_iou,
        }
        figures = ", ".join(f"{name} {percent(value)}" for name, value in shares.items())
        table.add_row("temporal consistency, %", f"{figures}; {consistency.pairs} pairs of masks")
    return table


def _detected_objects(drive: Drive) -> str:
    return f"{drive.objects_detected} of {len(drive.objects)}"


def streaming_table(results: Sequence[Result], streaming: Streaming) -> Table:
    """Return the figures of results with answers that come late."""
    table = Table(
        "protocol",
        "AuPRC",
        "FPR95",
        "AUROC",
        title=f"{results[0].dataset}: streaming accuracy, %: the newest output compared with the current frame; "
        f"{streaming.frames} frames, {streaming.frames_before_first_answer} before the first output, "
        f"outputs {streaming.median_age_ms:.0f} ms older (median)",
        title_justify="left",
    )
    for result in results:
        if (figures := result.streaming) is not None:
            table.add_row(result.protocol, percent(figures.auprc), percent(figures.fpr95), percent(figures.auroc))
    return table


def bags_table(bags: Sequence[BagPart]) -> Table:
    """Return the contribution of each bag."""
    table = Table("bag", "frames", "seconds", "alarms", "objects detected", title="per bag", title_justify="left")
    for part in bags:
        drive = part.drive
        cells = ["-"] * 3
        if drive is not None:
            cells = [f"{drive.duration_s:.1f}", str(drive.alarms), _detected_objects(drive)]
        table.add_row(escape(part.name), str(part.frames) + (", failed" if part.failure else ""), *cells)
    return table


def live_table(result: Result, live: Live) -> Table:
    """Return what the node answered, and how late."""
    protocol = "" if is_unlabelled(result) else f", protocol {result.protocol}"
    title = f"{result.dataset}: played at {live.rate:g} times its speed{protocol}"
    table = Table(title=title, title_justify="left", show_header=False)
    counts = f"{live.answered} answered, {live.dropped} dropped, {live.lost} lost, {live.bad} bad"
    table.add_row(f"{live.frames} frames", counts)
    times = {
        "arrival to output": live.processing_ms,
        "frame to listener": live.age_ms,
    }
    for name, values in times.items():
        table.add_row(f"{name}, ms", ", ".join(f"{key} {value:.1f}" for key, value in values.items()) or "-")
    for name, value in live_differences(live).items():
        table.add_row(f"{name}, live - offline", value)
    return table
