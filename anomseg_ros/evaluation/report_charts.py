"""Charts of a report: curves, score histograms, reliability and time, in SVG's own units, about one CSS pixel.

What is computed here, templates/charts.html draws; `data` holds the numbers that the page's script reads out under a
finger, a mouse or the arrow keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anomseg_ros.evaluation.results import Curves

COLORS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MAX_POINTS = 240

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A chart's size and the edges of what it draws in."""

    width: int = 420
    height: int = 300
    left: int = 48
    right: int = 406
    top: int = 12
    bottom: int = 258


BOX = Box()


@dataclass(frozen=True)
class Series:
    """One curve: its name, a figure for the legend, points with x rising, and its place among the colours."""

    name: str
    figure: str
    x: Sequence[float]
    y: Sequence[float]
    index: int


@dataclass(frozen=True)
class DrawnSeries:
    """A series as SVG paths; area: what lies under it; dots: x, y and radius."""

    name: str
    figure: str
    index: int
    path: str
    area: str = ""
    dots: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Chart:
    """Series over one another. ticks: place and label; crossed: with grid lines upwards, too.

    reference: ends of a dotted line, x1, y1, x2, y2; mark: x, label and the side it is on of a dotted line upwards.
    """

    title: str
    where: str
    spoken: str
    x_name: str
    y_name: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    series: Sequence[DrawnSeries]
    data: Mapping[str, object]
    crossed: bool = True
    reference: tuple[float, float, float, float] | None = None
    mark: tuple[float, str, str] | None = None


