"""`anomseg compare`: what changed between two evaluations, for people and for continuous integration."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anomseg_ros.commands import options
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.compare import Change, Comparison, FrameChange, ResultChange, auprc_failures, compare, named
from anomseg_ros.evaluation.compare import save_comparison as save_json
from anomseg_ros.evaluation.report_compare import signed, valued, write_comparison
from anomseg_ros.evaluation.results import load_evaluation

STYLES = {None: "", True: "green", False: "red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Print what changed; returns 1 if --fail-below-auprc is given and a result fell by more, else 0."""
    args = _parsed(argv)
    before, after = load_evaluation(args.before), load_evaluation(args.after)
    comparison = compare(before, after)
    _print(comparison, args.frames)
    if args.json is not None:
        save_json(comparison, args.json)
    if args.html is not None:
        write_comparison(comparison, before, after, args.html)
    failures = [] if args.fail_below_auprc is None else auprc_failures(comparison, args.fail_below_auprc)
    for line in failures:
        print(f"anomseg: {line}", file=sys.stderr)
    return 1 if failures else 0


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options.parser("compare", "Say what changed between two evaluations: every figure, then frame by frame.")
    parser.add_argument("before", type=Path, metavar="A.json", help="what `anomseg evaluate --json` wrote first")
    parser.add_argument("after", type=Path, metavar="B.json", help="what it wrote later, or for another bundle")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with curves and all frames")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the changes as data")
    parser.add_argument("--frames", type=int, default=10, metavar="N", help="print the N frames that changed most")
    parser.add_argument(
        "--fail-below-auprc",
        type=float,
        metavar="DROP",
        help="exit with 1 if an AuPRC fell by more than this fraction (0.01: one percentage point) or is missing in B",
    )
    args = parser.parse_args(argv)
    drop = args.fail_below_auprc
    if drop is not None and not 0 <= drop < 1:
        raise ConfigError(f"--fail-below-auprc is {drop!r}; give a fraction from 0 to 1, 0.01 for one percentage point")
    if args.frames < 0:
        raise ConfigError(f"--frames is {args.frames!r}; give 0 or more")
    return args


def _print(comparison: Comparison, frames: int) -> None:
    console = Console(highlight=False)
    for pair in comparison.pairs:
        console.print(Text(named(pair.key_after), style="bold"))
        for note in pair.notes:
            console.print(Text(f"  {note}"))
        console.print(_figure_table(pair))
        changed = [frame for frame in pair.frames if frame.changed]
        if frames and changed:
            console.print(_frame_table(changed[:frames], pair))
        console.print(Text(f"{len(changed)} of {len(pair.frames)} frames changed"))
        for when, names in (("first", pair.only_before), ("second", pair.only_after)):
            if names:
                console.print(Text(f"frames only in the {when}: {', '.join(names)}"))
        console.print()
    for when, keys in (("first", comparison.only_before), ("second", comparison.only_after)):
        for key in keys:
            console.print(Text(f"only in the {when}: {named(key)}"))


def _figure_table(pair: ResultChange) -> Table:
    table = Table("figure", title=Text(f"percent and points, protocol {pair.key_after[3]}"), title_justify="left")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for change in pair.figures:
        if change.before is not None or change.after is not None:
            name = f"{change.name}, ms" if change.unit == "ms" else change.name
            table.add_row(name, valued(change, change.before), valued(change, change.after), _change_text(change))
    return table


def _frame_table(frames: Sequence[FrameChange], pair: ResultChange) -> Table:
    title = f"largest changes first, protocol {pair.key_after[3]}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("frame", overflow="fold")
    for name in ("AuPRC", "change", "FPR95", "change"):
        table.add_column(name, justify="right")
    for frame in frames:
        cells: list[str | Text] = []
        for change in (frame.auprc, frame.fpr95):
            cells += [f"{valued(change, change.before)} > {valued(change, change.after)}", _change_text(change)]
        table.add_row(Text(frame.frame_id), *cells)
    return table


def _change_text(change: Change) -> Text:
    return Text(signed(change), style=STYLES[change.better])
