"""A comparison as an HTML page in the manner of the report: figures, curves over one another, frames that changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomseg_ros.evaluation.compare import Change, Comparison, FrameChange, Key, ResultChange, named
from anomseg_ros.evaluation.report import curves_of
from anomseg_ros.evaluation.report_charts import COLORS
from anomseg_ros.evaluation.report_page import (
    NOT_MEASURED,
    notes,
    page,
    percent,
    provenance,
    scrolling,
    text,
    write_page,
)
from anomseg_ros.evaluation.report_tables import number_cell, sortable_frames, sortable_header
from anomseg_ros.evaluation.results import Evaluation, Result


def write_comparison(comparison: Comparison, before: Evaluation, after: Evaluation, path: Path) -> None:
    """Write the page of a comparison of `before` and `after` to `path`, beside first and then renamed."""
    results = [{result.key: result for result in evaluation.results} for evaluation in (before, after)]
    sections = [
        _pair_section(pair, results[0][pair.key_before], results[1][pair.key_after]) for pair in comparison.pairs
    ]
    title = f"Comparison of {len(comparison.pairs)} result{'s' if len(comparison.pairs) != 1 else ''}"
    header = "".join(
        f"<div><h2>{name}</h2>{provenance(one.command, one.created, one.machine, one.versions)}</div>"
        for name, one in (("Before", before), ("After", after))
    )
    body = [f'<header><h1>{title}</h1><div class="origins">{header}</div></header>', *sections, _alone(comparison)]
    write_page(path, page(title, "\n".join(body)))


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


def _pair_section(pair: ResultChange, before: Result, after: Result) -> str:
    bundle, dataset, score, protocol = pair.key_after
    where = f"{dataset}, protocol {protocol}"
    names = [f"before: {_name(pair.key_before)}", f"after: {_name(pair.key_after)}"]
    heading = (
        f'<h2>{text(bundle)} · {text(score)} <span class="protocol">{text(dataset)}, protocol {text(protocol)}</span>'
        "</h2>"
    )
    parts = [
        notes(pair.notes),
        _figure_table(pair.figures, where),
        curves_of([before, after], where, names, styles=(0, COLORS + 1)),  # dashed, to show what lies under it
        _frame_table(pair.frames, where),
        _frames_alone("before", pair.only_before),
        _frames_alone("after", pair.only_after),
    ]
    return f"<section>{heading}{''.join(parts)}</section>"


def _name(key: Key) -> str:
    return f"{key[0]} · {key[2]}"


def _figure_table(figures: Sequence[Change], where: str) -> str:
    rows = "".join(
        f'<tr><th scope="row">{text(change.name)}, {"ms" if change.unit == "ms" else "%"}</th>'
        f"<td>{valued(change, change.before)}</td><td>{valued(change, change.after)}</td>"
        f"<td{_colored(change)}>{signed(change)}{_judged(change)}</td></tr>"
        for change in figures
        if change.before is not None or change.after is not None
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Figure", "Before", "After", "Change"))
    caption = f"<caption><span>{text(where)}; changes in percentage points or ms.</span></caption>"
    return scrolling(
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>", f"Figures, {where}"
    )


def _frame_table(frames: Sequence[FrameChange], where: str) -> str:
    if not frames:
        return ""
    head = sortable_header("Frame", "text", "ascending") + "".join(
        sortable_header(f"{figure} {when}", "number", "ascending" if figure == "AuPRC" else "descending")
        for figure in ("AuPRC", "FPR95")
        for when in ("change", "before", "after")
    )
    rows = []
    for frame in frames:
        cells = [f'<th scope="row" data-v="{text(frame.frame_id)}">{text(frame.frame_id)}</th>']
        for change in (frame.auprc, frame.fpr95):
            cells.append(number_cell(change.delta, _points, _kind(change)))
            cells += [number_cell(change.before, percent), number_cell(change.after, percent)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = (
        f"<caption><span>{text(where)}, in percent. Largest change first; press a header to sort.</span></caption>"
    )
    table = f'<table class="frames">{caption}<thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return sortable_frames(table, f"Frames, {where}", 0)


def _frames_alone(when: str, names: Sequence[str]) -> str:
    return f'<p class="note">Frames only {when}: {text(", ".join(names))}</p>' if names else ""


def _alone(comparison: Comparison) -> str:
    rows = [
        f"<li>Only {when}: {text(named(key))}</li>"
        for when, keys in (("before", comparison.only_before), ("after", comparison.only_after))
        for key in keys
    ]
    return f"<section><h2>Without a partner</h2><ul>{''.join(rows)}</ul></section>" if rows else ""


def _kind(change: Change) -> str:
    return "" if change.better is None else "better" if change.better else "worse"


def _colored(change: Change) -> str:
    return f' class="{_kind(change)}"' if _kind(change) else ""


def _judged(change: Change) -> str:
    return f'<span class="hidden-text"> {_kind(change)}</span>' if _kind(change) else ""
