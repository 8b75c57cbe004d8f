"""The demo's page: the drive as a film of three pictures per frame, with counts, latencies and what was found.

One HTML file beside its pictures; no network, readable on a phone. Without scripts it shows the first frame.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from anomseg_ros.commands.demo_film import SCRIPT, STYLE
from anomseg_ros.commands.demo_frames import PICTURES, ShownDrive, ShownFrame
from anomseg_ros.core.labels import UNLABELLED
from anomseg_ros.core.overlay import ANOMALY_COLOR
from anomseg_ros.evaluation.bag_drive import MIN_ALARM_PX
from anomseg_ros.evaluation.report_page import count, scrolling, text
from anomseg_ros.evaluation.report_style import STYLE as REPORT_STYLE

if TYPE_CHECKING:
    from anomseg_ros.commands.demo import DemoResult

CAPTIONS = {
    "camera": "What the camera sees",
    "overlay": "What the node says: classes, anomalies",
    "score": "How anomalous each pixel is",
}
_STRIP_WIDTH = 1000


def write_page(path: Path, result: DemoResult, shown: ShownDrive, detector: Mapping[str, str]) -> Path:
    """Write the page and return its path. The pictures lie beside it; `detector` is the node's own status."""
    title = f"{result.bundle} on {result.drive}"
    body = [
        f"<h1>{text(title)}</h1>",
        f'<p class="lead">{text(" ".join(result.about))}</p>',
        _facts(result, shown),
        f'<p class="{"pace slow" if is_too_slow(result) else "pace"}">{text(pace(result))}</p>',
        _film(shown, detector) if shown.frames else "<p>The node answered no frame; its log is node.log.</p>",
        _latencies(result),
        f'<p class="note">{text(_mask(result, detector, shown))}</p>',
    ]
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{REPORT_STYLE}{STYLE}</style></head>"
    )
    script = f"<script>{SCRIPT}</script>" if shown.frames else ""
    path.write_text(f"{head}<body><main>{''.join(body)}</main>{script}</body></html>\n", encoding="utf-8")
    return path


def is_too_slow(result: DemoResult) -> bool:
    """Return whether the node had to leave out frames because it takes longer than they are apart."""
    return result.dropped > 0 and result.processing_ms.get("p50", 0.0) > result.period_ms


def pace(result: DemoResult) -> str:
    """Return what is to be said of drops and of the speed of the replay."""
    takes_ms = result.processing_ms.get("p50", 0.0)
    if is_too_slow(result):
        return (
            "The network is too slow for this drive on this machine, as busy as it was: it took "
            f"{takes_ms:.0f} ms, frames came every {result.period_ms:.0f} ms, and {result.dropped} of "
            f"{result.frames_in} were dropped for a newer one, as on a vehicle. "
            "A smaller bundle, int8 or a lower --rate shows them all."
        )
    dropped = "No frame was dropped" if not result.dropped else f"{result.dropped} frames were dropped for a newer one"
    if result.rate < 1:
        return (
            f"{dropped}. The drive was played at {result.rate:g} times its speed, a frame every {result.period_ms:.0f} "
            f"ms, at which this machine keeps up: the node takes about {takes_ms:.0f} ms a frame."
        )
    return f"{dropped}. The drive was played in real time, a frame every {result.period_ms:.0f} ms."


def _facts(result: DemoResult, shown: ShownDrive) -> str:
    facts = [
        ("Frames", f"{count(result.published)} of {count(result.frames_in)}", "answered by the node"),
        ("Dropped", count(result.dropped), f"{result.lost} lost on the way, {result.bad} unusable"),
        ("Latency", _ms(result.age_ms, "p50"), f"frame to listener, median; p95 {_ms(result.age_ms, 'p95')}"),
        ("Alarms on the road", *_road_alarms(result, shown)),
    ]
    if result.anomalies is not None:
        facts.insert(3, ("Anomalies found", f"{result.found} of {result.anomalies}", "at least half marked in a frame"))
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{text(value)}<small>{text(note)}</small></dd></div>" for name, value, note in facts
    )
    return f'<dl class="facts big">{cells}</dl>'


def _road_alarms(result: DemoResult, shown: ShownDrive) -> tuple[str, str]:
    """Return how many alarms a frame has on the road, at known anomalies and elsewhere, as a value and its note."""
    frames = max(len(shown.frames), 1)
    at_anomalies = sum(frame.on_anomaly for frame in shown.frames) / frames
    elsewhere = sum(frame.road_alarms for frame in shown.frames) / frames - at_anomalies
    if result.anomalies is None:
        return f"{elsewhere:.1f}", "a frame"
    return f"{at_anomalies:.1f}", f"a frame at anomalies, {elsewhere:.1f} elsewhere on it"


