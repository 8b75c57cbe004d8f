"""Charts of a report as inline SVG: curves, score histograms, reliability and time.

Each is a <figure> that is complete as it stands; its data-chart attribute holds the numbers that the page's script
reads out under a finger, a mouse or the arrow keys. Sizes are in the SVG's own units, about one CSS pixel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anomseg_ros.evaluation.report_page import count, text
from anomseg_ros.evaluation.results import Curves

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 406, 12, 258
COLORS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MAX_POINTS = 240
HINT = "Touch or hover to read values."


@dataclass(frozen=True)
class Series:
    """One curve: its name, a figure for the legend, points with x rising, and its place among the colours."""

    name: str
    figure: str
    x: Sequence[float]
    y: Sequence[float]
    index: int


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


_X = _Axis(0, 1, LEFT, RIGHT)
_Y = _Axis(0, 1, BOTTOM, TOP)


def curve_chart(
    title: str,
    where: str,
    axes: tuple[str, str],
    series: Sequence[Series],
    reference: tuple[float, float],
    steps: bool = False,
) -> str:
    """Return curves over one another in the unit square.

    where: what they were measured on, with the protocol; axes: names of x and y; reference: y of a guess at x 0 and 1.
    steps: each point's y holds back to the point before, as average precision counts it; between two thresholds a
    straight line in precision and recall would promise what no threshold reaches.
    """
    drawn = [_thinned(one) for one in series]
    marks = [_unit_grid(*axes), _line("reference", _X(0), _Y(reference[0]), _X(1), _Y(reference[1]))]
    for place, one in enumerate(drawn):
        path = (_stepped if steps else _path)([(_X(x), _Y(y)) for x, y in zip(one.x, one.y, strict=True)])
        marks.append(f'<path class="series" data-series="{place}" {_stroke(one.index)} d="{path}"/>')
    data = {
        "x": [0, 1],
        "px": [LEFT, RIGHT],
        "label": axes[0].lower(),
        "value": axes[1].lower(),
        "steps": steps,
        "series": [[_rounded(one.x), _rounded(one.y)] for one in drawn],
    }
    spoken = f"{title}, {where}: " + "; ".join(f"{one.name} {one.figure}" for one in series)
    legend = [(_swatch(one.index), one.name, one.figure) for one in series]
    return _figure(title, where, spoken, marks, data, legend)


def histogram_chart(where: str, score: str, curves: Curves, threshold: float | None) -> str:
    """Return the pixel counts of known and anomalous pixels by score, on a logarithmic scale of counts."""
    edges, kinds = curves.histogram_edges, (curves.histogram_known, curves.histogram_anomaly)
    if len(edges) < 2 or any(len(counts) != len(edges) - 1 for counts in kinds):
        return ""
    decades = math.ceil(math.log10(max(10, *map(max, kinds))))
    x, y = _Axis(edges[0], edges[-1], LEFT, RIGHT), _Axis(-0.3, decades, BOTTOM, TOP)
    marks = [_log_grid(decades, y), _x_ticks(x, f"Score: {score}"), _axis_title_y("Pixels")]
    for place, (counts, index) in enumerate(zip(kinds, (0, 1), strict=True)):
        steps = _steps(edges, counts, x, y)
        area = (
            f'<path fill="var(--s{index})" fill-opacity=".22" d="{_path([(LEFT, BOTTOM), *steps, (RIGHT, BOTTOM)])}Z"/>'
        )
        outline = f'<path class="series" {_stroke(index)} d="{_path(steps)}"/>'
        marks.append(f'<g data-series="{place}">{area}{outline}</g>')
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        marks.append(_threshold(x(threshold)))
    data = {
        "x": [edges[0], edges[-1]],
        "px": [LEFT, RIGHT],
        "label": "score",
        "bins": list(edges),
        "series": [[[], list(counts)] for counts in kinds],
    }
    totals = [f"{count(sum(counts))} px" for counts in kinds]
    names = ("known pixels", "anomalous pixels")
    legend = [(_swatch(place, 0), name, total) for place, (name, total) in enumerate(zip(names, totals, strict=True))]
    spoken = f"Histogram of the {score} score, {where}: {totals[0]} known, {totals[1]} anomalous"
    return _figure("Scores", where, spoken, marks, data, legend)


def reliability_chart(where: str, curves: Curves, ece: float | None) -> str:
    """Return how often a predicted probability came true, one dot per bin, its area the share of the pixels."""
    bins = zip(curves.reliability_confidence, curves.reliability_accuracy, curves.reliability_share, strict=False)
    points = sorted(point for point in bins if point[2] > 0)
    if not points:
        return ""
    most = max(share for _, _, share in points)
    marks = [_unit_grid("Predicted probability", "Observed share"), _line("reference", _X(0), _Y(0), _X(1), _Y(1))]
    path = _path([(_X(confidence), _Y(accuracy)) for confidence, accuracy, _ in points])
    dots = [
        f'<circle cx="{_X(confidence):.1f}" cy="{_Y(accuracy):.1f}" r="{2 + 9 * math.sqrt(share / most):.1f}" '
        'fill="var(--s0)" fill-opacity=".45"/>'
        for confidence, accuracy, share in points
    ]
    marks.append(f'<g data-series="0">{"".join(dots)}<path class="series" {_stroke(0)} d="{path}"/></g>')
    data = {
        "x": [0, 1],
        "px": [LEFT, RIGHT],
        "label": "predicted probability",
        "value": "observed share",
        "series": [[_rounded([point[0] for point in points]), _rounded([point[1] for point in points])]],
    }
    figure = "" if ece is None else f"ECE {100 * ece:.2f} %"
    spoken = f"Reliability diagram, {where}: observed share over predicted probability in {len(points)} bins; {figure}"
    return _figure("Reliability", where, spoken, marks, data, [(_swatch(0), "dot area: share of pixels", figure)])


def time_chart(where: str, inference_ms: Mapping[str, float] | None, network_ms: Mapping[str, float] | None) -> str:
    """Return bars of the time per frame: mean and percentiles, end to end and of the network alone."""
    kinds = [("end to end", inference_ms or {}), ("network only", network_ms or {})]
    names = sorted({name for _, values in kinds for name in values if _is_time(name)}, key=_time_order)
    if not names:
        return ""
    longest = max(values[name] for _, values in kinds for name in names if name in values) or 1.0
    scale = _Axis(0, longest, LEFT, RIGHT - 62)
    marks, top = [], 6.0
    for name in names:
        rows = [(place, values[name]) for place, (_, values) in enumerate(kinds) if name in values]
        marks.append(
            f'<text x="{LEFT - 8}" y="{top + 9.5 * len(rows) + 3.5:.1f}" text-anchor="end">{text(name)}</text>'
        )
        for place, value in rows:
            marks.append(_bar(place, scale(value), top, value))
            top += 19
        top += 9
    spoken = f"Time per frame, {where}: " + "; ".join(
        f"{kind} " + ", ".join(f"{name} {values[name]:.1f} ms" for name in names if name in values)
        for kind, values in kinds
        if values
    )
    keys = [
        f'<li><svg viewBox="0 0 28 10" aria-hidden="true" style="width:28px;height:10px;display:inline-block">'
        f'<rect width="28" height="10" rx="2" fill="var(--s{place})"/></svg> {kind}</li>'
        for place, (kind, values) in enumerate(kinds)
        if values
    ]
    svg = f'<svg viewBox="0 0 {WIDTH} {top:.0f}" role="img" aria-label="{text(spoken)}">{"".join(marks)}</svg>'
    caption = f"<figcaption>Time, ms <span>{text(where)}</span></figcaption>"
    return f'<figure class="chart">{caption}{svg}<ul class="legend">{"".join(keys)}</ul></figure>'


def _figure(
    title: str,
    where: str,
    spoken: str,
    marks: Sequence[str],
    data: Mapping[str, object],
    legend: Sequence[tuple[str, str, str]],
) -> str:
    cursor = f'<line class="cursor" y1="{TOP}" y2="{BOTTOM}"/>'
    items = (
        f'<li><button type="button" aria-pressed="true">{swatch}<span>{text(name)}</span>'
        f"<output>{text(figure)}</output></button></li>"
        for swatch, name, figure in legend
    )
    return (
        f'<figure class="chart" data-chart="{text(json.dumps(data, separators=(",", ":")))}">'
        f"<figcaption>{text(title)} <span>{text(where)}</span></figcaption>"
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{text(spoken)}">'
        f'{"".join(marks)}{cursor}</svg><p class="readout" aria-live="polite">{HINT}</p>'
        f'<ul class="legend" aria-label="Series; press to hide or show">{"".join(items)}</ul></figure>'
    )


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


def _stroke(index: int, dash_index: int | None = None) -> str:
    dash = DASHES[(index // COLORS if dash_index is None else dash_index) % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="var(--s{index % COLORS})"{dashed}'


def _swatch(index: int, dash_index: int | None = None) -> str:
    line = f'<path class="series" {_stroke(index, dash_index)} d="M1 5H27"/>'
    return f'<svg viewBox="0 0 28 10" aria-hidden="true">{line}</svg>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _unit_grid(x_name: str, y_name: str) -> str:
    marks = []
    for tick in (0, 20, 40, 60, 80, 100):
        x, y = _X(tick / 100), _Y(tick / 100)
        marks += [_line("grid", x, TOP, x, BOTTOM), _line("grid", LEFT, y, RIGHT, y)]
        marks.append(f'<text x="{x:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{tick}</text>')
        marks.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    marks += [_line("axis", LEFT, BOTTOM, RIGHT, BOTTOM), _axis_title_x(f"{x_name}, %"), _axis_title_y(f"{y_name}, %")]
    return "".join(marks)


def _log_grid(decades: int, y: _Axis) -> str:
    marks = []
    for decade in range(decades + 1):
        marks.append(_line("grid", LEFT, y(decade), RIGHT, y(decade)))
        # every second one where they would touch
        if decades <= 8 or decade % 2 == 0:
            marks.append(f'<text x="{LEFT - 7}" y="{y(decade) + 4:.1f}" text-anchor="end">{_short(decade)}</text>')
    return "".join([*marks, _line("axis", LEFT, BOTTOM, RIGHT, BOTTOM)])


def _short(decade: int) -> str:
    unit = ("", "k", "M", "G", "T")[min(decade // 3, 4)]
    return f"{10 ** (decade - 3 * min(decade // 3, 4))}{unit}"


def _x_ticks(x: _Axis, name: str) -> str:
    marks = [_axis_title_x(name)]
    for tick in nice_ticks(x.low, x.high):
        marks.append(_line("axis", x(tick), BOTTOM, x(tick), BOTTOM + 4))
        marks.append(f'<text x="{x(tick):.1f}" y="{BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    return "".join(marks)


def nice_ticks(low: float, high: float) -> list[float]:
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = power * next((factor for factor in (1, 2, 5) if span / (factor * power) <= 6), 10)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _axis_title_x(name: str) -> str:
    return f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{text(name)}</text>'


def _axis_title_y(name: str) -> str:
    middle = (TOP + BOTTOM) / 2
    return f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{text(name)}</text>'


def _threshold(x: float) -> str:
    side, offset = ("end", -5) if x > (LEFT + RIGHT) / 2 else ("start", 5)
    label = f'<text x="{x + offset:.1f}" y="{TOP + 10}" text-anchor="{side}">best F1</text>'
    return _line("reference", x, TOP, x, BOTTOM) + label


def _is_time(name: str) -> bool:
    return name in ("min", "mean", "max") or (name[:1] == "p" and name[1:].replace(".", "", 1).isdigit())


def _time_order(name: str) -> float:
    fixed = {"min": 0.0, "mean": 0.5, "max": 101.0}
    return fixed[name] if name in fixed else float(name[1:])


def _bar(place: int, end: float, top: float, value: float) -> str:
    width = max(end - LEFT, 1)
    bar = f'<rect x="{LEFT}" y="{top:.1f}" width="{width:.1f}" height="15" rx="2" fill="var(--s{place})"/>'
    return f'{bar}<text class="value" x="{LEFT + width + 6:.1f}" y="{top + 12:.1f}">{value:.1f}</text>'
