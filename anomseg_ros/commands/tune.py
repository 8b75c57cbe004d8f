"""`anomseg tune`: measure candidates on this machine and write the best one for a latency or an accuracy."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from anomseg_ros.backends import BACKENDS
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.bench.candidates import core_count
from anomseg_ros.bench.figures import Entry
from anomseg_ros.bench.power import PowerRequest
from anomseg_ros.commands import options
from anomseg_ros.commands.bench_output import print_report
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import ConfigError
from anomseg_ros.tuning.choice import TuneGoal
from anomseg_ros.tuning.request import TuneRequest
from anomseg_ros.tuning.tune import tune


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, choose, and write the bundle with its evidence; return 0. Raises ConfigError if no candidate fits."""
    request = _request(argument_parser().parse_args(argv), shlex.join(["anomseg", "tune", *(argv or [])]))
    with ProgressLines() as lines:
        outcome = tune(request, lines)
    print_report(Console(), outcome.report)
    if outcome.bundle is None or outcome.chosen is None:
        raise ConfigError(f"{outcome.nearest}. Bundles and measurements are in {request.state_folder}")
    _print_choice(outcome.bundle, outcome.chosen, request.goal)
    return 0


def _request(args: argparse.Namespace, command: str) -> TuneRequest:
    return options.request_of(
        TuneRequest,
        args,
        bundle=find_bundle(args.bundle),
        goal=TuneGoal(args.max_latency_ms, args.min_auprc, args.percentile),
        candidates=tuple(find_bundle(name) for name in args.candidates),
        sizes=tuple(args.size),
        datasets=tuple(args.dataset),
        backends=None if args.backend is None else options.split_names(args.backend),
        threads=options.thread_counts(args.threads),
        memory=not args.no_memory,
        power=PowerRequest(args.power_seconds),
        command=command,
    )


def _print_choice(bundle: Bundle, choice: Entry, goal: TuneGoal) -> None:
    """Print the chosen candidate, its directory, and the settings to run it with."""
    assert choice.accuracy is not None
    threads = "all threads (0)" if choice.threads == 0 else f"{choice.threads} thread(s)"
    Console().print(
        f"{goal.words}: {choice.title}, {goal.latency} {choice.latency_ms[goal.latency]:.1f} ms, "
        f"{choice.accuracy.metric} {100 * choice.accuracy.value:.2f} %; written to {bundle.directory}; "
        f"run it on {choice.backend} with {threads}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg tune`."""
    parser = options.parser(
        "tune",
        "Measure candidates on this machine (backends, threads, int8, pruned networks, input sizes, other bundles), "
        "and write the best bundle with the evidence.",
    )
    parser.add_argument("bundle", help="bundle directory or name of a shipped bundle; it is not changed")
    goal = parser.add_argument_group("goal, exactly one of --max-latency-ms and --min-auprc")
    latency_help = "choose the most accurate candidate with at most this latency"
    goal.add_argument("--max-latency-ms", type=options.number, metavar="N", help=latency_help)
    auprc_help = "choose the fastest candidate with at least this AuPRC, 0 to 1"
    goal.add_argument("--min-auprc", type=options.number, metavar="X", help=auprc_help)
    goal.add_argument("--percentile", type=int, default=95, help="percentile of the latency: 50, 95 or 99")
    parser.add_argument("--candidates", nargs="+", default=[], metavar="BUNDLE", help="other bundles: int8, pruned, …")
    _add_making_options(parser)
    dataset_help = "datasets for accuracy (default: label agreement with BUNDLE on the frames)"
    parser.add_argument("--dataset", nargs="+", action="extend", default=[], metavar="NAME=PATH", help=dataset_help)
    metric_help = "accuracy, the mean over the datasets (default: auprc if they have anomalies, otherwise miou)"
    parser.add_argument("--metric", choices=("auprc", "miou"), help=metric_help)
    parser.add_argument("--allow-partial", action="store_true", help=options.ALLOW_PARTIAL_HELP)
    _add_measuring_options(parser)
    parser.add_argument("--output", required=True, type=options.output_folder, help="directory of the new bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    state_help = (
        "folder from which a killed run continues; tune deletes its files there when the bundle is written (default: "
        "OUTPUT.tune)"
    )
    parser.add_argument("--state", type=options.output_folder, metavar="DIR", help=state_help)
    return parser


def _add_making_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for candidates that are made from BUNDLE."""
    group = parser.add_argument_group(
        "candidates to make",
        "They are stored in the state folder until the bundle is written. Those that cannot be made are left out and "
        "listed.",
    )
    checkpoint_help = "file that BUNDLE was exported from, for other sizes and for pruning"
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help=checkpoint_help)
    size_help = "BUNDLE at these input sizes (needs --checkpoint)"
    group.add_argument("--size", nargs="+", default=[], type=options.input_size, metavar="HxW", help=size_help)
    prune_help = (
        "BUNDLE, at each size, without this share of its channels, as with `anomseg prune` (needs --frames, and "
        "--checkpoint unless the bundle contains it)"
    )
    group.add_argument("--prune", nargs="+", default=[], type=options.number, metavar="FRACTION", help=prune_help)
    tune_help = "training configuration for fine-tuning pruned networks: YAML file or name of a shipped one"
    group.add_argument("--fine-tune", metavar="CONFIG", help=tune_help)
    group.add_argument("--data", metavar="DIR", help="folder of the fine-tuning configuration's dataset (data.path)")
    quantize_help = (
        "also quantize every float bundle to int8 on --frames, as with `anomseg quantize` (default: if there are "
        "enough frames and anomseg_ros[offline] is installed)"
    )
    group.add_argument("--quantize", action=argparse.BooleanOptionalAction, help=quantize_help)
    accept_help = "also measure bundles that `anomseg prune` and `anomseg quantize` would refuse for their loss"
    group.add_argument("--accept-drift", action="store_true", help=accept_help)


def _add_measuring_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measurement")
    backend_help = f"engines, from {', '.join(sorted(BACKENDS))} (default: all that are installed and run a bundle)"
    group.add_argument("--backend", nargs="+", metavar="BACKEND", help=backend_help)
    group.add_argument("--provider", default=BackendOptions().provider, help=options.PROVIDER_HELP)
    group.add_argument("--build-engine", action="store_true", help=options.BUILD_ENGINE_HELP)
    threads_help = "numbers of processor threads, such as 1,2; 0 = one per core (default: 1 and one per core)"
    threads = ["1", "0"] if core_count() > 1 else ["1"]
    group.add_argument("--threads", nargs="+", default=threads, metavar="N", help=threads_help)
    group.add_argument("--score", default="", help=options.TIMED_SCORE_HELP)
    frames_help = "camera frames for measuring, quantizing and pruning (default: drawn road scenes for measuring)"
    group.add_argument("--frames", type=Path, metavar="FOLDER", help=frames_help)
    group.add_argument("--rounds", type=int, default=30, help="runs of each candidate")
    group.add_argument("--no-memory", action="store_true", help=options.NO_MEMORY_HELP)
    options.add_power_seconds(group)
