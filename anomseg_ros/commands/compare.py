"""`anomseg compare`: list the changes between two evaluations; can fail a continuous-integration job."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anomseg_ros.commands import options
from anomseg_ros.commands.result_files import print_differences, write_each
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.compare import Change, Comparison, FrameChange, ResultChange, auprc_failures, compare, named
from anomseg_ros.evaluation.compare import save_comparison as save_json
from anomseg_ros.evaluation.report_compare import signed, valued, write_comparison
from anomseg_ros.evaluation.results import load_evaluation, stated_frames

STYLES = {None: "", True: "green", False: "red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the changes; return 1 if an AuPRC fell by more than --fail-below-auprc or frames are missing, else 0."""
    args = _parse(argv)
    before, after = load_evaluation(args.before), load_evaluation(args.after)
    comparison = compare(before, after)
    _print(comparison, args.top)
    writes: list[Callable[[], None]] = []
    if args.json is not None:
        writes.append(partial(save_json, comparison, args.json))
    if args.html is not None:
        writes.append(partial(write_comparison, comparison, before, after, args.html))
    write_each(*writes)
    failures = [] if args.fail_below_auprc is None else auprc_failures(comparison, args.fail_below_auprc)
    for failure in failures:
        print(f"anomseg: {failure}", file=sys.stderr)
    frame_counts = [*stated_frames(before, str(args.before)), *stated_frames(after, str(args.after))]
    return 1 if print_differences(frame_counts) or failures else 0


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg compare`."""
    parser = options.parser(
        "compare",
        "List the changes between two evaluations: every figure, then the frames.",
        {"--frames": "--top"},
    )
    parser.add_argument("before", type=Path, metavar="A.json", help="file of `anomseg evaluate --json`")
    parser.add_argument("after", type=Path, metavar="B.json", help="a later file, or one of another bundle")
    parser.add_argument(
        "--html", type=options.output_file, metavar="FILE", help="also write an HTML page with curves and all frames"
    )
    parser.add_argument("--json", type=options.output_file, metavar="FILE", help="also write the changes as JSON")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="print the N frames that changed most")
    parser.add_argument(
        "--fail-below-auprc",
        type=float,
        metavar="DROP",
        help="exit with 1 if an AuPRC falls by more than this fraction (0.01: one percentage point) or is missing in B",
    )
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    args = argument_parser().parse_args(argv)
    drop = args.fail_below_auprc
    if drop is not None and not 0 <= drop < 1:
        raise ConfigError(
            f"--fail-below-auprc is {drop!r}; give a fraction from 0 to 1, such as 0.01 for one percentage point"
        )
    if args.top < 0:
        raise ConfigError(f"--top is {args.top!r}; give 0 or more")
    return args


def _print(comparison: Comparison, frames: int) -> None:
    console = Console(highlight=False)
    for pair in comparison.pairs:
        console.print(Text(named(pair.key_after), style="bold"))
        for note in pair.notes:
            console.print(Text(f"  {note}"))
        console.print(_figure_table(pair))
        changed_frames = [frame for frame in pair.frames if frame.changed]
        if frames and changed_frames:
            console.print(_frame_table(changed_frames[:frames], pair))
        console.print(Text(f"{len(changed_frames)} of {len(pair.frames)} frames changed"))
        for file, names in (("first", pair.only_before), ("second", pair.only_after)):
            if names:
                console.print(Text(f"frames only in the {file} file: {', '.join(names)}"))
        console.print()
    for file, keys in (("first", comparison.only_before), ("second", comparison.only_after)):
        for key in keys:
            console.print(Text(f"only in the {file} file: {named(key)}"))


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
