"""The table that `anomseg bench` and `anomseg tune` print."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from anomseg_ros.bench.figures import BenchReport, Entry
from anomseg_ros.bench.statistics import Ratio
from anomseg_ros.cli import as_options
from anomseg_ros.commands import options

NO_VALUE = "–"


def print_report(console: Console, report: BenchReport) -> None:
    """Print a row per candidate, then the notes."""
    table = Table(title=f"latency of one frame, {report.entries[0].rounds} interleaved rounds", title_justify="left")
    first = report.entries[0].title
    has_eager = any(entry.own_eager for entry in report.entries)
    accuracy = next((entry.accuracy for entry in report.entries if entry.accuracy is not None), None)
    headings = ["candidate", "precision", "p50 ms", "p95 ms", "p99 ms", "frames/s", "times as fast\nas the first"]
    headings += ["as its own\ntorch eager"] if has_eager else []
    headings += ["parameters", "MACs", "file", "memory"]
    headings += [] if accuracy is None else [f"{accuracy.metric}\n{accuracy.dataset}"]
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="left" if column < 2 else "right")
    for entry in report.entries:
        table.add_row(*_cells(entry, first, has_eager, accuracy is not None))
    table.width = options.full_width(table, console)
    console.print(table, crop=False, no_wrap=True, overflow="ignore")
    for warning in (*report.warnings, *(note for entry in report.entries for note in entry.notes)):
        console.print(f"warning: {as_options(warning)}", style="yellow", soft_wrap=True, markup=False, highlight=False)


def _cells(entry: Entry, first: str, has_eager: bool, has_accuracy: bool) -> list[str]:
    cells = [entry.title, entry.precision, *(f"{entry.latency_ms[name]:.2f}" for name in ("p50", "p95", "p99"))]
    cells += [f"{entry.frames_per_second:.1f}", _ratio_text(entry.speedup.get(first))]
    if has_eager:
        cells.append(_ratio_text(entry.speedup.get(entry.own_eager or "")))
    cells += [_count_text(entry.parameters), _count_text(entry.multiply_adds), _mebibytes_text(entry.file_bytes)]
    cells.append(NO_VALUE if entry.peak_memory_mib is None else f"{entry.peak_memory_mib:.0f} MiB")
    if has_accuracy:
        cells.append(NO_VALUE if entry.accuracy is None else f"{100 * entry.accuracy.value:.2f}")
    return cells


def _ratio_text(value: Ratio | None) -> str:
    return NO_VALUE if value is None else f"{value.median:.2f} ({value.low:.2f}-{value.high:.2f})"


def _count_text(value: int | None) -> str:
    if value is None:
        return NO_VALUE
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return str(value)


def _mebibytes_text(value: int | None) -> str:
    return NO_VALUE if value is None else f"{value / 2**20:.2f} MiB"
