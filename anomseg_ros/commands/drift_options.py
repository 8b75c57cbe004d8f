"""The options of the drift guard, for every command that compresses."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from anomseg_ros.compression.drift import Tolerance
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.errors import ConfigError

SHARES = {"label_agreement": "least share of labels that stay", "rank_correlation": "least, of each score"}
POINTS = {"max_auprc": "auprc_points", "max_fpr95": "fpr95_points", "max_miou": "miou_points"}


def add_guard(parser: argparse.ArgumentParser, limits: Tolerance | None, what: str) -> None:
    """Add the options of the drift guard. limits: the defaults, None: those of each step; what: the description."""
    guard = parser.add_argument_group("drift guard", what)
    guard.add_argument(
        "--dataset", nargs="+", action="extend", default=[], metavar="NAME=PATH", help="labelled frames to measure on"
    )
    guard.add_argument("--allow-partial", action="store_true", help="accept fewer or more frames than published")
    for name, text in {**SHARES, **dict.fromkeys(POINTS, "most points worse")}.items():
        guard.add_argument(
            _option(name),
            type=float,
            default=None if limits is None else getattr(limits, POINTS.get(name, name)),
            metavar="POINTS" if name in POINTS else "SHARE",
            help=text + (" (default: each step's own)" if limits is None else ""),
        )
    guard.add_argument("--accept-drift", action="store_true", help="write the bundle in spite of it")


def tolerance(args: argparse.Namespace, limits: Tolerance | None = None) -> Tolerance:
    """Return the tolerance of parsed arguments, that of `limits` (None: the usual) where nothing was given.

    Raises ConfigError for shares outside 0 to 1 and for points that are no number or below 0.
    """
    given = _given(args)
    for name, value in given.items():
        if name in SHARES and not 0 <= value <= 1:
            raise ConfigError(f"{_option(name)} {value:g}: expected 0 to 1")
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{_option(name)} {value:g}: expected points, 0 or more; --accept-drift lifts all bounds")
    return replace(limits or Tolerance(), **{POINTS.get(name, name): value for name, value in given.items()})


def given_bounds(args: argparse.Namespace) -> list[str]:
    """Return the bounds that were given, as command-line options again."""
    return [f"{_option(name)}={value!r}" for name, value in _given(args).items()]


def _given(args: argparse.Namespace) -> dict[str, float]:
    return {name: value for name in (*SHARES, *POINTS) if (value := getattr(args, name)) is not None}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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
