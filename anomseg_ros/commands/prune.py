"""`anomseg prune`: prune a float bundle, optionally fine-tune it, and report cost and savings."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from anomseg_ros.bench.figures import Entry
from anomseg_ros.bench.measure import time_in_turns
from anomseg_ros.commands import options
from anomseg_ros.commands.drift_options import add_guard, guard_of, print_compressed, refusal_shown
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.compression.drift import Tolerance
from anomseg_ros.compression.fine_tune import FineTune
from anomseg_ros.compression.prune import METHODS, SCOPES, UNSTRUCTURED, PruneConfig, estimated_time_ratio
from anomseg_ros.compression.pruned_bundle import ESTIMATE, PRUNED_TOLERANCE, PruneRequest, prune_bundle, savings_of
from anomseg_ros.compression.structured import OF
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import ConfigError

FRAMES_HELP = "camera frames to measure the drift on: folders of images, videos, bags, or datasets as NAME=PATH"
GUARD_DESCRIPTION = (
    "Limits for the loss relative to the parent; if one is exceeded, nothing is written. They are wider than for "
    "quantization, since a pruned and fine-tuned network is another network for the same task. Give --dataset to limit "
    "the loss of AuPRC, FPR95 and mIoU."
)


def main(argv: Sequence[str]) -> int:
    """Prune, fine-tune, measure, and write the bundle if it is close enough to its parent; return 0."""
    args = argument_parser().parse_args(argv)
    check_rounds(args.rounds)
    if args.fine_tune is None and (args.set or args.data):
        raise ConfigError("--set and --data are for fine-tuning; give --fine-tune CONFIG as well")
    request = options.request_of(
        PruneRequest,
        args,
        bundle=load_bundle(find_bundle(args.bundle)),
        config=PruneConfig(args.method, args.fraction, args.of, args.round_to, args.scope),
        fine_tune=None if args.fine_tune is None else FineTune(args.fine_tune, tuple(args.set), args.data),
        guard=guard_of(args, PRUNED_TOLERANCE),
        command=shlex.join(["anomseg", "prune", *argv]),
    )
    with refusal_shown("before", "after"), ProgressLines() as lines:
        bundle = prune_bundle(request, lines, lines.training)
        print_pruned(bundle, request.bundle, request.config, args.rounds, args.threads, lines)
    return 0


def check_rounds(rounds: int) -> None:
    """Raise ConfigError for a negative number of rounds."""
    if rounds < 0:
        raise ConfigError(f"--rounds {rounds}: expected 0 (no timing) or more")


def add_common_options(parser: argparse.ArgumentParser, limits: Tolerance | None = PRUNED_TOLERANCE) -> None:
    """Add the options of both `prune` and `compress`. limits: of the drift guard; None: those of each step."""
    parser.add_argument("bundle", help="float bundle: directory or name of a shipped bundle")
    parser.add_argument("--checkpoint", type=Path, help=options.CHECKPOINT_HELP)
    parser.add_argument("--frames", nargs="+", required=True, metavar="PATH|NAME=PATH", help=FRAMES_HELP)
    parser.add_argument("--output", type=options.output_folder, required=True, help="directory of the new bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument("--data", help="folder of the fine-tuning configuration's dataset (data.path)")
    parser.add_argument("--held-out-frames", type=int, default=16, help="largest number of frames to measure on")
    parser.add_argument("--seed", type=int, default=0, help="seed for the selection of frames")
    parser.add_argument("--rounds", type=int, default=15, help="timing rounds of bundle and parent; 0 = no timing")
    parser.add_argument("--threads", type=int, default=0, help="processor threads for measuring; 0 = one per core")
    add_guard(parser, limits, GUARD_DESCRIPTION)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg prune`."""
    defaults = PruneConfig()
    parser = options.parser(
        "prune",
        "Remove channels of a network, or zero its weights, and optionally fine-tune it. The new bundle is compared "
        "with its parent and written only if it is close enough.",
    )
    method_help = (
        "structured: removes channels of least L2 norm with all coupled channels; unstructured: zeroes single weights "
        "of least L1 norm; masked: zeroes filters of least L2 norm. The latter two save no time"
    )
    parser.add_argument("--method", choices=METHODS, default=defaults.method, help=method_help)
    fraction_help = "fraction to remove, more than 0 and less than 1"
    parser.add_argument("--fraction", type=options.number, default=defaults.fraction, help=fraction_help)
    of_help = "structured: the fraction is a share of each layer's channels, or of all multiply-adds"
    parser.add_argument("--of", choices=OF, default=defaults.of, help=of_help)
    round_help = "structured: widths become multiples of this number, for faster kernels; 1 for the exact fraction"
    parser.add_argument("--round-to", type=int, default=defaults.round_to, help=round_help)
    scope_help = "unstructured: select the smallest weights of all layers together, or of each layer"
    parser.add_argument("--scope", choices=SCOPES, default=defaults.scope, help=scope_help)
    tune_help = "training configuration for fine-tuning: YAML file or name of a shipped one (default: no fine-tuning)"
    parser.add_argument("--fine-tune", metavar="CONFIG", help=tune_help)
    set_help = "change a setting of the fine-tuning, such as run.epochs=10"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=set_help)
    add_common_options(parser)
    return parser


def print_pruned(
    bundle: Bundle, parent: Bundle, config: PruneConfig, rounds: int, threads: int, progress: Progress
) -> None:
    """Print the savings and the cost of pruning.

    Args:
        bundle: the pruned bundle.
        parent: the bundle that it was made from.
        config: settings of the pruning.
        rounds: timing rounds of both bundles; 0: no timing.
        threads: processor threads for timing; 0: one per core.
        progress: called after each round.
    """
    before, after = savings_of(bundle)
    rows = [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("nonzero parameters", f"{before.nonzero_parameters:,}", f"{after.nonzero_parameters:,}"),
        ("multiply-adds", _giga(before.multiply_adds), _giga(after.multiply_adds)),
        (
            "effective multiply-adds (without zeros)",
            _giga(before.effective_multiply_adds),
            _giga(after.effective_multiply_adds),
        ),
    ]
    if rounds:
        rows += _time_rows(time_in_turns(parent, bundle, rounds, threads, progress))
    caption = ""
    if config.method == UNSTRUCTURED:
        share = f"{100 * estimated_time_ratio(before, after):.1f} %"
        rows.append(("time, ESTIMATE as in papers", "100 %", share))
        caption = f"time: {ESTIMATE}; dense kernels save no time"
    print_compressed(bundle, "before", "after", rows, caption)


def _giga(count: int) -> str:
    return f"{count / 1e9:.3f} G"


def _time_rows(entries: tuple[Entry, Entry]) -> list[tuple[str, str, str]]:
    before, after = entries
    ratio = after.speedup[before.title]
    speedup = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    p50_before, p50_after = (f"{entry.latency_ms['p50']:.1f} ms" for entry in entries)
    return [("measured time, p50", p50_before, p50_after), ("times as fast, measured in turns", "1", speedup)]
