"""The demo's page: counts, latencies and pictures in one HTML file beside its PNGs; no network, readable on a phone."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anomseg_ros.commands.demo import DemoResult

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1400px; padding: 1rem; }
h1 { font-size: 1.4rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #8884; padding: .3rem .9rem .3rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 600px), 1fr)); }
figure { margin: 0; }
img { display: block; height: auto; width: 100%; }
figcaption { font-size: .85rem; opacity: .75; }
.scroll { overflow-x: auto; }
"""


def write_page(path: Path, result: DemoResult, pictures: Sequence[Path], detector: Mapping[str, str]) -> Path:
    """Write the page and return its path. `pictures` lie beside it; `detector` is the node's own status."""
    title = f"{result.bundle} on {result.bag}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(_summary(result, detector))}</p>",
        _latency_table(result),
        '<div class="pictures">',
        *(_figure(picture) for picture in pictures),
        "</div></body></html>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


def _summary(result: DemoResult, detector: Mapping[str, str]) -> str:
    counts = f"{result.frames_in} frames in, {result.published} out, {result.dropped} dropped for a newer one"
    faults = f"{result.lost} lost on the way to the node, {result.bad} unusable"
    threshold = f"Mask: {detector.get('score')} above {detector.get('threshold')} ({detector.get('threshold_source')})"
    return f"{counts}, {faults}. Backend {result.backend}. {threshold}."


def _latency_table(result: DemoResult) -> str:
    rows = [
        "<tr><td>{}</td>{}</tr>".format(name, "".join(f"<td>{value:.1f}</td>" for value in values.values()))
        for name, values in (("stamp to output", result.latency_ms), ("arrival to output", result.processing_ms))
    ]
    head = "<tr><th>latency, ms</th><th>p50</th><th>p95</th><th>p99</th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _figure(picture: Path) -> str:
    name = html.escape(picture.name)
    caption = "input, labels, anomaly score, mask"
    image = f'<a href="{name}"><img src="{name}" alt="{caption}" loading="lazy"></a>'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
