"""A comparison as an HTML page in the manner of the report: figures, curves over one another, frames that changed."""

from __future__ import annotations

from pathlib import Path

from anomseg_ros.evaluation.compare import Change, Comparison, named
from anomseg_ros.evaluation.report import curves_of, name_of, where_of
from anomseg_ros.evaluation.report_charts import COLORS, Chart
from anomseg_ros.evaluation.report_page import NOT_MEASURED, percent, render, write_page
from anomseg_ros.evaluation.results import Evaluation, Result


def write_comparison(comparison: Comparison, before: Evaluation, after: Evaluation, path: Path) -> None:
    """Write the page of a comparison of `before` and `after` to `path`, beside first and then renamed."""
    results = [{result.key: result for result in evaluation.results} for evaluation in (before, after)]
    alone = [
        f"Only {when}: {named(key)}"
        for when, keys in (("before", comparison.only_before), ("after", comparison.only_after))
        for key in keys
    ]
    document = render(
        "compare.html",
        f"Comparison of {len(comparison.pairs)} result{'s' if len(comparison.pairs) != 1 else ''}",
        before=before,
        after=after,
        pairs=[(pair, _curves(results[0][pair.key_before], results[1][pair.key_after])) for pair in comparison.pairs],
        alone=alone,
        signed=signed,
        valued=valued,
    )
    write_page(path, document)


def signed(change: Change) -> str:
    """Return a change in points of percent or in ms, with its sign; a dash where it is unknown."""
    if change.delta is None:
        return NOT_MEASURED
    if change.unit == "ms" and abs(change.delta) < 0.05:
        return "0.0"
    return f"{change.delta:+.1f}" if change.unit == "ms" else _points(change.delta)


def valued(change: Change, value: float | None) -> str:
    """Return a figure of a change in percent or ms."""
    if value is None or change.unit != "ms":
        return percent(value)
    return f"{value:.1f}"


def _points(delta: float) -> str:
    """Return a change in percentage points; one too small for two digits is told from none."""
    if delta == 0:
        return "0.00"
    return f"{100 * delta:+.2f}" if abs(delta) >= 5e-5 else f"{100 * delta:+.0e}"


def _curves(before: Result, after: Result) -> list[Chart]:
    names = [f"before: {name_of(before)}", f"after: {name_of(after)}"]
    # dashed, to show what lies under it
    return curves_of([before, after], where_of(after), names, styles=(0, COLORS + 1))
