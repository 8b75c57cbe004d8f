"""Accuracy over latency as one self-contained SVG: candidates, their Pareto front, and the papers' published points.

Times are on a logarithmic axis, so that equal distances are equal ratios. Published points are hollow: they were taken
on other machines, and only those of the very dataset and metric of the chart are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from anomseg_ros.bench.candidates import EAGER
from anomseg_ros.bench.published import PublishedPoint, published_points
from anomseg_ros.bench.results import BenchReport, Entry
from anomseg_ros.evaluation.report_charts import COLORS, nice_ticks
from anomseg_ros.evaluation.report_page import text
from anomseg_ros.evaluation.report_style import DARK, LIGHT

WIDTH = 880
LEFT, RIGHT, TOP, BOTTOM = 64, 856, 68, 420
STRIP = 26
"""Height of the strip below the plot for candidates whose accuracy is not known."""
ROW = 19
LABEL_BOX = (17.0, 12.0)
METRIC_NAMES = {
    "auprc": "AuPRC",
    "miou": "mIoU",
    "auroc": "AUROC",
    "fpr95": "1 - FPR95",
    "label_agreement": "Label agreement",
}

_RULES = """
  text { fill: var(--ink); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif;
    font-variant-numeric: tabular-nums; }
  .ground { fill: var(--ground); } .soft { fill: var(--soft); } .head { font-size: 15px; font-weight: 600; }
  .grid { stroke: var(--grid); } .axis { stroke: var(--soft); } .strip { fill: var(--raised); }
  .front { fill: none; stroke: var(--ink); stroke-dasharray: 5 4; }
  .published { fill: none; stroke: var(--soft); stroke-width: 1.4; } .key { font-size: 11px; font-weight: 600; }
  .limit { stroke: var(--bad); stroke-dasharray: 2 3; } .chosen { fill: none; stroke: var(--good); stroke-width: 2; }
"""
_STYLE = f":root {{ {LIGHT} }} @media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }} {_RULES}"


@dataclass(frozen=True)
class Goal:
    """What tune was asked for, drawn as lines. chosen: title of the entry that was taken."""

    max_latency_ms: float | None = None
    min_accuracy: float | None = None
    chosen: str | None = None
    percentile: str = "p50"

    @property
    def whisker(self) -> str:
        """The percentile that is drawn beside the median."""
        return "p95" if self.percentile == "p50" else self.percentile


@dataclass(frozen=True)
class _Scales:
    low_ms: float
    high_ms: float
    low: float
    high: float

    def x(self, latency_ms: float) -> float:
        share = math.log(latency_ms / self.low_ms) / math.log(self.high_ms / self.low_ms)
        return LEFT + share * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        return BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP)


def pareto_chart(report: BenchReport, goal: Goal | None = None, *, published: bool = True) -> str:
    """Return the SVG document of a report's entries; those without an accuracy are in a strip below the plot."""
    goal = goal or Goal()
    entries = report.entries
    known = [entry for entry in entries if entry.accuracy is not None]
    metric, dataset = (known[0].accuracy.metric, known[0].accuracy.dataset) if known and known[0].accuracy else ("", "")
    points = [point for point in published_points() if point.figure(metric, dataset) is not None] if published else []
    scales = _scales(entries, points, metric, dataset, goal)
    marks = [
        _grid(scales, metric, dataset, goal),
        *_published_marks(points, metric, dataset, scales),
        _front(pareto_front(known, goal.percentile), scales, goal),
        *_entry_marks(entries, scales, goal),
    ]
    rows, height = _legend(entries, points, report, goal)
    return _document(height, [_heading(metric, dataset, report), *marks, *rows])


def pareto_front(entries: Sequence[Entry], percentile: str = "p50") -> list[Entry]:
    """Return the entries that no other one beats in both time and accuracy, the fastest first."""
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda one: (one.latency_ms[percentile], -_merit(one))):
        if not front or _merit(entry) > _merit(front[-1]):
            front.append(entry)
    return front


def _merit(entry: Entry) -> float:
    """Higher is better."""
    if entry.accuracy is None:
        return -math.inf
    return _oriented(entry.accuracy.value, entry.accuracy.metric)


def _oriented(value: float, metric: str) -> float:
    return 1 - value if metric == "fpr95" else value


def _scales(
    entries: Sequence[Entry], points: Sequence[PublishedPoint], metric: str, dataset: str, goal: Goal
) -> _Scales:
    times = [time for entry in entries for time in (entry.latency_ms["p50"], entry.latency_ms[goal.whisker])]
    times += [point.latency_ms for point in points] + ([goal.max_latency_ms] if goal.max_latency_ms else [])
    merits = [_merit(entry) for entry in entries if entry.accuracy is not None]
    merits += [_oriented(point.figure(metric, dataset) or 0.0, metric) for point in points]
    merits += [goal.min_accuracy] if goal.min_accuracy is not None else []
    low, high = (min(merits), max(merits)) if merits else (0.0, 1.0)
    margin = max(0.08 * (high - low), 0.005)
    return _Scales(min(times) / 1.25, max(times) * 1.25, max(0.0, low - margin), min(1.0, high + margin))


