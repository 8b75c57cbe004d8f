"""Chart of a soak as a self-contained SVG: memory, latency and unanswered frames of each camera over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from soak_figures import Reading, cameras_of, slices

from anomseg_ros.evaluation.report_charts import nice_ticks
from anomseg_ros.evaluation.report_style import DARK, LIGHT

WIDTH, LEFT, RIGHT, TOP = 880, 64, 862, 62
PANEL, GAP = 120, 46
UNANSWERED = ("dropped", "bad", "lost")
_STYLE = f"""
  :root {{ {LIGHT} }} @media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
  text {{ fill: var(--ink); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }}
  .ground {{ fill: var(--ground); }} .soft {{ fill: var(--soft); }} .head {{ font-size: 15px; font-weight: 600; }}
  .grid {{ stroke: var(--grid); }} .axis {{ stroke: var(--soft); }} .line {{ fill: none; stroke-width: 1.4; }}
  .worst {{ stroke-dasharray: 4 3; }}
"""


@dataclass(frozen=True)
class _Curve:
    """One value of one camera: a list of (hours, value) per slice. color: index of the camera."""

    pieces: list[list[tuple[float, float]]]
    color: int
    kind: str = ""


@dataclass(frozen=True)
class _Panel:
    """Curves of one quantity over time, and its name."""

    name: str
    curves: list[_Curve]
    from_zero: bool = True


def picture(readings: Sequence[Reading], result: dict[str, Any]) -> str:
    """Return the SVG document. result: from soak_figures.figures(readings)."""
    names = cameras_of(readings)
    panels = [
        _Panel("memory of the node (PSS), MiB", [_curve(readings, name, _value("pss_mib")) for name in names], False),
        _Panel(
            "memory that the node has allocated, MiB",
            [_curve(readings, name, _value("anonymous_mib")) for name in names],
            False,
        ),
        _Panel(
            "stamp to mask received, ms: p50 and p99 (dashed) of each minute",
            [
                _curve(readings, name, _value(f"age_ms_{percentile}"), kind)
                for name in names
                for percentile, kind in (("p50", ""), ("p99", "worst"))
            ],
        ),
        _Panel(
            "frames dropped, bad or lost since the start of the slice",
            [_curve(readings, n, _unanswered) for n in names],
        ),
    ]
    height = TOP + len(panels) * (PANEL + GAP) + 18
    hours = max(
        (x for panel in panels for curve in panel.curves for piece in curve.pieces for x, _ in piece), default=1
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img"><style>{_STYLE}</style><rect class="ground" width="{WIDTH}" height="{height}"/>',
        f'<text class="head" x="{LEFT}" y="22">{_headline(result)}</text>',
        *(_legend_entry(index, len(names), name, result["cameras"][name]) for index, name in enumerate(names)),
        *(
            part
            for index, panel in enumerate(panels)
            for part in _panel_elements(panel, TOP + 22 + index * (PANEL + GAP), hours)
        ),
        f'<text class="soft" x="{RIGHT}" y="{height - 8}" text-anchor="end">hours, all slices</text></svg>',
    ]
    return "\n".join(parts) + "\n"


def _headline(result: dict[str, Any]) -> str:
    received = sum(camera["received"] for camera in result["cameras"].values())
    slices_text = "one slice" if result["slices"] == 1 else f"{result['slices']} slices"
    return f"{len(result['cameras'])} camera(s), {result['hours']:.1f} hours in {slices_text}, {received:,} frames"


def _legend_entry(index: int, entries: int, name: str, camera: dict[str, Any]) -> str:
    figures = ("last_slice_slope_per_hour", "last_slice_slope_error_per_hour")
    slope, error = (camera[figure]["anonymous_mib"] for figure in figures)
    text = f"{name}: last slice {slope:+.2f} ± {error:.2f} MiB/h, p99 {camera['age_ms']['p99']:.0f} ms"
    x = LEFT + index * (RIGHT - LEFT) // entries
    return (
        f'<line x1="{x}" y1="42" x2="{x + 18}" y2="42" stroke="var(--s{index % 6})" stroke-width="3"/>'
        f'<text x="{x + 24}" y="46">{text}</text>'
    )


def _value(name: str) -> Callable[[Reading], float | None]:
    return lambda reading: reading.get(name)


def _unanswered(reading: Reading) -> float:
    return float(sum(reading[name] for name in UNANSWERED))


def _curve(
    readings: Sequence[Reading], camera: str, value: Callable[[Reading], float | None], kind: str = ""
) -> _Curve:
    """Return a value over time. Every slice is a separate piece and starts where the previous one ended."""
    pieces, begin = [], 0.0
    for _, run in slices([reading for reading in readings if reading["camera"] == camera]):
        pieces.append([(begin + one["elapsed_s"] / 3600, y) for one in run if (y := value(one)) is not None])
        begin += run[-1]["elapsed_s"] / 3600
    return _Curve(pieces, cameras_of(readings).index(camera), kind)


def _panel_elements(panel: _Panel, top: float, hours: float) -> list[str]:
    """Return title, axes and curves of a panel as SVG elements."""
    values = [y for curve in panel.curves for piece in curve.pieces for _, y in piece] or [0.0]
    high, low = max(values), 0.0 if panel.from_zero else min(values)
    margin = max(0.06 * (high - low), 1.0)
    high, low, bottom = high + margin, low if panel.from_zero else max(low - margin, 0.0), top + PANEL

    def x_of(x: float) -> float:
        return LEFT + x / hours * (RIGHT - LEFT)

    def y_of(y: float) -> float:
        return bottom - (y - low) / (high - low) * PANEL

    parts = [f'<text class="soft" x="{LEFT}" y="{top - 7:.0f}">{panel.name}</text>']
    for tick in nice_ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y_of(tick):.1f}" x2="{RIGHT}" y2="{y_of(tick):.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 7}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in nice_ticks(0, hours):
        place = f'x="{x_of(tick):.1f}" y="{bottom + 15:.0f}"'
        parts.append(f'<text class="soft" {place} text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{bottom:.1f}" x2="{RIGHT}" y2="{bottom:.1f}"/>')
    for curve in panel.curves:
        for piece in filter(None, curve.pieces):
            path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in piece)
            parts.append(f'<path class="line {curve.kind}" stroke="var(--s{curve.color % 6})" d="M{path}"/>')
    return parts
