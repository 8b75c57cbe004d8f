"""The options of the drift guard and the report of its result, for all commands that compress bundles."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from anomseg_ros.commands import options
from anomseg_ros.compression.drift import DriftError, Guard, Tolerance
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.errors import ConfigError

SHARES = {
    "label_agreement": "smallest share of equal labels",
    "rank_correlation": "smallest rank correlation of each score",
}
POINTS = {"max_auprc": "auprc_points", "max_fpr95": "fpr95_points", "max_miou": "miou_points"}
"""Option -> field of Tolerance."""
ALLOW_FEW_HELP = "accept fewer frames than calibration needs"


def add_guard(parser: argparse.ArgumentParser, limits: Tolerance | None, description: str) -> None:
    """Add the options of the drift guard. limits: the defaults; None: each step has its own defaults."""
    guard = parser.add_argument_group("drift guard", description)
    guard.add_argument(
        "--dataset", nargs="+", action="extend", default=[], metavar="NAME=PATH", help="labelled frames to measure on"
    )
    guard.add_argument("--allow-partial", action="store_true", help=options.ALLOW_PARTIAL_HELP)
    for name, text in {**SHARES, **dict.fromkeys(POINTS, "largest loss in percentage points")}.items():
        guard.add_argument(
            _option(name),
            type=float,
            default=None if limits is None else getattr(limits, POINTS.get(name, name)),
            metavar="POINTS" if name in POINTS else "SHARE",
            help=text + (" (default: depends on the step)" if limits is None else ""),
        )
    guard.add_argument("--accept-drift", action="store_true", help="write the bundle even if a limit is exceeded")


def guard_of(args: argparse.Namespace, limits: Tolerance | None = None) -> Guard:
    """Return the guard of parsed arguments. limits: tolerances for omitted options; None: the default Tolerance."""
    return Guard(
        tolerance=replace(limits or Tolerance(), **bounds_of(args)),
        datasets=tuple(args.dataset),
        allow_partial=args.allow_partial,
        accept_drift=args.accept_drift,
        threads=args.threads,
    )


def bounds_of(args: argparse.Namespace) -> dict[str, float]:
    """Return the bounds on the command line, by their names in Tolerance.

    Raises ConfigError for shares outside 0 to 1 and for points that are negative or not finite.
    """
    bounds = {name: value for name in (*SHARES, *POINTS) if (value := getattr(args, name)) is not None}
    for name, value in bounds.items():
        if name in SHARES and not 0 <= value <= 1:
            raise ConfigError(f"{_option(name)} {value:g}: expected 0 to 1")
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(
                f"{_option(name)} {value:g}: expected points, 0 or more; --accept-drift removes all bounds"
            )
    return {POINTS.get(name, name): value for name, value in bounds.items()}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@contextmanager
def refusal_shown(before: str, after: str) -> Iterator[None]:
    """Print the measured drift where a bundle is refused for it; its measuring took minutes. Names as print_compressed.

    Raises DriftError again.
    """
    try:
        yield
    except DriftError as error:
        Console().print(_table("refused", before, after, _drift_rows(error.drift.plain()), ""))
        raise


def print_compressed(
    bundle: Bundle, before: str, after: str, rows: Sequence[tuple[str, str, str]] = (), caption: str = ""
) -> None:
    """Print a table of the drift, the thresholds that were removed, and the directory of the bundle.

    Args:
        bundle: the compressed bundle.
        before: heading of the column of the parent.
        after: heading of the column of the bundle.
        rows: additional rows (measure, before, after) above those of the drift.
        caption: caption of the table.
    """
    compression = bundle.contract.compression
    title = f"{bundle.contract.name}: {compression['method']}"
    console = Console()
    console.print(_table(title, before, after, [*rows, *_drift_rows(compression["drift"])], caption))
    removed = [name for name in compression["drift"]["alarms"] if name not in bundle.contract.thresholds]
    if removed:
        console.print(
            f"the thresholds of {', '.join(removed)} are no longer valid and were removed: run "
            "`anomseg calibrate threshold`",
            soft_wrap=True,
        )
    console.print(f"written to {bundle.directory}", soft_wrap=True, highlight=False)


def _table(title: str, before: str, after: str, rows: Sequence[tuple[str, str, str]], caption: str) -> Table:
    table = Table(title=title, title_justify="left", caption=caption or None)
    for heading in ("measure", before, after):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _drift_rows(drift: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (measure, before, after) for each measure in a contract's drift."""
    rows = [("label agreement", "", f"{100 * drift['label_agreement']:.2f} %")]
    for name, score in drift["scores"].items():
        rows.append((f"rank correlation of {name}", "", f"{score['rank_correlation']:.4f}"))
    for dataset, measures in drift["datasets"].items():
        for measure, (before, after) in measures.items():
            rows.append((f"{measure} on {dataset}", f"{100 * before:.2f} %", f"{100 * after:.2f} %"))
    return rows
