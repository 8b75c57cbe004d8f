"""What `anomseg bench` and `anomseg tune` show: the table on the terminal, and the picture as a file."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from anomseg_ros.bench.results import BenchReport, Entry
from anomseg_ros.bench.statistics import Ratio
from anomseg_ros.commands import options
from anomseg_ros.errors import ConfigError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_TIMEOUT_S = 60.0
NOTHING = "–"


def print_report(console: Console, report: BenchReport) -> None:
    """Print a row per candidate, then what may surprise."""
    table = Table(title=f"latency of one frame, {report.entries[0].rounds} interleaved rounds", title_justify="left")
    first = report.entries[0].title
    own = any(entry.own_eager for entry in report.entries)
    accuracy = next((entry.accuracy for entry in report.entries if entry.accuracy is not None), None)
    headings = ["candidate", "precision", "p50 ms", "p95 ms", "p99 ms", "frames/s", "times as fast\nas the first"]
    headings += ["as its own\ntorch eager"] if own else []
    headings += ["parameters", "MACs", "file", "memory"]
    headings += [] if accuracy is None else [f"{accuracy.metric}\n{accuracy.dataset}"]
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < 2 else "right")
    for entry in report.entries:
        table.add_row(*_cells(entry, first, own, accuracy is not None))
    table.width = options.full_width(table, console)
    console.print(table, crop=False, no_wrap=True, overflow="ignore")
    for warning in (*report.warnings, *(note for entry in report.entries for note in entry.notes)):
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False, highlight=False)


def _cells(entry: Entry, first: str, own: bool, accuracy: bool) -> list[str]:
    cells = [entry.title, entry.precision, *(f"{entry.latency_ms[name]:.2f}" for name in ("p50", "p95", "p99"))]
    cells += [f"{entry.frames_per_second:.1f}", _times(entry.speedup.get(first))]
    if own:
        cells.append(_times(entry.speedup.get(entry.own_eager or "")))
    cells += [_short(entry.parameters), _short(entry.multiply_adds), _mebibytes(entry.file_bytes)]
    cells.append(NOTHING if entry.peak_memory_mib is None else f"{entry.peak_memory_mib:.0f} MiB")
    if accuracy:
        cells.append(NOTHING if entry.accuracy is None else f"{100 * entry.accuracy.value:.2f}")
    return cells


def _times(value: Ratio | None) -> str:
    return NOTHING if value is None else f"{value.median:.2f} ({value.low:.2f}-{value.high:.2f})"


def _short(value: int | None) -> str:
    if value is None:
        return NOTHING
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return str(value)


def _mebibytes(value: int | None) -> str:
    return NOTHING if value is None else f"{value / 2**20:.2f} MiB"


def check_picture(path: Path) -> None:
    """Raise ConfigError where no such picture can be written."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise ConfigError(f"picture {path.name!r} must end in .svg or .png")
    if path.suffix.lower() == ".png":
        _browser(path)


def write_picture(svg: str, path: Path) -> None:
    """Write the picture: .svg as it is, .png by an installed Chromium. Raises ConfigError for anything else."""
    check_picture(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".png":
        _screenshot(svg, path)
        return
    part = path.with_name(f".{path.name}.part")
    part.write_text(svg, encoding="utf-8")
    os.replace(part, path)


def _browser(path: Path) -> str:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise ConfigError(f"{path.name!r}: .png needs one of {', '.join(BROWSERS)} installed; or give a .svg file")
    return browser


def _screenshot(svg: str, path: Path) -> None:
    browser = _browser(path)
    width, height = (svg.split(f' {name}="', 1)[1].split('"', 1)[0] for name in ("width", "height"))
    with tempfile.TemporaryDirectory(prefix="anomseg-", ignore_cleanup_errors=True) as folder:
        source, shot = Path(folder) / "picture.svg", Path(folder) / "picture.png"
        source.write_text(svg, encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=2"]
        flags += [f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", f"--screenshot={shot}"]
        done = subprocess.run(
            [browser, *flags, source.as_uri()], capture_output=True, text=True, timeout=BROWSER_TIMEOUT_S
        )
        if not shot.is_file():
            raise ConfigError(f"{browser} wrote no picture: {done.stderr.strip()[-200:]}; give a name ending in .svg")
        shutil.copyfile(shot, path)
