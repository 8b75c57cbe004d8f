"""Tables of figures under corruptions, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from anomseg_ros.commands import options
from anomseg_ros.evaluation.results import Robustness
from anomseg_ros.evaluation.robustness import FIGURES, NAMES, kinds_of, mean_of, severities_of


def print_robustness(console: Console, robustness: Sequence[Robustness]) -> None:
    """Print clean figures, means and ratios of everything, then kinds by severities of the first score of each job."""
    if not robustness:
        return
    _print_whole(console, _summary(robustness))
    first: dict[tuple[str, str, str], Robustness] = {}
    for one in robustness:
        first.setdefault((one.bundle, one.dataset, one.protocol), one)
    for one in first.values():
        for figure in FIGURES:
            if getattr(one.clean, figure) is not None:
                _print_whole(console, _detail(one, figure))


def _print_whole(console: Console, table: Table) -> None:
    table.width = options.full_width(table, console)
    console.print(table, crop=False, no_wrap=True, overflow="ignore")


def _summary(robustness: Sequence[Robustness]) -> Table:
    figures = [name for name in FIGURES if any(getattr(one.clean, name) is not None for one in robustness)]
    table = Table(title="under corruptions: percent; ratio of the mean to clean frames", title_justify="left")
    for heading in ("bundle", "dataset", "protocol", "score"):
        table.add_column(heading)
    for name in figures:
        for heading in ("clean", "mean", "ratio"):
            table.add_column(f"{NAMES[name]}\n{heading}", justify="right")
    for one in robustness:
        cells = []
        for name in figures:
            ratio = getattr(one.ratio, name)
            cells += [_percent(getattr(one.clean, name)), _percent(getattr(one.mean, name))]
            cells.append("-" if ratio is None else f"{ratio:.3f}")
        table.add_row(one.bundle, one.dataset, one.protocol, one.score, *cells)
    return table


def _detail(one: Robustness, figure: str) -> Table:
    of = {(cell.kind, cell.severity): cell.figures for cell in one.corruptions}
    score = "" if figure == "miou" else f", {one.score}"
    clean = _percent(getattr(one.clean, figure))
    title = (
        f"{one.bundle} on {one.dataset}{score} ({one.protocol}): {NAMES[figure]} by severity, percent; clean {clean}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("corruption")
    severities = severities_of(one)
    for severity in severities:
        table.add_column(str(severity), justify="right")
    table.add_column("mean", justify="right")
    for kind in kinds_of(one):
        own = [of[kind, severity] for severity in severities]
        table.add_row(kind, *(_percent(getattr(each, figure)) for each in (*own, mean_of(own))))
    columns = [mean_of([of[kind, severity] for kind in kinds_of(one)]) for severity in severities]
    table.add_section()
    table.add_row("mean", *(_percent(getattr(each, figure)) for each in (*columns, one.mean)))
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
