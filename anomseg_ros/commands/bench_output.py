"""The table that `anomseg bench` and `anomseg tune` print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from anomseg_ros.bench.figures import BenchReport, Entry
from anomseg_ros.bench.power import Power
from anomseg_ros.bench.statistics import Ratio
from anomseg_ros.cli import as_options
from anomseg_ros.commands import options

NO_VALUE = "–"


def print_report(console: Console, report: BenchReport) -> None:
    """Print a row per candidate, a row per engine that says something of itself, and the notes."""
    table = Table(title=f"latency of one frame, {report.entries[0].rounds} interleaved rounds", title_justify="left")
    first = report.entries[0].title
    has_eager = any(entry.own_eager for entry in report.entries)
    accuracy = next((entry.accuracy for entry in report.entries if entry.accuracy is not None), None)
    headings = ["candidate", "precision", "p50 ms", "p95 ms", "p99 ms", "frames/s", "times as fast\nas the first"]
    headings += ["as its own\ntorch eager"] if has_eager else []
    headings += ["parameters", "MACs", "file", "memory"]
    has_power = any(_is_measured(entry.power) for entry in report.entries)
    headings += ["power", "energy\nof a frame"] if has_power else []
    headings += [] if accuracy is None else [f"{accuracy.metric}\n{accuracy.dataset}"]
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="left" if column < 2 else "right")
    for entry in report.entries:
        table.add_row(*_cells(entry, first, has_eager, has_power, accuracy is not None))
    _print_whole(console, table)
    if any(entry.engine for entry in report.entries):
        _print_whole(console, _engines([entry for entry in report.entries if entry.engine]))
    for warning in (*report.warnings, *(note for entry in report.entries for note in entry.notes)):
        console.print(f"warning: {as_options(warning)}", style="yellow", soft_wrap=True, markup=False, highlight=False)


def _print_whole(console: Console, table: Table) -> None:
    table.width = options.full_width(table, console)
    console.print(table, crop=False, no_wrap=True, overflow="ignore")


def _engines(entries: Sequence[Entry]) -> Table:
    """Return a table of what backends say of their engines: names of the node's diagnostics, without `backend_`."""
    table = Table(title="engines; times of stages are medians, milliseconds", title_justify="left")
    facts = {"engine_key": "key", "gpu": "GPU", "engine_precision": "precision", "device_memory_mib": "device\nMiB"}
    stages = list(dict.fromkeys(stage for entry in entries for stage in entry.stages_ms))
    for heading in ("candidate", *facts.values(), *stages):
        table.add_column(heading)
    for entry in entries:
        times = [f"{entry.stages_ms[stage]:.3f}" if stage in entry.stages_ms else NO_VALUE for stage in stages]
        table.add_row(entry.title, *(entry.engine.get(name, NO_VALUE) for name in facts), *times)
    return table


def _is_measured(power: Power | None) -> bool:
    return power is not None and power.mean_power_w is not None


def _power_cells(power: Power | None) -> list[str]:
    if power is None or power.mean_power_w is None or power.energy_per_frame_mj is None:
        return [NO_VALUE, NO_VALUE]
    return [f"{power.mean_power_w:.2f} W ({power.rail})", f"{power.energy_per_frame_mj:.1f} mJ"]


def _cells(entry: Entry, first: str, has_eager: bool, has_power: bool, has_accuracy: bool) -> list[str]:
    cells = [entry.title, entry.precision, *(f"{entry.latency_ms[name]:.2f}" for name in ("p50", "p95", "p99"))]
    cells += [f"{entry.frames_per_second:.1f}", _ratio_text(entry.speedup.get(first))]
    if has_eager:
        cells.append(_ratio_text(entry.speedup.get(entry.own_eager or "")))
    cells += [_count_text(entry.parameters), _count_text(entry.multiply_adds), _mebibytes_text(entry.file_bytes)]
    cells.append(NO_VALUE if entry.peak_memory_mib is None else f"{entry.peak_memory_mib:.0f} MiB")
    cells += _power_cells(entry.power) if has_power else []
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
