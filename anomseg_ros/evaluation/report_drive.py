"""The part of a report that only bags have: alarms and objects of the drive, and how the node did live."""

from __future__ import annotations

from anomseg_ros.evaluation.report_page import NOT_MEASURED, count, scrolling, text
from anomseg_ros.evaluation.report_tables import fact_list
from anomseg_ros.evaluation.results import Drive, Live


def drive_section(drive: Drive, where: str) -> str:
    """Return alarms per minute, time to detection and the detection rate by object size, in pixels of area."""
    entries = [
        ("Alarms per minute", _number(drive.alarms_per_minute, 2), f"{drive.alarms} in {drive.duration_s:.1f} s"),
        ("Objects detected", f"{drive.objects_detected} of {len(drive.objects)}", ""),
        ("Median time to detection, s", _number(drive.median_seconds_to_detection, 2), "of the objects detected"),
        *([("Alarms limited to", text(drive.road_region), "")] if drive.road_region is not None else []),
        ("Threshold", f"{drive.threshold:.4g}", text(drive.threshold_source)),
        ("Smallest alarm", f"{count(drive.min_alarm_px)} px", ""),
    ]
    rows = "".join(
        f'<tr><th scope="row">{_size(size.from_px, size.below_px)}</th><td>{count(size.detected)}</td>'
        f"<td>{count(size.frames)}</td><td>{_rate(size.detected, size.frames)}</td></tr>"
        for size in drive.sizes
    )
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Object area, px", "Detected", "Object frames", "Rate, %")
    )
    caption = f"<caption><span>{text(where)}; detection by object size</span></caption>"
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<h4>Drive</h4>{fact_list(entries)}" + (scrolling(table, f"Detection by size, {where}") if rows else "")


def live_section(live: Live) -> str:
    """Return what the node answered and dropped, its latencies, and the difference to the run without drops."""
    entries = [
        ("Frames of the bag", count(live.frames), f"played at {live.rate:g} times real time"),
        ("Answered", count(live.answered), ""),
        ("Dropped for a newer one", count(live.dropped), ""),
        ("Lost on the way", count(live.lost), ""),
        ("Unusable", count(live.bad), ""),
        *((f"Latency {text(name)}, ms", f"{value:.1f}", "stamp to output") for name, value in live.latency_ms.items()),
        *((f"Processing {text(name)}, ms", f"{value:.1f}", "") for name, value in live.processing_ms.items()),
        *((text(name), f"{value:+.6f}", "live minus no drop, fraction") for name, value in live.difference.items()),
    ]
    return f"<h4>Live</h4>{fact_list(entries)}"


def _number(value: float | None, digits: int) -> str:
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def _size(from_px: int, below_px: int | None) -> str:
    return f"{count(from_px)} or more" if below_px is None else f"{count(from_px)} to {count(below_px - 1)}"


def _rate(detected: int, frames: int) -> str:
    return f"{100 * detected / frames:.1f}" if frames else NOT_MEASURED
