"""Tables of the figures under corruptions, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from anomseg_ros.commands import options
from anomseg_ros.evaluation.results import Robustness
from anomseg_ros.evaluation.robustness import FIGURES, NAMES, kinds_of, mean_of, severities_of


def print_robustness(console: Console, robustness: Sequence[Robustness]) -> None:
    """Print a summary, then tables by corruption and severity for the first score of each bundle and dataset."""
    if not robustness:
        return
    _print_unwrapped(console, _summary_table(robustness))
    first_results: dict[tuple[str, str, str], Robustness] = {}
    for result in robustness:
        first_results.setdefault((result.bundle, result.dataset, result.protocol), result)
    for result in first_results.values():
        for figure in FIGURES:
            if getattr(result.clean, figure) is not None:
                _print_unwrapped(console, _severity_table(result, figure))


def _print_unwrapped(console: Console, table: Table) -> None:
    table.width = options.full_width(table, console)
    console.print(table, crop=False, no_wrap=True, overflow="ignore")


def _summary_table(robustness: Sequence[Robustness]) -> Table:
    figures = [name for name in FIGURES if any(getattr(result.clean, name) is not None for result in robustness)]
    table = Table(title="under corruptions: percent; ratio of the mean to clean frames", title_justify="left")
    for heading in ("bundle", "dataset", "protocol", "score"):
        table.add_column(heading)
    for name in figures:
        for heading in ("clean", "mean", "ratio"):
            table.add_column(f"{NAMES[name]}\n{heading}", justify="right")
    for result in robustness:
        cells = []
        for name in figures:
            ratio = getattr(result.ratio, name)
            cells += [_percent(getattr(result.clean, name)), _percent(getattr(result.mean, name))]
            cells.append("-" if ratio is None else f"{ratio:.3f}")
        table.add_row(result.bundle, result.dataset, result.protocol, result.score, *cells)
    return table


def _severity_table(result: Robustness, figure: str) -> Table:
    figures = {(cell.kind, cell.severity): cell.figures for cell in result.corruptions}
    kinds, severities = kinds_of(result), severities_of(result)
    score = "" if figure == "miou" else f", {result.score}"
    clean = _percent(getattr(result.clean, figure))
    subject = f"{result.bundle} on {result.dataset}{score} ({result.protocol})"
    title = f"{subject}: {NAMES[figure]} by severity, percent; clean {clean}"
    table = Table(title=title, title_justify="left")
    table.add_column("corruption")
    for severity in severities:
        table.add_column(str(severity), justify="right")
    table.add_column("mean", justify="right")
    for kind in kinds:
        row = [figures[kind, severity] for severity in severities]
        table.add_row(kind, *(_percent(getattr(cell, figure)) for cell in (*row, mean_of(row))))
    column_means = [mean_of([figures[kind, severity] for kind in kinds]) for severity in severities]
    table.add_section()
    table.add_row("mean", *(_percent(getattr(cell, figure)) for cell in (*column_means, result.mean)))
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
