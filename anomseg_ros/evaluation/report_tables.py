"""Tables of a report: the summary as the papers print it, frames sorted worst first, IoU per class, single figures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from anomseg_ros.evaluation.report_page import NOT_MEASURED, count, percent, scrolling, text
from anomseg_ros.evaluation.results import FrameResult, Result

OverlayKey = tuple[str, str, str, str, str]
FIRST_FRAMES = 25


@dataclass(frozen=True)
class _Figure:
    """One sub-column of the summary."""

    name: str
    of: Callable[[Result], float | None]
    highest_is_best: bool


_FIGURES = (
    _Figure("AuPRC", lambda result: result.auprc, True),
    _Figure("FPR95", lambda result: result.fpr95, False),
    _Figure("mIoU", lambda result: result.miou, True),
)


def summary_table(protocol: str, results: Sequence[Result]) -> str:
    """Return one protocol's table: rows bundle and score, columns AuPRC and FPR95 per dataset, best of a column marked.

    mIoU has a column where it was measured.
    """
    datasets = list(dict.fromkeys(result.dataset for result in results))
    rows = list(dict.fromkeys((result.bundle, result.score) for result in results))
    cells = {(result.bundle, result.score, result.dataset): result for result in results}
    columns = [(dataset, figure) for dataset in datasets for figure in _figures_of(dataset, results)]
    first = {next(column for column in columns if column[0] == dataset) for dataset in datasets}
    best = {(dataset, figure.name): _best(figure, dataset, results) for dataset, figure in columns}
    body = []
    for bundle, score in rows:
        values = "".join(
            _summary_cell(
                cells.get((bundle, score, dataset)), figure, best[dataset, figure.name], (dataset, figure) in first
            )
            for dataset, figure in columns
        )
        body.append(f'<tr><th scope="row">{text(bundle)}<span>{text(score)}</span></th>{values}</tr>')
    legend = "in percent; ↑ higher is better, ↓ lower is better; best in bold"
    caption = f"<caption><span>Protocol {text(protocol)}, {legend}.</span></caption>"
    table = f'<table class="summary">{caption}{_summary_head(columns, first)}<tbody>{"".join(body)}</tbody></table>'
    return scrolling(table, f"Summary, protocol {protocol}")


def _figures_of(dataset: str, results: Sequence[Result]) -> list[_Figure]:
    """Return what some result of a dataset has: one without anomalies has mIoU only."""
    own = [result for result in results if result.dataset == dataset]
    measured = [figure for figure in _FIGURES if any(figure.of(result) is not None for result in own)]
    return measured or list(_FIGURES[:2])


def _summary_head(columns: Sequence[tuple[str, _Figure]], first: Set[tuple[str, _Figure]]) -> str:
    widths: dict[str, int] = {}
    for dataset, _ in columns:
        widths[dataset] = widths.get(dataset, 0) + 1
    groups = "".join(
        f'<th scope="colgroup" colspan="{width}" class="first">{text(dataset)}</th>'
        for dataset, width in widths.items()
    )
    names = "".join(
        f'<th scope="col"{_first(column in first)}>{column[1].name} {"↑" if column[1].highest_is_best else "↓"}</th>'
        for column in columns
    )
    return f'<thead><tr><th rowspan="2" scope="col">Bundle, score</th>{groups}</tr><tr>{names}</tr></thead>'


def _summary_cell(result: Result | None, figure: _Figure, best: float | None, first: bool) -> str:
    value = None if result is None else figure.of(result)
    marked = value is not None and value == best
    classes = " ".join(name for name, used in (("first", first), ("best", marked)) if used)
    said = '<span class="hidden-text"> best</span>' if marked else ""
    return f"<td{f' class={chr(34)}{classes}{chr(34)}' if classes else ''}>{percent(value)}{said}</td>"


def _first(is_first: bool) -> str:
    return ' class="first"' if is_first else ""


def _best(figure: _Figure, dataset: str, results: Sequence[Result]) -> float | None:
    values = [value for result in results if result.dataset == dataset if (value := figure.of(result)) is not None]
    if len(set(values)) < 2:
        return None  # best of one, or of equals, says nothing
    return max(values) if figure.highest_is_best else min(values)


def facts(result: Result) -> str:
    """Return every single figure of a result, with bounds of errors where they are not zero."""
    entries = [
        ("AuPRC, %", percent(result.auprc), _bound(result.auprc_error)),
        ("FPR95, %", percent(result.fpr95), _bound(result.fpr95_error)),
        ("AUROC, %", percent(result.auroc), _bound(result.auroc_error)),
        ("Best F1, %", percent(result.best_f1), _at(result.best_f1_threshold)),
        ("mIoU, %", percent(result.miou), ""),
        ("ECE, %", percent(result.ece), "calibration error"),
        *_component_facts(result),
        *_threshold_facts(result),
        ("Pipeline, ms", NOT_MEASURED if result.wall_ms is None else f"{result.wall_ms:.1f}", "per frame, all steps"),
        ("Frames", count(result.frames), f"{count(result.frames_skipped)} skipped" if result.frames_skipped else ""),
        ("Known pixels", count(result.known_px) if result.known_px else NOT_MEASURED, ""),
        ("Anomalous pixels", count(result.anomaly_px) if result.known_px else NOT_MEASURED, _share(result)),
        *(
            (name, text(value), "")
            for name, value in (
                ("Network", result.network),
                ("Precision", result.precision),
                ("Backend", result.backend),
                ("Bundle SHA-256", result.bundle_sha256 and result.bundle_sha256[:12] + "…"),
            )
            if value
        ),
    ]
    return fact_list(entries)


def fact_list(entries: Sequence[tuple[str, str, str]]) -> str:
    """Return (name, value, note) triples of HTML as a list, without those that were not measured."""
    shown = [entry for entry in entries if entry[1] != NOT_MEASURED]
    return '<dl class="facts">' + "".join(_fact(*entry) for entry in shown) + "</dl>"


def _fact(name: str, value: str, note: str) -> str:
    small = f"<small>{note}</small>" if note else ""
    return f"<div><dt>{name}</dt><dd>{value}{small}</dd></div>"


def _bound(error: float | None) -> str:
    return f"error ≤ {100 * error:.1g}" if error else ""


def _at(threshold: float | None) -> str:
    return f"at score ≥ {threshold:.4g}" if threshold is not None else ""


def _share(result: Result) -> str:
    total = result.known_px + result.anomaly_px
    return f"{100 * result.anomaly_px / total:.2f} % of all" if total else ""


def _component_facts(result: Result) -> list[tuple[str, str, str]]:
    parts = result.components
    if parts is None:
        return []
    return [
        ("Component sIoU, %", percent(parts.siou), _at(parts.threshold)),
        ("Component PPV, %", percent(parts.ppv), ""),
        ("Component F1, %", percent(parts.f1), "mean over thresholds"),
    ]


def _threshold_facts(result: Result) -> list[tuple[str, str, str]]:
    found = result.at_threshold
    if found is None:
        return []
    where = f"score &gt; {found.threshold:.4g}, {text(found.source)}"
    return [
        ("FPR at the bundle's threshold, %", percent(found.fpr), where),
        ("Found at the bundle's threshold, %", percent(found.tpr), "share of the anomalous pixels"),
    ]


def iou_table(iou: Mapping[str, float], where: str) -> str:
    """Return IoU per class with bars, folded away."""
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{percent(value, 1)}</td>'
        f'<td class="bar"><i style="width:{100 * min(max(value, 0.0), 1.0):.1f}%"></i></td></tr>'
        for name, value in iou.items()
    )
    head = '<thead><tr><th scope="col">Class</th><th scope="col">IoU, %</th><td></td></tr></thead>'
    table = f'<table class="iou"><caption><span>{text(where)}</span></caption>{head}<tbody>{rows}</tbody></table>'
    return f'<details class="plain"><summary><h4>IoU per class</h4></summary>{table}</details>'


@dataclass(frozen=True)
class _Column:
    """One sortable column: its header, the raw value to sort by, its text, and the order of a first tap."""

    name: str
    of: Callable[[FrameResult], float | None]
    shown: Callable[[float], str]
    first: str


_COLUMNS = (
    _Column("AuPRC, %", lambda frame: frame.auprc, percent, "ascending"),
    _Column("FPR95, %", lambda frame: frame.fpr95, percent, "descending"),
    _Column("Anomalous px", lambda frame: frame.anomaly_px, lambda value: count(int(value)), "descending"),
    _Column("Time, ms", lambda frame: frame.inference_ms, lambda value: f"{value:.1f}", "descending"),
    _Column("Network, ms", lambda frame: frame.network_ms, lambda value: f"{value:.1f}", "descending"),
)


def frame_table(result: Result, where: str, overlays: Mapping[OverlayKey, bytes]) -> str:
    """Return the frames, lowest AuPRC first, those without anomalies last, each beside its overlay if any."""
    frames = sorted(result.per_frame, key=lambda frame: (frame.auprc is None, frame.auprc or 0.0))
    if not frames:  # nothing was measured frame by frame, but there may be something to see
        frames = [FrameResult(key[4], 0, 0) for key in overlays if key[:4] == result.key]
    if not frames:
        return ""
    columns = [column for column in _COLUMNS if any(column.of(frame) for frame in frames)]
    pictures = {frame.frame_id: overlays.get((*result.key, frame.frame_id)) for frame in frames}
    pictured = any(pictures.values())
    rows = "".join(_frame_row(frame, columns, pictures[frame.frame_id], pictured) for frame in frames)
    caption = f"<caption><span>{text(where)}. Worst AuPRC first; press a header to sort.</span></caption>"
    table = f'<table class="frames">{caption}{_frame_head(columns, pictured)}<tbody>{rows}</tbody></table>'
    return sortable_frames(table, f"Frames, {where}", 1 if pictured else 0)


def sortable_frames(table: str, label: str, name_column: int) -> str:
    """Return a table of frames in the box that the page's script makes sortable and filterable."""
    tools = (
        '<div class="tools" hidden><label>Filter <input type="search" placeholder="frame name"></label>'
        '<span class="found note" role="status"></span></div>'
    )
    more = '<button type="button" class="more" hidden></button>'
    return (
        f'<h4>Frames</h4><div class="frame-box" data-limit="{FIRST_FRAMES}" data-name="{name_column}">'
        f"{tools}{scrolling(table, label)}{more}</div>"
    )


