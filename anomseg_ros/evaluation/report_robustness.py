"""The report's part on corruptions: clean figures beside means, and a table of kinds by severities for each figure.

A cell is the darker, the more of the clean figure is lost: up to all of AuPRC or mIoU, or FPR95 up to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from anomseg_ros.evaluation.report_page import NOT_MEASURED, percent, scrolling, text
from anomseg_ros.evaluation.results import Figures, Robustness
from anomseg_ros.evaluation.robustness import FIGURES, NAMES, kinds_of, mean_of, severities_of

MOST_SHADE = 60
"""Per cent of colour where all is lost; more would make the number hard to read."""


def robustness_section(robustness: Sequence[Robustness]) -> list[str]:
    """Return the section, nothing without corruptions."""
    if not robustness:
        return []
    lead = "Frames under common corruptions (Hendrycks and Dietterich, 2019). Ratio: mean under corruptions to clean."
    details = (_details(one, place == 0) for place, one in enumerate(robustness))
    heading = f'<h2 id="corruptions">Under corruptions</h2><p class="lead">{lead}</p>'
    return ["<section>", heading, _summary(robustness), *details, "</section>"]


def _summary(robustness: Sequence[Robustness]) -> str:
    figures = [name for name in FIGURES if any(getattr(one.clean, name) is not None for one in robustness)]
    groups = "".join(f'<th scope="colgroup" colspan="3" class="first">{NAMES[name]}</th>' for name in figures)
    names = '<th scope="col" class="first">clean</th><th scope="col">mean</th><th scope="col">ratio</th>' * len(figures)
    head = f'<thead><tr><th rowspan="2" scope="col">Bundle, dataset, score</th>{groups}</tr><tr>{names}</tr></thead>'
    rows = []
    for one in robustness:
        cells = "".join(
            f'<td class="first">{percent(getattr(one.clean, name))}</td><td>{percent(getattr(one.mean, name))}</td>'
            f"<td>{_ratio(getattr(one.ratio, name))}</td>"
            for name in figures
        )
        where = f"{text(one.dataset)}, {text(one.score)}, protocol {text(one.protocol)}"
        rows.append(f'<tr><th scope="row">{text(one.bundle)}<span>{where}</span></th>{cells}</tr>')
    caption = "<caption><span>In percent; ratios are plain numbers.</span></caption>"
    table = f'<table class="summary">{caption}{head}<tbody>{"".join(rows)}</tbody></table>'
    return scrolling(table, "Summary, under corruptions")


def _details(one: Robustness, is_open: bool) -> str:
    measured = [name for name in FIGURES if getattr(one.clean, name) is not None]
    tables = "".join(_heat_table(one, name) for name in measured)
    said = " · ".join(f"{NAMES[name]} ratio {_ratio(getattr(one.ratio, name))}" for name in measured)
    name = f"{text(one.bundle)} · {text(one.dataset)} · {text(one.score)} · {text(one.protocol)}"
    head = f'<summary><h3>{name}</h3><span class="figures">{said}</span></summary>'
    return f'<details{" open" if is_open else ""}>{head}<div class="inside heats">{tables}</div></details>'


def _heat_table(one: Robustness, figure: str) -> str:
    of = {(cell.kind, cell.severity): cell.figures for cell in one.corruptions}
    kinds, severities = kinds_of(one), severities_of(one)
    rows = [
        _row(
            kind,
            [of[kind, severity] for severity in severities],
            mean_of([of[kind, s] for s in severities]),
            one,
            figure,
        )
        for kind in kinds
    ]
    columns = [mean_of([of[kind, severity] for kind in kinds]) for severity in severities]
    foot = _row("mean", columns, one.mean, one, figure)
    head = "".join(f'<th scope="col">{severity}</th>' for severity in severities)
    where = f"{NAMES[figure]} by severity, percent; clean {percent(getattr(one.clean, figure))}"
    return scrolling(
        f'<table class="heat"><caption><span>{where}</span></caption><thead><tr><th scope="col">Corruption</th>{head}'
        f'<th scope="col">mean</th></tr></thead><tbody>{"".join(rows)}</tbody><tfoot>{foot}</tfoot></table>',
        f"{NAMES[figure]} under corruptions, {one.bundle} on {one.dataset}, {one.score}",
    )


def _row(name: str, cells: Sequence[Figures], mean: Figures, one: Robustness, figure: str) -> str:
    shown = "".join(
        _cell(getattr(cell, figure), getattr(one.clean, figure), FIGURES[figure]) for cell in (*cells, mean)
    )
    return f'<tr><th scope="row">{text(name)}</th>{shown}</tr>'


def _cell(value: float | None, clean: float, higher_is_better: bool) -> str:
    if value is None:
        return f"<td>{NOT_MEASURED}</td>"
    room = clean if higher_is_better else 1.0 - clean
    lost = (clean - value if higher_is_better else value - clean) / room if room > 0 else 0.0
    shade = round(MOST_SHADE * min(max(lost, 0.0), 1.0))
    return f'<td style="--lost:{shade}%">{percent(value, 1)}</td>'


def _ratio(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3f}"