def _heading(metric: str, dataset: str, report: BenchReport) -> str:
    shown = (
        f"{METRIC_NAMES.get(metric, metric)} on {dataset} over latency" if metric else "Latency; no accuracy is known"
    )
    machine = f"{report.machine.get('cpu', 'unknown processor')}, {report.machine.get('cores', '?')} core(s)"
    return (
        f'<text class="head" x="{LEFT}" y="22">{text(shown)}</text>'
        f'<text class="soft" x="{LEFT}" y="40">measured on {text(machine)}</text>'
    )


def _grid(scales: _Scales, metric: str, dataset: str, goal: Goal) -> str:
    marks = [f'<rect class="strip" x="{LEFT}" y="{BOTTOM}" width="{RIGHT - LEFT}" height="{STRIP}"/>']
    for tick in _log_ticks(scales.low_ms, scales.high_ms):
        x = scales.x(tick)
        marks.append(_line("grid", x, TOP, x, BOTTOM))
        marks.append(f'<text class="soft" x="{x:.1f}" y="{BOTTOM + STRIP + 16}" text-anchor="middle">{tick:g}</text>')
    for value in nice_ticks(100 * scales.low, 100 * scales.high):
        y = scales.y(value / 100)
        marks.append(_line("grid", LEFT, y, RIGHT, y))
        marks.append(f'<text class="soft" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    marks.append(_line("axis", LEFT, BOTTOM, RIGHT, BOTTOM))
    if goal.max_latency_ms is not None:
        marks.append(_line("limit", scales.x(goal.max_latency_ms), TOP, scales.x(goal.max_latency_ms), BOTTOM + STRIP))
    if goal.min_accuracy is not None:
        marks.append(_line("limit", LEFT, scales.y(goal.min_accuracy), RIGHT, scales.y(goal.min_accuracy)))
    middle = (TOP + BOTTOM) / 2
    name = f"{METRIC_NAMES.get(metric, metric)}, %" if metric else ""
    marks.append(
        f'<text class="soft" transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">{text(name)}</text>'
        f'<text class="soft" x="{RIGHT}" y="{BOTTOM + STRIP + 34}" text-anchor="end">'
        f"latency of one frame, ms (logarithmic); dot p50, whisker to {goal.whisker}</text>"
    )
    return "".join(marks)


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten; only the powers where that would be crowded."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 4 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _published_marks(points: Sequence[PublishedPoint], metric: str, dataset: str, scales: _Scales) -> list[str]:
    marks = []
    for point in points:
        figure = point.figure(metric, dataset)
        assert figure is not None
        x, y = scales.x(point.latency_ms), scales.y(_oriented(figure, metric))
        kind = "estimated" if point.estimated else "measured"
        name = f"published: {point.table}, {point.label}: {100 * figure:.2f} %, {point.latency_ms:.1f} ms ({kind})"
        marks.append(f'<g class="published" data-published="{text(point.label)}"><title>{text(name)}</title>')
        marks.append(f"{_hollow(point.table, x, y)}</g>")
    return marks


def _hollow(table: str, x: float, y: float) -> str:
    """A shape per table."""
    corners = {"PTQ table 4": 3, "PTQ table 5": 4, "PTQ table 6": 5, "PTQ table 7": 6}.get(table, 0)
    if not corners:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    angles = [2 * math.pi * index / corners - math.pi / 2 for index in range(corners)]
    path = "L".join(f"{x + 5.2 * math.cos(angle):.1f} {y + 5.2 * math.sin(angle):.1f}" for angle in angles)
    return f'<path d="M{path}Z"/>'


def _front(front: Sequence[Entry], scales: _Scales, goal: Goal) -> str:
    """Steps: between two candidates there is none, so the accuracy of the faster one holds until the next."""
    if not front:
        return ""
    x, y = scales.x(front[0].latency_ms[goal.percentile]), scales.y(_merit(front[0]))
    steps = [f"M{x:.1f} {y:.1f}"]
    for entry in front[1:]:
        steps.append(f"H{scales.x(entry.latency_ms[goal.percentile]):.1f}V{scales.y(_merit(entry)):.1f}")
    return f'<path class="front" d="{"".join(steps)}H{RIGHT}"><title>Pareto front</title></path>'


def _entry_marks(entries: Sequence[Entry], scales: _Scales, goal: Goal) -> list[str]:
    colors = _colors(entries)
    taken: list[tuple[float, float]] = []
    marks = []
    places = [_place(entry, scales) for entry in entries]
    taken += places
    for number, (entry, (x, y)) in enumerate(zip(entries, places, strict=True), 1):
        far = scales.x(entry.latency_ms[goal.whisker])
        far = min(far, RIGHT)
        color = f"var(--s{colors[entry.name]})"
        label_x, label_y = _label_place(x, y, taken)
        taken.append((label_x, label_y))
        ring = f'<circle class="chosen" cx="{x:.1f}" cy="{y:.1f}" r="10"/>' if entry.title == goal.chosen else ""
        marks.append(
            f'<g data-entry="{text(entry.title)}"><title>{text(_said(entry))}</title>{ring}'
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{far:.1f}" y2="{y:.1f}" stroke="{color}"/>'
            f"{_filled(entry, x, y, color)}"
            f'<text class="key" x="{label_x:.1f}" y="{label_y + 4:.1f}" text-anchor="middle">{number}</text></g>'
        )
    return marks


def _place(entry: Entry, scales: _Scales) -> tuple[float, float]:
    x = scales.x(entry.latency_ms["p50"])
    return (x, BOTTOM + STRIP / 2) if entry.accuracy is None else (x, scales.y(_merit(entry)))


def _label_place(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the first place around a point where no label or point is yet."""
    for distance in (13.0, 22.0, 31.0):
        for dx, dy in ((0, -1), (0, 1), (-1, 0), (0.8, -0.8), (-0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)):
            place = (x + distance * dx, y + distance * dy)
            if all(
                abs(place[0] - a) > LABEL_BOX[0] or abs(place[1] - b) > LABEL_BOX[1]
                for a, b in taken
                if (a, b) != (x, y)
            ):
                return place
    return x, y - 13.0


def _colors(entries: Sequence[Entry]) -> dict[str, int]:
    names = dict.fromkeys(entry.name for entry in entries)
    return {name: index % COLORS for index, name in enumerate(names)}


def _filled(entry: Entry, x: float, y: float, color: str) -> str:
    if entry.backend == EAGER:
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{color}"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{color}"/>'


def _said(entry: Entry) -> str:
    figure = "" if entry.accuracy is None else f", {METRIC_NAMES.get(entry.accuracy.metric, '')} {_percent(entry)}"
    return f"{entry.title}: p50 {entry.latency_ms['p50']:.1f} ms{figure}"


def _percent(entry: Entry) -> str:
    return "–" if entry.accuracy is None else f"{100 * entry.accuracy.value:.2f} %"


def _legend(
    entries: Sequence[Entry], points: Sequence[PublishedPoint], report: BenchReport, goal: Goal
) -> tuple[list[str], float]:
    colors = _colors(entries)
    shown = goal.whisker
    y = BOTTOM + STRIP + 62.0
    rows = [_row_of_text(y, ("", "", "p50", shown, "frames/s", "accuracy"), "soft")]
    for number, entry in enumerate(entries, 1):
        y += ROW
        times = [f"{entry.latency_ms[name]:.1f} ms" for name in ("p50", shown)]
        cells = (str(number), entry.title, *times, f"{entry.frames_per_second:.1f}", _percent(entry))
        swatch = _filled(entry, LEFT + 6, y - 4, f"var(--s{colors[entry.name]})")
        chosen = (
            f'<circle class="chosen" cx="{LEFT + 6}" cy="{y - 4:.1f}" r="8"/>' if entry.title == goal.chosen else ""
        )
        rows.append(chosen + swatch + _row_of_text(y, cells))
    y += ROW / 2
    for table in dict.fromkeys(point.table for point in points):
        y += ROW
        first = next(point for point in points if point.table == table)
        kind = "time estimated" if first.estimated else "time measured"
        said = (
            f"published, {table}: {'; '.join(dict.fromkeys(p.label.split(',')[0] for p in points if p.table == table))}"
        )
        rows.append(f'<g class="published">{_hollow(table, LEFT + 6, y - 4)}</g>')
        rows.append(
            f'<text class="soft" x="{LEFT + 20}" y="{y:.1f}">{text(f"{said}; {kind}, {first.hardware}")}</text>'
        )
    y += ROW
    rows.append(f'<path class="front" d="M{LEFT - 2} {y - 4:.1f}h16"/>')
    rows.append(f'<text class="soft" x="{LEFT + 20}" y="{y:.1f}">Pareto front of what was measured here</text>')
    if any(entry.accuracy is None for entry in entries):
        y += ROW
        rows.append(f'<text class="soft" x="{LEFT + 20}" y="{y:.1f}">grey strip: accuracy not known</text>')
    return rows, y + 22


def _row_of_text(y: float, cells: Sequence[str], kind: str = "") -> str:
    places = (
        (LEFT + 30, "end"),
        (LEFT + 38, "start"),
        (RIGHT - 226, "end"),
        (RIGHT - 146, "end"),
        (RIGHT - 80, "end"),
        (RIGHT, "end"),
    )
    style = f' class="{kind}"' if kind else ""
    return "".join(
        f'<text{style} x="{x}" y="{y:.1f}" text-anchor="{anchor}">{text(cell)}</text>'
        for (x, anchor), cell in zip(places, cells, strict=True)
        if cell
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _document(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img"><style>{_STYLE}</style>'
        f'<rect class="ground" width="{WIDTH}" height="{height:.0f}"/>{"".join(parts)}</svg>\n'
    )
