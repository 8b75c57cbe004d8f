"""The options of the drift guard, for every command that compresses."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table

from anomseg_ros.compression.drift import Tolerance
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.errors import ConfigError


def add_guard(parser: argparse.ArgumentParser, limits: Tolerance, what: str) -> None:
    """Add the options of the drift guard. limits: the defaults; what: the group's description."""
    guard = parser.add_argument_group("drift guard", what)
    guard.add_argument(
        "--dataset", nargs="+", action="extend", default=[], metavar="NAME=PATH", help="labelled frames to measure on"
    )
    guard.add_argument("--allow-partial", action="store_true", help="accept fewer or more frames than published")
    guard.add_argument("--label-agreement", type=float, default=limits.label_agreement, help="least share of labels")
    guard.add_argument("--rank-correlation", type=float, default=limits.rank_correlation, help="least, of each score")
    for measure, default in (
        ("auprc", limits.auprc_points),
        ("fpr95", limits.fpr95_points),
        ("miou", limits.miou_points),
    ):
        guard.add_argument(f"--max-{measure}", type=float, default=default, metavar="POINTS", help="most points worse")
    guard.add_argument("--accept-drift", action="store_true", help="write the bundle in spite of it")


def tolerance(args: argparse.Namespace) -> Tolerance:
    """Return the tolerance of parsed arguments. Raises ConfigError for shares outside 0 to 1."""
    for name in ("label_agreement", "rank_correlation"):
        if not 0 <= getattr(args, name) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name):g}: expected 0 to 1")
    return Tolerance(args.label_agreement, args.rank_correlation, args.max_auprc, args.max_fpr95, args.max_miou)


def drift_rows(drift: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (measure, before, after) of each measure of a contract's drift, for a table."""
    rows = [("labels that agree", "", f"{100 * drift['label_agreement']:.2f} %")]
    for name, score in drift["scores"].items():
        rows.append((f"rank correlation of {name}", "", f"{score['rank_correlation']:.4f}"))
    for dataset, measures in drift["datasets"].items():
        for measure, (before, after) in measures.items():
            rows.append((f"{measure} on {dataset}", f"{100 * before:.2f} %", f"{100 * after:.2f} %"))
    return rows


def print_outcome(bundle: Bundle, table: Table) -> None:
    """Print a table, which thresholds were left out, and where the bundle is."""
    console = Console()
    console.print(table)
    alarms = bundle.contract.compression["drift"]["alarms"]
    dropped = [name for name in alarms if name not in bundle.contract.thresholds]
    if dropped:
        console.print(
            f"thresholds of {', '.join(dropped)} moved and were left out: `anomseg calibrate threshold` finds new ones",
            soft_wrap=True,
        )
    console.print(f"written to {bundle.directory}", soft_wrap=True, highlight=False)
