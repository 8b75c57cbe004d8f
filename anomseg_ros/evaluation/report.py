"""The report: an evaluation as one HTML file that needs no network and reads well on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomseg_ros.evaluation.report_charts import (
    BarChart,
    Chart,
    Series,
    curve_chart,
    histogram_chart,
    reliability_chart,
    time_chart,
)
from anomseg_ros.evaluation.report_page import percent, render, write_page
from anomseg_ros.evaluation.report_robustness import heat_tables, robustness_figures
from anomseg_ros.evaluation.report_tables import (
    Fact,
    FrameTable,
    OverlayKey,
    consistency_facts,
    drive_facts,
    facts,
    frame_table,
    is_unlabelled,
    live_facts,
    streaming_facts,
    summary,
)
from anomseg_ros.evaluation.results import Evaluation, Result
from anomseg_ros.evaluation.robustness import NAMES

ALL_OPEN = 3  # up to so many results, nothing is folded away


@dataclass(frozen=True)
class _Section:
    """The results of one dataset and protocol, with their curves over one another. manner: see manner_of."""

    dataset: str
    manner: str
    curves: Sequence[Chart]
    results: Sequence[_Details]


@dataclass(frozen=True)
class _Details:
    """What a template shows of one result beside its own fields. iou: by class, empty where it is shown before."""

    result: Result
    facts: Sequence[Fact]
    iou: Mapping[str, float]
    charts: Sequence[Chart | BarChart]
    drive: Sequence[Fact]
    streaming: Sequence[Fact]
    live: Sequence[Fact]
    table: FrameTable
    unlabelled: bool


def write_report(evaluation: Evaluation, path: Path, overlays: Mapping[OverlayKey, bytes] | None = None) -> None:
    """Write the report of an evaluation to `path`, beside first and then renamed.

    overlays: JPEG files as bytes, by (bundle, dataset, score, protocol, frame_id); embedded, so keep them small.
    """
    write_page(path, render_report(evaluation, overlays))


def render_report(evaluation: Evaluation, overlays: Mapping[OverlayKey, bytes] | None = None) -> str:
    """Return the report's HTML: what `write_report` writes."""
    results = evaluation.results
    measured = [result for result in results if not is_unlabelled(result)]
    protocols = dict.fromkeys(result.protocol for result in measured)
    return render(
        "report.html",
        _title(evaluation),
        evaluation=evaluation,
        remarks=_remarks(evaluation),
        summaries=[summary(name, [one for one in measured if one.protocol == name]) for name in protocols],
        sections=_sections(results, overlays or {}),
        all_open=len(results) <= ALL_OPEN,
        robustness=[(one, heat_tables(one)) for one in evaluation.robustness],
        robustness_figures=robustness_figures(evaluation.robustness),
        figure_names=NAMES,
    )


def _sections(results: Sequence[Result], overlays: Mapping[OverlayKey, bytes]) -> list[_Section]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.dataset, result.protocol), []).append(result)
    return [
        _Section(
            key[0],
            manner_of(group[0]),
            curves_of(group, where_of(group[0]), [name_of(result) for result in group]),
            [_details(result, overlays, group[:place]) for place, result in enumerate(group)],
        )
        for key, group in groups.items()
    ]


def _details(result: Result, overlays: Mapping[OverlayKey, bytes], before: Sequence[Result]) -> _Details:
    """Return the details of a result; before: results of the same dataset that are shown above it."""
    where = where_of(result)
    charts = [
        histogram_chart(where, result.score, result.curves, result.best_f1_threshold),
        reliability_chart(where, result.curves, result.ece),
        time_chart(where, result.inference_ms, result.network_ms),
    ]
    return _Details(
        result,
        facts(result),
        {} if any((one.bundle, one.iou) == (result.bundle, result.iou) for one in before) else result.iou or {},
        [chart for chart in charts if chart is not None],
        _drive_facts(result),
        [] if result.streaming is None else streaming_facts(result.streaming),
        [] if result.live is None else live_facts(result.live),
        frame_table(result, overlays),
        is_unlabelled(result),
    )


def _drive_facts(result: Result) -> list[Fact]:
    told = [] if result.drive is None else drive_facts(result.drive)
    return told if result.consistency is None else [*told, *consistency_facts(result.consistency)]


def where_of(result: Result) -> str:
    """Return what a result was measured on, and how."""
    return ", ".join(filter(None, (result.dataset, manner_of(result))))


def manner_of(result: Result) -> str:
    """Return the protocol of a result, or, where no accuracy is measured, the region that limits alarms, if any."""
    if not is_unlabelled(result):
        return f"protocol {result.protocol}"
    region = None if result.drive is None else result.drive.road_region
    return "" if region is None else f"alarms limited to {region}"


def name_of(result: Result) -> str:
    """Return what tells a result from others on the same dataset."""
    return f"{result.bundle} · {result.score}"


def _title(evaluation: Evaluation) -> str:
    bundles = list(dict.fromkeys(result.bundle for result in evaluation.results))
    datasets = list(dict.fromkeys(result.dataset for result in evaluation.results))
    return f"Evaluation: {_listed(bundles, 'bundles')} on {_listed(datasets, 'datasets')}"


def _listed(names: Sequence[str], kind: str) -> str:
    return ", ".join(names) if 0 < len(names) <= 2 else f"{len(names)} {kind}"


def _remarks(evaluation: Evaluation) -> list[str]:
    """Return the errors and warnings of the run, which explain what is missing from the table."""
    return [
        f"{kind}: {line}"
        for kind in ("error", "warning")
        for line in evaluation.settings.get(f"{kind}s") or ()  # a run without any has an empty list
    ]


def curves_of(
    results: Sequence[Result], where: str, names: Sequence[str], styles: Sequence[int] | None = None
) -> list[Chart]:
    """Return the precision-recall and ROC curves of results of one dataset over one another.

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
    charts = []
    if precision:
        share = max(one.anomaly_px / max(one.anomaly_px + one.known_px, 1) for one in results)
        axes = ("Recall", "Precision")
        charts.append(curve_chart("Precision and recall", where, axes, precision, (share, share), steps=True))
    if roc:
        charts.append(curve_chart("ROC", where, ("False positive rate", "True positive rate"), roc, (0.0, 1.0)))
    return charts


def _rising(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Return the points with x rising: curves come in either direction, and reversing keeps the order of ties."""
    return (x, y) if x[0] <= x[-1] else (x[::-1], y[::-1])
