"""Draw accuracy over latency as one self-contained SVG: candidates, their Pareto front, and published points.

Times have a logarithmic axis: equal distances are equal ratios. Published points are drawn on request only, and hollow,
since they come from other machines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from anomseg_ros.bench.candidates import EAGER
from anomseg_ros.bench.figures import BenchReport, Entry
from anomseg_ros.bench.published import PublishedPoint, published_points
from anomseg_ros.evaluation.report_charts import COLORS, Box, nice_ticks
from anomseg_ros.evaluation.report_page import render
from anomseg_ros.evaluation.report_style import DARK, LIGHT

BOX = Box(width=880, height=420, left=64, right=856, top=68, bottom=420)
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
    """The limits given to tune, drawn as lines. chosen: title of the chosen entry."""

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
        return BOX.left + share * (BOX.right - BOX.left)

    def y(self, value: float) -> float:
        return BOX.bottom - (value - self.low) / (self.high - self.low) * (BOX.bottom - BOX.top)


@dataclass(frozen=True)
class _Mark:
    """A candidate: its place, the end of its whisker (far), the place of its number, and its row of the legend."""

    entry: Entry
    x: float
    y: float
    far: float
    label: tuple[float, float]
    color: str
    cells: list[str]
    is_chosen: bool

    @property
    def is_square(self) -> bool:
        return self.entry.backend == EAGER

    @property
    def description(self) -> str:
        text = f"{self.entry.title}: p50 {self.entry.latency_ms['p50']:.1f} ms"
        accuracy, power = self.entry.accuracy, self.entry.power
        if power is not None and power.energy_per_frame_mj is not None:
            text += f", {power.mean_power_w:.1f} W of {power.rail}, {power.energy_per_frame_mj:.1f} mJ per frame"
        return text if accuracy is None else f"{text}, {METRIC_NAMES.get(accuracy.metric, '')} {self.cells[-1]}"


@dataclass(frozen=True)
class _Published:
    """A published point: its place, table, label and description."""

    x: float
    y: float
    table: str
    label: str
    description: str


def pareto_chart(report: BenchReport, goal: Goal | None = None, *, published: bool = False) -> str:
    """Return a report's entries as an SVG document. Entries without an accuracy are in a strip below the plot.

    published: also draw the papers' points of the same dataset and metric, which come from other machines.
    """
    goal = goal or Goal()
    entries = report.entries
    known = [entry for entry in entries if entry.accuracy is not None]
    metric, dataset = (known[0].accuracy.metric, known[0].accuracy.dataset) if known and known[0].accuracy else ("", "")
    points = [point for point in published_points() if point.figure(metric, dataset) is not None] if published else []
    scales = _scales(entries, points, metric, dataset, goal)
    name = METRIC_NAMES.get(metric, metric)
    legend_y = BOX.bottom + STRIP + 62.0
    tables = _tables(points, legend_y + ROW * (len(entries) + 0.5))
    front_y = legend_y + ROW * (len(entries) + 1.5 + len(tables))
    unknown = len(known) < len(entries)
    return render(
        "pareto.svg",
        f"{name} on {dataset} over latency" if metric else "Latency; no accuracy is known",
        style=_STYLE,
        box=BOX,
        strip=STRIP,
        row_height=ROW,
        height=f"{front_y + ROW * unknown + 22:.0f}",
        machine=f"{report.machine.get('cpu', 'unknown processor')}, {report.machine.get('cores', '?')} core(s)",
        x_ticks=[(scales.x(tick), f"{tick:g}") for tick in _log_ticks(scales.low_ms, scales.high_ms)],
        y_ticks=[(scales.y(tick / 100), f"{tick:g}") for tick in nice_ticks(100 * scales.low, 100 * scales.high)],
        y_name=f"{name}, %" if metric else "",
        limit_x=None if goal.max_latency_ms is None else scales.x(goal.max_latency_ms),
        limit_y=None if goal.min_accuracy is None else scales.y(goal.min_accuracy),
        whisker=goal.whisker,
        published=[_published(point, metric, dataset, scales) for point in points],
        outline=_outline,
        front=_front(pareto_front(known, goal.percentile), scales, goal),
        marks=_marks(entries, scales, goal),
        legend_y=legend_y,
        heads=("", "", "p50", goal.whisker, "frames/s", "accuracy"),
        tables=tables,
        front_y=front_y,
        unknown=unknown,
    )


def pareto_front(entries: Sequence[Entry], percentile: str = "p50") -> list[Entry]:
    """Return the entries that no other entry beats in both time and accuracy, fastest first."""
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


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten; only the powers where that would be crowded."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 4 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _published(point: PublishedPoint, metric: str, dataset: str, scales: _Scales) -> _Published:
    figure = point.figure(metric, dataset)
    assert figure is not None
    kind = "estimated" if point.estimated else "measured"
    description = f"published: {point.table}, {point.label}: {100 * figure:.2f} %, {point.latency_ms:.1f} ms ({kind})"
    return _Published(
        scales.x(point.latency_ms), scales.y(_oriented(figure, metric)), point.table, point.label, description
    )


def _outline(table: str, x: float, y: float) -> str:
    """Return the path of a table's shape around a point, nothing for a circle."""
    corners = {"PTQ table 4": 3, "PTQ table 5": 4, "PTQ table 6": 5, "PTQ table 7": 6}.get(table, 0)
    angles = [2 * math.pi * index / corners - math.pi / 2 for index in range(corners)]
    path = "L".join(f"{x + 5.2 * math.cos(angle):.1f} {y + 5.2 * math.sin(angle):.1f}" for angle in angles)
    return f"M{path}Z" if path else ""