@dataclass(frozen=True)
class BarChart:
    """Bars: their kind, y, width and value; names: of groups of bars, with their y; kinds: place and name."""

    title: str
    where: str
    spoken: str
    height: int
    names: Sequence[tuple[str, float]]
    bars: Sequence[tuple[int, float, float, float]]
    kinds: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class _Axis:
    """Values low to high along pixels start to end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


_X = _Axis(0, 1, BOX.left, BOX.right)
_Y = _Axis(0, 1, BOX.bottom, BOX.top)
_UNIT_TICKS = (0, 20, 40, 60, 80, 100)


def curve_chart(
    title: str,
    where: str,
    axes: tuple[str, str],
    series: Sequence[Series],
    reference: tuple[float, float],
    steps: bool = False,
) -> Chart:
    """Return curves over one another in the unit square.

    Args:
        title: What it shows.
        where: What they were measured on, with the protocol.
        axes: Names of x and y.
        series: The curves.
        reference: y of a guess at x 0 and 1.
        steps: Each point's y holds back to the point before, as average precision counts it; between two thresholds a
            straight line in precision and recall would promise what no threshold reaches. What lies in the first pixel
            is left out.
    """
    thinned = [_thinned(_from_first_pixel(one) if steps else one) for one in series]
    path = _stepped if steps else _path
    drawn = [
        DrawnSeries(one.name, one.figure, one.index, path([(_X(x), _Y(y)) for x, y in zip(one.x, one.y, strict=True)]))
        for one in thinned
    ]
    data = {
        **_data([0, 1], axes[0].lower(), [[_rounded(one.x), _rounded(one.y)] for one in thinned]),
        "value": axes[1].lower(),
        "steps": steps,
    }
    spoken = f"{title}, {where}: " + "; ".join(f"{one.name} {one.figure}" for one in series)
    return _unit_chart(title, where, spoken, axes, drawn, data, reference)


def histogram_chart(where: str, score: str, curves: Curves, threshold: float | None) -> Chart | None:
    """Return the pixel counts of both kinds by score, counts on a logarithmic scale; None without a histogram."""
    edges, kinds = curves.histogram_edges, (curves.histogram_known, curves.histogram_anomaly)
    if len(edges) < 2 or any(len(counts) != len(edges) - 1 for counts in kinds):
        return None
    decades = math.ceil(math.log10(max(10, *map(max, kinds))))
    x, y = _Axis(edges[0], edges[-1], BOX.left, BOX.right), _Axis(-0.3, decades, BOX.bottom, BOX.top)
    totals = [f"{sum(counts):,} px".replace(",", "\u2009") for counts in kinds]
    series = []
    for index, (name, counts) in enumerate(zip(("known pixels", "anomalous pixels"), kinds, strict=True)):
        steps = _steps(edges, counts, x, y)
        area = _path([(BOX.left, BOX.bottom), *steps, (BOX.right, BOX.bottom)]) + "Z"
        series.append(DrawnSeries(name, totals[index], index, _path(steps), area))
    mark = None
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        mark = x(threshold), "best F1", "end" if x(threshold) > (BOX.left + BOX.right) / 2 else "start"
    # every second label where they would touch
    labels = [_short(decade) if decades <= 8 or decade % 2 == 0 else "" for decade in range(decades + 1)]
    return Chart(
        "Scores",
        where,
        f"Histogram of the {score} score, {where}: {totals[0]} known, {totals[1]} anomalous",
        f"Score: {score}",
        "Pixels",
        [(x(tick), f"{tick:g}") for tick in nice_ticks(x.low, x.high)],
        [(y(decade), label) for decade, label in enumerate(labels)],
        series,
        {**_data([edges[0], edges[-1]], "score", [[[], list(counts)] for counts in kinds]), "bins": list(edges)},
        crossed=False,
        mark=mark,
    )


def reliability_chart(where: str, curves: Curves, ece: float | None) -> Chart | None:
    """Return how often a predicted probability came true, one dot per bin, its area the share of the pixels."""
    bins = zip(curves.reliability_confidence, curves.reliability_accuracy, curves.reliability_share, strict=False)
    points = sorted(point for point in bins if point[2] > 0)
    if not points:
        return None
    most = max(share for _, _, share in points)
    path = _path([(_X(confidence), _Y(accuracy)) for confidence, accuracy, _ in points])
    dots = tuple((_X(x), _Y(y), 2 + 9 * math.sqrt(share / most)) for x, y, share in points)
    figure = "" if ece is None else f"ECE {100 * ece:.2f} %"
    series = [DrawnSeries("dot area: share of pixels", figure, 0, path, dots=dots)]
    axes = ("Predicted probability", "Observed share")
    values = [[_rounded([point[0] for point in points]), _rounded([point[1] for point in points])]]
    data = {**_data([0, 1], axes[0].lower(), values), "value": axes[1].lower()}
    spoken = f"Reliability diagram, {where}: observed share over predicted probability in {len(points)} bins; {figure}"
    return _unit_chart("Reliability", where, spoken, axes, series, data, (0.0, 1.0))


def time_chart(
    where: str, inference_ms: Mapping[str, float] | None, network_ms: Mapping[str, float] | None
) -> BarChart | None:
    """Return bars of the time per frame, from frame to outputs and of the network alone; None without times."""
    kinds = [("frame to outputs", inference_ms or {}), ("network alone", network_ms or {})]
    names = sorted({name for _, values in kinds for name in values if _is_time(name)}, key=_time_order)
    if not names:
        return None
    longest = max(values[name] for _, values in kinds for name in names if name in values) or 1.0
    scale = _Axis(0, longest, 0, BOX.right - 62 - BOX.left)
    groups, bars, top = [], [], 6.0
    for name in names:
        rows = [(place, values[name]) for place, (_, values) in enumerate(kinds) if name in values]
        groups.append((name, top + 9.5 * len(rows) + 3.5))
        bars += [(place, top + 19 * row, max(scale(value), 1), value) for row, (place, value) in enumerate(rows)]
        top += 19 * len(rows) + 9
    spoken = f"Time per frame, {where}: " + "; ".join(
        f"{kind} " + ", ".join(f"{name} {values[name]:.1f} ms" for name in names if name in values)
        for kind, values in kinds
        if values
    )
    shown = [(place, kind) for place, (kind, values) in enumerate(kinds) if values]
    return BarChart("Time per frame, ms", where, spoken, round(top), groups, bars, shown)


def _unit_chart(
    title: str,
    where: str,
    spoken: str,
    axes: tuple[str, str],
    series: Sequence[DrawnSeries],
    data: Mapping[str, object],
    reference: tuple[float, float],
) -> Chart:
    x_ticks, y_ticks = ([(axis(tick / 100), str(tick)) for tick in _UNIT_TICKS] for axis in (_X, _Y))
    names = (f"{axes[0]}, %", f"{axes[1]}, %")
    ends = (_X(0), _Y(reference[0]), _X(1), _Y(reference[1]))
    return Chart(title, where, spoken, *names, x_ticks, y_ticks, series, data, reference=ends)


def _data(ends: Sequence[float], label: str, series: Sequence[object]) -> dict[str, object]:
    return {"x": ends, "px": [BOX.left, BOX.right], "label": label, "series": series}


def _from_first_pixel(series: Series) -> Series:
    """Return the series without its points in the first pixel of x; its first y then holds back to x 0.

    Few pixels are above the thresholds there, so that precision jumps between 0 and 1: a stroke from top to bottom.
    """
    width = 1 / (BOX.right - BOX.left)
    kept = [(x, y) for x, y in zip(series.x, series.y, strict=True) if x >= width]
    if not kept or len(kept) == len(series.x):
        return series
    xs, ys = zip((0.0, kept[0][1]), *kept, strict=True)
    return Series(series.name, series.figure, xs, ys, series.index)


def _thinned(series: Series) -> Series:
    """Return at most MAX_POINTS points, spread evenly along the drawn length of the curve, both ends kept."""
    if len(series.x) <= MAX_POINTS:
        return series
    x, y = np.asarray(series.x, np.float64), np.asarray(series.y, np.float64)
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MAX_POINTS)).clip(0, len(x) - 1))
    kept = np.union1d(kept, [0, len(x) - 1])
    return Series(series.name, series.figure, x[kept].tolist(), y[kept].tolist(), series.index)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in values]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def _stepped(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    return f"M{x:.1f} {y:.1f}" + "".join(f"V{y:.1f}H{x:.1f}" for x, y in rest)


def _steps(edges: Sequence[float], counts: Sequence[int], x: _Axis, y: _Axis) -> list[tuple[float, float]]:
    points = []
    for left, right, number in zip(edges, edges[1:], counts, strict=False):
        height = y(math.log10(number)) if number > 0 else y(y.low)
        points += [(x(left), height), (x(right), height)]
    return points


def _short(decade: int) -> str:
    unit = ("", "k", "M", "G", "T")[min(decade // 3, 4)]
    return f"{10 ** (decade - 3 * min(decade // 3, 4))}{unit}"


def nice_ticks(low: float, high: float) -> list[float]:
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = power * next((factor for factor in (1, 2, 5) if span / (factor * power) <= 6), 10)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _is_time(name: str) -> bool:
    return name in ("min", "mean", "max") or (name[:1] == "p" and name[1:].replace(".", "", 1).isdigit())


def _time_order(name: str) -> float:
    fixed = {"min": 0.0, "mean": 0.5, "max": 101.0}
    return fixed[name] if name in fixed else float(name[1:])
