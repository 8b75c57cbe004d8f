"""The demo's page: the drive as a film of three pictures per frame, with counts, latencies and found anomalies.

One HTML file beside its pictures. It needs no network and fits on a phone. Without scripts it shows the first frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from anomseg_ros.commands.demo_frames import ShownDrive, ShownFrame
from anomseg_ros.core.labels import UNLABELLED
from anomseg_ros.core.output_files import write_results
from anomseg_ros.core.picture_legend import UNKNOWN
from anomseg_ros.core.resources import DEMO_BUNDLE
from anomseg_ros.core.score_scale import color_map
from anomseg_ros.evaluation.drive import MIN_ALARM_PX
from anomseg_ros.evaluation.report_page import asset, count, render
from anomseg_ros.evaluation.report_style import STYLE

if TYPE_CHECKING:
    from anomseg_ros.commands.demo import DemoResult

CAPTIONS = {
    "camera": "What the camera sees",
    "overlay": "What the node says: classes and anomalies",
    "score": "How anomalous each pixel is",
}
_STRIP_WIDTH = 1000
_COLOR_STOPS = 15


def write_page(path: Path, result: DemoResult, shown: ShownDrive, detector: Mapping[str, str]) -> Path:
    """Write the page and return its path; the pictures must be in the same folder.

    Args:
        path: file to write.
        result: figures of the demo.
        shown: the drawn frames.
        detector: the node's detector status in the diagnostics.
    """
    classes = [(info.name, info.color) for info in shown.classes if info.train_id != UNLABELLED]
    document = render(
        "demo.html",
        f"{result.bundle} on {result.drive}",
        style=STYLE + asset("film.css"),
        script=asset("film.js"),
        about=" ".join(result.about),
        facts=_facts(result, shown),
        too_slow=is_too_slow(result),
        pace=pace(result),
        captions=CAPTIONS,
        shown=shown,
        classes=classes,
        unknown=UNKNOWN if len(classes) < len(shown.classes) else "",
        color_stops=[tuple(color) for color in color_map()[:: len(color_map()) // _COLOR_STOPS].tolist()],
        score=detector.get("score", "score"),
        strip_width=_STRIP_WIDTH,
        bars=_bars(shown.frames),
        played=result.frames_in,
        film=[_film_frame(frame) for frame in shown.frames],
        latencies={
            name: [_ms(values, key) for key in ("p50", "p95", "p99")]
            for name, values in (
                ("frame sent to last output received, both ways through ROS", result.age_ms),
                ("in the node: arrival to last output", result.processing_ms),
            )
        },
        mask=_mask_note(result, detector, shown),
    )
    write_results(path, document)
    return path


def is_too_slow(result: DemoResult) -> bool:
    """Return whether the node dropped frames because it takes longer than the time between frames."""
    return result.dropped > 0 and result.processing_ms.get("p50", 0.0) > result.period_ms


def pace(result: DemoResult) -> str:
    """Return sentences about dropped frames and the speed of the replay."""
    frame_ms = result.processing_ms.get("p50", 0.0)
    if is_too_slow(result):
        return (
            "The network is too slow for this drive on this machine under its current load: it took "
            f"{frame_ms:.0f} ms a frame, frames came every {result.period_ms:.0f} ms, and {result.dropped} of "
            f"{result.frames_in} were dropped for a newer one, as on a vehicle. "
            f"With {'' if result.bundle == DEMO_BUNDLE else f'a smaller bundle, such as {DEMO_BUNDLE}, or '}a lower "
            "--rate, all frames are shown."
        )
    drops = "No frame was dropped" if not result.dropped else f"{result.dropped} frames were dropped for a newer one"
    if result.rate < 1:
        return (
            f"{drops}. The drive was played at {result.rate:g} times its speed, a frame every {result.period_ms:.0f} "
            f"ms, so that this machine keeps up: the node takes about {frame_ms:.0f} ms a frame."
        )
    return f"{drops}. The drive was played in real time, a frame every {result.period_ms:.0f} ms."


def _facts(result: DemoResult, shown: ShownDrive) -> list[tuple[str, str, str]]:
    facts = [
        ("Frames", f"{count(result.published)} of {count(result.frames_in)}", "answered by the node"),
        ("Dropped", count(result.dropped), f"{result.lost} lost on the way, {result.bad} unusable"),
        ("Latency", _ms(result.age_ms, "p50"), f"frame to listener, median; p95 {_ms(result.age_ms, 'p95')}"),
        ("Alarms on the road", *_road_alarms(result, shown)),
    ]
    if result.anomalies is not None:
        note = "at least half covered by the mask in a frame"
        facts.insert(3, ("Anomalies found", f"{result.found} of {result.anomalies}", note))
    return facts


def _road_alarms(result: DemoResult, shown: ShownDrive) -> tuple[str, str]:
    """Return the mean number of alarms on the road per frame, at known anomalies and elsewhere, as value and note."""
    frames = max(len(shown.frames), 1)
    at_anomalies = sum(frame.on_anomaly for frame in shown.frames) / frames
    elsewhere = sum(frame.road_alarms for frame in shown.frames) / frames - at_anomalies
    if result.anomalies is None:
        return f"{elsewhere:.1f}", "per frame"
    return f"{at_anomalies:.1f}", f"per frame at anomalies, {elsewhere:.1f} elsewhere on the road"


def _film_frame(frame: ShownFrame) -> dict[str, object]:
    """Return a frame as film.js expects it."""
    return {
        "number": frame.number,
        "t": round(frame.time_s, 3),
        "files": frame.files,
        "road": frame.road_alarms,
        "known": frame.on_anomaly,
        "truth": frame.known_anomalies,
        "other": frame.other_alarms,
    }


def _bars(frames: tuple[ShownFrame, ...]) -> list[tuple[str, float, float, float, float]]:
    """Return kind, x, y, width and height of the bars for road alarms, at a known anomaly and elsewhere."""
    max_alarms = max((1, *(frame.road_alarms for frame in frames)))
    bars = []
    for index, frame in enumerate(frames):
        pitch, y = _STRIP_WIDTH / len(frames), 40.0
        for kind, alarms in (("at", frame.on_anomaly), ("elsewhere", frame.road_alarms - frame.on_anomaly)):
            height = 36.0 * alarms / max_alarms
            y -= height
            if alarms:
                bars.append((kind, index * pitch, y, pitch * 0.9, height))
    return bars


def _mask_note(result: DemoResult, detector: Mapping[str, str], shown: ShownDrive) -> str:
    names = ("score", "threshold", "threshold_source")
    score, threshold, source = (detector.get(name, "unknown") for name in names)
    other_frames = sum(frame.other_alarms > 0 for frame in shown.frames)
    return (
        f"Backend {result.backend}. The mask marks pixels whose {score} is above {threshold} ({source}). An alarm is a "
        f"region of the mask with at least {MIN_ALARM_PX} pixels at the network's size. It is on the road if it is "
        "inside the convex hull of the largest part with the label road. "
        f"{other_frames} of {len(shown.frames)} frames have alarms beside the road."
    )


def _ms(values: Mapping[str, float], key: str) -> str:
    return f"{values[key]:.0f} ms" if key in values else "–"