def _front(front: Sequence[Entry], scales: _Scales, goal: Goal) -> str:
    """Return steps: between two candidates there are no others, so the accuracy of the faster one holds."""
    if not front:
        return ""
    places = [(scales.x(entry.latency_ms[goal.percentile]), scales.y(_merit(entry))) for entry in front]
    (x, y), *rest = places
    return f"M{x:.1f} {y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in rest) + f"H{BOX.right}"


def _marks(entries: Sequence[Entry], scales: _Scales, goal: Goal) -> list[_Mark]:
    names = list(dict.fromkeys(entry.name for entry in entries))
    places = [_place(entry, scales) for entry in entries]
    taken = list(places)
    marks = []
    for entry, (x, y) in zip(entries, places, strict=True):
        label = _label_place(x, y, taken)
        taken.append(label)
        times = [f"{entry.latency_ms[name]:.1f} ms" for name in ("p50", goal.whisker)]
        percent = "–" if entry.accuracy is None else f"{100 * entry.accuracy.value:.2f} %"
        marks.append(
            _Mark(
                entry,
                x,
                y,
                min(scales.x(entry.latency_ms[goal.whisker]), BOX.right),
                label,
                f"var(--s{names.index(entry.name) % COLORS})",
                [entry.title, *times, f"{entry.frames_per_second:.1f}", percent],
                entry.title == goal.chosen,
            )
        )
    return marks


def _tables(points: Sequence[PublishedPoint], y: float) -> list[tuple[float, str, str]]:
    """Return the place, name and description of every published table."""
    rows = []
    for number, table in enumerate(dict.fromkeys(point.table for point in points), 1):
        own = [point for point in points if point.table == table]
        kind = "time estimated" if own[0].estimated else "time measured"
        networks = "; ".join(dict.fromkeys(point.label.split(",")[0] for point in own))
        rows.append((y + ROW * number, table, f"published, {table}: {networks}; {kind}, {own[0].hardware}"))
    return rows


def _place(entry: Entry, scales: _Scales) -> tuple[float, float]:
    x = scales.x(entry.latency_ms["p50"])
    return (x, BOX.bottom + STRIP / 2) if entry.accuracy is None else (x, scales.y(_merit(entry)))


def _label_place(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the first place around a point without another label or point."""
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