def sortable_header(name: str, kind: str, first: str, sorted_now: bool = False) -> str:
    """Return a header cell whose button sorts; kind: number or text; first: the order of a first press."""
    now = f' aria-sort="{first}"' if sorted_now else ""
    return (
        f'<th scope="col" data-kind="{kind}" data-first="{first}"{now}><button type="button">{text(name)}</button></th>'
    )


def _frame_head(columns: Sequence[_Column], pictured: bool) -> str:
    cells = ['<th scope="col">Overlay</th>'] if pictured else []
    cells.append(sortable_header("Frame", "text", "ascending"))
    cells += [sortable_header(column.name, "number", column.first, column.name == "AuPRC, %") for column in columns]
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _frame_row(frame: FrameResult, columns: Sequence[_Column], picture: bytes | None, pictured: bool) -> str:
    cells = [f'<td class="picture">{_thumb(frame, picture) if picture else ""}</td>'] if pictured else []
    cells.append(f'<th scope="row" data-v="{text(frame.frame_id)}">{text(frame.frame_id)}</th>')
    cells += [number_cell(column.of(frame), column.shown) for column in columns]
    return f"<tr>{''.join(cells)}</tr>"


def number_cell(value: float | None, shown: Callable[[float], str], kind: str = "") -> str:
    """Return a cell that sorts by its value; one without a value sorts last."""
    marked = f' class="{kind}"' if kind else ""
    return f"<td>{NOT_MEASURED}</td>" if value is None else f'<td{marked} data-v="{value!r}">{shown(value)}</td>'


def _thumb(frame: FrameResult, picture: bytes) -> str:
    said = f"{frame.frame_id}: AuPRC {percent(frame.auprc)} %" if frame.auprc is not None else frame.frame_id
    data = base64.b64encode(picture).decode("ascii")
    image = f'<img src="data:image/jpeg;base64,{data}" alt="{text(said)}" decoding="async">'
    return f'<button type="button" class="thumb" aria-label="Enlarge overlay of {text(said)}">{image}</button>'