def _film(shown: ShownDrive, detector: Mapping[str, str]) -> str:
    first = shown.frames[0]
    legends = {"camera": "", "overlay": _class_legend(shown), "score": _score_legend(shown, detector)}
    screens = "".join(
        f'<figure><figcaption>{text(CAPTIONS[kind])}</figcaption><img id="{kind}" src="{text(name)}" '
        f'alt="{text(CAPTIONS[kind])}">{legends[kind]}</figure>'
        for kind, name in zip(PICTURES, first.files, strict=True)
    )
    last = len(shown.frames) - 1
    controls = (
        '<div class="controls"><button id="play" type="button" aria-label="Play or pause">▶</button>'
        f'<input id="frame" type="range" min="0" max="{last}" value="0" aria-label="Frame">'
        '<output id="where"></output></div>'
    )
    frames = json.dumps([_plain(frame) for frame in shown.frames]).replace("<", "\\u003c")
    data = f'<script type="application/json" id="frames">{frames}</script>'
    return f'<div class="film">{screens}</div>{_strip(shown.frames)}{controls}{data}'


def _plain(frame: ShownFrame) -> dict[str, object]:
    return {
        "t": round(frame.time_s, 3),
        "files": frame.files,
        "road": frame.road_alarms,
        "known": frame.on_anomaly,
        "other": frame.other_alarms,
    }


def _strip(frames: tuple[ShownFrame, ...]) -> str:
    """Return the drive as a row of bars: alarms on the road, those at a known anomaly in another colour."""
    wide = _STRIP_WIDTH / len(frames)
    tallest = max(1, *(frame.road_alarms for frame in frames))
    bars = []
    for index, frame in enumerate(frames):
        bottom = 40.0
        parts = (("at", frame.on_anomaly), ("elsewhere", frame.road_alarms - frame.on_anomaly))
        for kind, alarms in parts:
            high = 36.0 * alarms / tallest
            bottom -= high
            if alarms:
                place = f'x="{index * wide:.2f}" y="{bottom:.2f}" width="{wide * 0.9:.2f}" height="{high:.2f}"'
                bars.append(f'<rect class="{kind}" {place}/>')
    cursor = f'<rect id="cursor" x="0" y="0" width="{max(wide, 3):.2f}" height="40"/>'
    legend = (
        '<p class="strip-legend"><span class="at"></span>alarm on the road at a known anomaly '
        '<span class="elsewhere"></span>elsewhere on the road</p>'
    )
    label = "Alarms on the road over the drive"
    return (
        f'<svg id="strip" viewBox="0 0 {_STRIP_WIDTH} 40" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f"{''.join(bars)}{cursor}</svg>{legend}"
    )


def _class_legend(shown: ShownDrive) -> str:
    entries = [("anomaly", ANOMALY_COLOR)]
    entries += [(known.name, known.color) for known in shown.classes if known.train_id != UNLABELLED]
    chips = "".join(
        f'<li><i style="background:rgb({",".join(map(str, color))})"></i>{text(name)}</li>' for name, color in entries
    )
    return f'<ul class="classes">{chips}</ul>'


def _score_legend(shown: ShownDrive, detector: Mapping[str, str]) -> str:
    low, high = shown.drawn_range
    mark = ""
    if shown.threshold is not None:
        share = 100 * (shown.threshold - low) / (high - low)
        mark = f'<i style="left:{share:.1f}%" title="threshold"></i>'
    known = "" if shown.found is None else "; white outlines: known anomalies"
    return (
        f'<div class="scale"><span>{low:.3g}</span><b>{mark}</b><span>{high:.3g}</span></div>'
        f'<p class="note">{text(detector.get("score", "score"))}; the mark is the threshold{known}</p>'
    )


def _latencies(result: DemoResult) -> str:
    rows = ""
    for name, values in (
        ("frame sent to result received, both ways through ROS", result.age_ms),
        ("in the node: arrival to output", result.processing_ms),
    ):
        cells = "".join(f"<td>{_ms(values, key)}</td>" for key in ("p50", "p95", "p99"))
        rows += f'<tr><th scope="row">{name}</th>{cells}</tr>'
    head = "<tr><th>Latency</th><th>p50</th><th>p95</th><th>p99</th></tr>"
    return scrolling(f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>", "Latency")


def _mask(result: DemoResult, detector: Mapping[str, str], shown: ShownDrive) -> str:
    names = ("score", "threshold", "threshold_source")
    score, threshold, source = (detector.get(name, "unknown") for name in names)
    beside = sum(frame.other_alarms > 0 for frame in shown.frames)
    return (
        f"Backend {result.backend}. An anomaly is where {score} is above {threshold} ({source}). An alarm is a region "
        f"of it of at least {MIN_ALARM_PX} of the network's pixels. It is on the road inside the convex outline of "
        f"what is labelled so. {beside} of {len(shown.frames)} frames have alarms beside the road."
    )


def _ms(values: Mapping[str, float], key: str) -> str:
    return f"{values[key]:.0f} ms" if key in values else "–"
