"""`anomseg calibrate threshold`: write the thresholds from which the node's `target_fpr` selects one."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from anomseg_ros.commands import calibrate_drive, options
from anomseg_ros.commands.calibrate_drive import USUAL_RATE, percent
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.bundle import Bundle, Contract, change_bundle, load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.check import check
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.evaluation.calibrate import ThresholdChange, measure_scores, threshold_changes, with_thresholds


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg calibrate threshold`."""
    parser = options.parser(
        "calibrate threshold",
        "Write thresholds for given false-positive rates on known pixels into a bundle. Its other thresholds do not "
        "change.",
        {"--topic": "--image-topic", "--rate": "--fps"},
    )
    parser.add_argument("bundle", help="bundle directory or name of a shipped bundle")
    frames = parser.add_mutually_exclusive_group(required=True)
    frames.add_argument("--dataset", nargs="+", action="extend", metavar="NAME=PATH", help="labelled frames")
    frames.add_argument("--frames", nargs="+", action="extend", type=Path, metavar="PATH", help=calibrate_drive.HELP)
    parser.add_argument("--score", type=options.names, default=(), help="scores, comma separated (default: all)")
    target_help = "rates, such as 0.01,0.05 (default: 0.01; with --frames those of the bundle as well)"
    parser.add_argument("--target-fpr", type=rates, metavar="RATES", help=f"false-positive {target_help}")
    options.add_changed_bundle(parser)
    parser.add_argument("--allow-partial", action="store_true", help=options.ALLOW_PARTIAL_HELP)
    calibrate_drive.add_options(parser)
    options.add_backend_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the old and new values, and write the bundle; return 0."""
    args = argument_parser().parse_args(argv)
    bundle = load_bundle(find_bundle(args.bundle))
    options.check_changed_bundle(args, bundle)
    scores = tuple(map(bundle.check_score, args.score)) or bundle.contract.score_names
    if args.frames:
        change = calibrate_drive.calibrate(args, bundle, scores)
    else:
        calibrate_drive.refuse_options(args)
        change = _on_datasets(args, bundle, scores)
    changed = change_bundle(bundle, change, args.output, overwrite=args.overwrite)
    _print_bundle(changed, scores, args, sys.argv[3:] if argv is None else argv)
    return 0


def _on_datasets(args: argparse.Namespace, bundle: Bundle, scores: Sequence[str]) -> Callable[[Contract], Contract]:
    """Measure labelled frames and print the thresholds; return what writes them into a contract."""
    datasets = [open_named(text) for text in args.dataset]
    with ProgressLines() as lines:
        for dataset in datasets:
            check(dataset).require(args.allow_partial)
        curves = measure_scores(bundle, datasets, scores, args.backend, options.backend_options(args), lines)
    changes = threshold_changes(bundle, curves, args.target_fpr or (USUAL_RATE,))
    _print(changes, bundle)
    return partial(with_thresholds, changes=changes, calibrated_on=_calibrated_on(datasets))


def rates(text: str) -> tuple[float, ...]:
    """Argument type: comma-separated rates above 0 and below 1."""
    try:
        values = tuple(dict.fromkeys(float(part) for part in options.names(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.01,0.05") from error
    if not values or not all(0 < value < 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: expected rates above 0 and below 1, such as 0.01,0.05")
    return values


def _calibrated_on(datasets: Sequence[Dataset]) -> str:
    descriptions = (f"{' '.join(filter(None, (one.name, one.split)))} ({len(one)} frames)" for one in datasets)
    return ", ".join(descriptions)


def _print(changes: Sequence[ThresholdChange], bundle: Bundle) -> None:
    table = Table(title=f"{bundle.contract.name}: score > threshold is anomalous", title_justify="left")
    for heading in ("score", "target FPR", "before", "its FPR", "now", "its FPR", "anomalous pixels found"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for change in changes:
        before = "none" if change.before is None else f"{change.before:.6g} ({change.before_source})"
        table.add_row(
            change.score,
            f"{change.target_fpr:g}",
            before,
            percent(change.fpr_before),
            f"{change.threshold:.6g}",
            percent(change.achieved_fpr),
            percent(change.detected),
        )
    options.print_whole(table)


def _print_bundle(bundle: Bundle, scores: Sequence[str], args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Print where the bundle is, and which scores have inconsistent thresholds, with the command that mends them."""
    Console().print(f"written to {bundle.directory}", soft_wrap=True, highlight=False)
    tables = {score: bundle.contract.thresholds[score] for score in scores}
    mixed = [score for score, table in tables.items() if not table.falls]
    if not mixed:
        return
    rates = sorted({rate for score in mixed for rate in tables[score].by_target_fpr})
    again = ["--overwrite"] if args.output is not None and not args.overwrite else []
    words = [*_without_option(argv, "--target-fpr"), "--target-fpr", ",".join(f"{rate:g}" for rate in rates), *again]
    Console(stderr=True).print(
        f"warning: the thresholds of {' and '.join(mixed)} come from different frames and do not fall as the rate "
        f"rises; calibrate all of them on the same frames: {shlex.join(['anomseg', 'calibrate', 'threshold', *words])}",
        style="yellow",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _without_option(argv: Sequence[str], name: str) -> list[str]:
    """Return the words of a command line without an option that has one value."""
    words, is_value = [], False
    for word in argv:
        if not is_value and word != name and not word.startswith(f"{name}="):
            words.append(word)
        is_value = word == name
    return words
