"""The report: an evaluation as one HTML file that needs no network and reads well on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from anomseg_ros.evaluation.report_charts import Series, curve_chart, histogram_chart, reliability_chart, time_chart
from anomseg_ros.evaluation.report_drive import drive_section, live_section
from anomseg_ros.evaluation.report_page import notes, page, percent, provenance, text, write_page
from anomseg_ros.evaluation.report_robustness import robustness_section
from anomseg_ros.evaluation.report_tables import OverlayKey, facts, frame_table, iou_table, summary_table
from anomseg_ros.evaluation.results import Evaluation, Result

Groups = Mapping[tuple[str, str], Sequence[Result]]
ALL_OPEN = 3  # up to so many results, nothing is folded away


def write_report(evaluation: Evaluation, path: Path, overlays: Mapping[OverlayKey, bytes] | None = None) -> None:
    """Write the report of an evaluation to `path`, beside first and then renamed.

    overlays: JPEG files as bytes, by (bundle, dataset, score, protocol, frame_id); embedded, so keep them small.
    """
    write_page(path, render_report(evaluation, overlays))


def render_report(evaluation: Evaluation, overlays: Mapping[OverlayKey, bytes] | None = None) -> str:
    """Return the report's HTML: what `write_report` writes."""
    groups = _by_dataset_and_protocol(evaluation.results)
    body = [
        _header(evaluation, groups),
        *_summary(evaluation.results),
        *robustness_section(evaluation.robustness),
        *(
            _dataset_section(number, dataset, protocol, results, overlays or {}, len(evaluation.results) <= ALL_OPEN)
            for number, ((dataset, protocol), results) in enumerate(groups.items())
        ),
    ]
    return page(_title(evaluation), "\n".join(body))


def _by_dataset_and_protocol(results: Sequence[Result]) -> Groups:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.dataset, result.protocol), []).append(result)
    return groups


def _title(evaluation: Evaluation) -> str:
    bundles = list(dict.fromkeys(result.bundle for result in evaluation.results))
    datasets = list(dict.fromkeys(result.dataset for result in evaluation.results))
    return f"Evaluation: {_listed(bundles, 'bundles')} on {_listed(datasets, 'datasets')}"


def _listed(names: Sequence[str], kind: str) -> str:
    return ", ".join(names) if 0 < len(names) <= 2 else f"{len(names)} {kind}"


def _header(evaluation: Evaluation, groups: Groups) -> str:
    links = "".join(
        f'<li><a href="#d{number}">{text(dataset)}</a> <span class="protocol">{text(protocol)}</span></li>'
        for number, (dataset, protocol) in enumerate(groups)
    )
    if evaluation.robustness:
        links += '<li><a href="#corruptions">Under corruptions</a></li>'
    origin = provenance(evaluation.command, evaluation.created, evaluation.machine, evaluation.versions)
    return (
        f'<header><h1>{text(_title(evaluation))}</h1><p class="lead">Road-anomaly segmentation, measured by '
        f"anomseg_ros.</p>{origin}{notes(_remarks(evaluation))}"
        f'<nav aria-label="Datasets"><ul>{links}</ul></nav></header>'
    )


def _remarks(evaluation: Evaluation) -> list[str]:
    """Return the errors and warnings of the run, which explain what is missing from the table."""
    return [
        f"{kind}: {line}"
        for kind in ("error", "warning")
        for line in evaluation.settings.get(f"{kind}s") or ()  # a run without any has an empty list
    ]


def _summary(results: Sequence[Result]) -> list[str]:
    protocols = list(dict.fromkeys(result.protocol for result in results))
    tables = (
        summary_table(protocol, [result for result in results if result.protocol == protocol]) for protocol in protocols
    )
    return ["<section><h2>Summary</h2>", *(tables if results else ['<p class="lead">No results.</p>']), "</section>"]


def _dataset_section(
    number: int,
    dataset: str,
    protocol: str,
    results: Sequence[Result],
    overlays: Mapping[OverlayKey, bytes],
    all_open: bool,
) -> str:
    where = f"{dataset}, protocol {protocol}"
    parts = [_result_section(result, place, all_open or place == 0, overlays) for place, result in enumerate(results)]
    heading = f'<h2 id="d{number}">{text(dataset)} <span class="protocol">protocol {text(protocol)}</span></h2>'
    curves = curves_of(results, where, [_name(result) for result in results])
    return f"<section>{heading}{curves}{''.join(parts)}</section>"


def curves_of(results: Sequence[Result], where: str, names: Sequence[str], styles: Sequence[int] | None = None) -> str:
    """Return the precision-recall and ROC curves of results of one dataset over one another, as HTML.

    styles: each curve's place among colours and dashes, by default its place among the results.
    """
    places = range(len(results)) if styles is None else styles
    drawn = list(zip(places, names, results, strict=True))
    precision = [
        Series(name, f"AuPRC {percent(one.auprc)}", *_rising(one.curves.recall, one.curves.precision), i)
        for i, name, one in drawn
        if one.curves.recall
    ]
    roc = [
        Series(name, f"FPR95 {percent(one.fpr95)}", *_rising(one.curves.fpr, one.curves.tpr), i)
        for i, name, one in drawn
        if one.curves.fpr
    ]
    charts = ""
    if precision:
        share = max(one.anomaly_px / max(one.anomaly_px + one.known_px, 1) for one in results)
        charts += curve_chart(
            "Precision and recall", where, ("Recall", "Precision"), precision, (share, share), steps=True
        )
    if roc:
        charts += curve_chart("ROC", where, ("False positive rate", "True positive rate"), roc, (0.0, 1.0))
    note = '<p class="note">Dotted: what a guess would reach.</p>'
    return f'<div class="charts">{charts}</div>{note}' if charts else ""


def _rising(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Return the points with x rising: curves come in either direction, and reversing keeps the order of ties."""
    return (x, y) if x[0] <= x[-1] else (x[::-1], y[::-1])


def _name(result: Result) -> str:
    return f"{result.bundle} · {result.score}"


def _result_section(result: Result, place: int, is_open: bool, overlays: Mapping[OverlayKey, bytes]) -> str:
    where = f"{result.dataset}, protocol {result.protocol}"
    charts = [
        histogram_chart(where, result.score, result.curves, result.best_f1_threshold),
        reliability_chart(where, result.curves, result.ece),
        time_chart(where, result.inference_ms, result.network_ms),
    ]
    parts = [
        facts(result),
        notes(result.notes),
        f'<div class="charts">{"".join(charts)}</div>' if any(charts) else "",
        iou_table(result.iou, where) if result.iou else "",
        drive_section(result.drive, where) if result.drive is not None else "",
        live_section(result.live) if result.live is not None else "",
        frame_table(result, where, overlays),
    ]
    figures = f"AuPRC {percent(result.auprc)} · FPR95 {percent(result.fpr95)} · protocol {text(result.protocol)}"
    head = f'<summary><h3>{text(_name(result))}</h3><span class="figures">{figures}</span></summary>'
    return f'<details{" open" if is_open else ""}>{head}<div class="inside">{"".join(parts)}</div></details>'
