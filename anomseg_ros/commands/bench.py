"""`anomseg bench`: compare latency, memory and size of bundles, and draw accuracy over latency."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from anomseg_ros.backends import BACKENDS
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.bench.accuracy import METRICS
from anomseg_ros.bench.chart import pareto_chart
from anomseg_ros.bench.figures import save_report
from anomseg_ros.bench.picture_files import check_picture, write_picture
from anomseg_ros.bench.power import PowerRequest
from anomseg_ros.bench.rounds import Stop
from anomseg_ros.commands import options
from anomseg_ros.commands.bench_output import print_report
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.commands.result_files import write_each
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import ConfigError, closest_first
from anomseg_ros.evaluation.results import load_evaluation
from anomseg_ros.tuning.bench import BenchRequest, bench


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the files; return 0."""
    args = argument_parser().parse_args(argv)
    for path in args.plot:
        check_picture(path)
    bundles = tuple(find_bundle(name) for name in args.bundles)
    request = options.request_of(
        BenchRequest,
        args,
        bundles=bundles,
        checkpoints=_checkpoints(args.torch_checkpoint, bundles),
        sizes=tuple(args.size),
        backends=options.split_names(args.backend),
        threads=options.thread_counts(args.threads),
        stop=Stop(args.rounds, args.seconds),
        memory=not args.no_memory,
        power=PowerRequest(args.power_seconds),
        evaluations=tuple(load_evaluation(path) for path in args.accuracy),
        command=shlex.join(["anomseg", "bench", *(argv or [])]),
    )
    with ProgressLines() as lines:
        report = bench(request, lines)
    print_report(Console(), report)
    writes: list[Callable[[], None]] = [] if args.json is None else [partial(save_report, report, args.json)]
    if args.plot:
        chart = pareto_chart(report, published=args.published)
        writes += [partial(write_picture, chart, path) for path in args.plot]
    write_each(*writes)
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg bench`."""
    parser = options.parser(
        "bench", "Compare bundles: latency, frames per second, parameters, multiply-adds, file size and memory."
    )
    parser.add_argument("bundles", nargs="+", help="bundle directories, or names of shipped bundles")
    parser.add_argument(
        "--torch-checkpoint",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="also time the checkpoint of bundle NAME in torch, without export (needs anomseg_ros[offline])",
    )
    size_help = "also measure bundles with a --torch-checkpoint at these input sizes; they are exported again"
    parser.add_argument("--size", nargs="+", default=[], type=options.input_size, metavar="HxW", help=size_help)
    _add_measuring_options(parser)
    parser.add_argument("--rounds", type=int, help="runs of each candidate (default: limited by --seconds)")
    parser.add_argument(
        "--seconds", type=options.number, default=30.0, help="measuring time in seconds for all candidates together"
    )
    parser.add_argument("--no-memory", action="store_true", help=options.NO_MEMORY_HELP)
    options.add_power_seconds(parser)
    parser.add_argument("--json", type=options.output_file, help=options.JSON_HELP)
    plot_help = "picture of accuracy over latency; .png needs an installed Chromium"
    parser.add_argument(
        "--plot", type=options.output_file, action="append", default=[], metavar="FILE.svg|.png", help=plot_help
    )
    accuracy_help = "JSON files of `anomseg evaluate --json` for these bundles (default: quality in bundle.yaml)"
    parser.add_argument("--accuracy", type=Path, nargs="+", default=[], metavar="FILE", help=accuracy_help)
    metric_help = "accuracy to show (default: auprc if available, otherwise miou)"
    parser.add_argument("--metric", choices=METRICS, help=metric_help)
    dataset_help = "dataset of the accuracy (default: the one that most bundles have)"
    parser.add_argument("--dataset", default="", metavar="NAME", help=dataset_help)
    published_help = "also draw the papers' points, which come from other machines"
    parser.add_argument("--published", action="store_true", help=published_help)
    parser.add_argument(
        "--no-published", action="store_false", dest="published", help=argparse.SUPPRESS
    )  # the old name
    return parser


def _add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run: engines, threads, score and frames."""
    backend_help = f"engines, from {', '.join(sorted(BACKENDS))}"
    parser.add_argument("--backend", nargs="+", default=["onnxruntime"], metavar="BACKEND", help=backend_help)
    parser.add_argument("--provider", default=BackendOptions().provider, help=options.PROVIDER_HELP)
    parser.add_argument("--build-engine", action="store_true", help=options.BUILD_ENGINE_HELP)
    threads_help = "numbers of processor threads, such as 1,2; 0 = one per core"
    parser.add_argument("--threads", nargs="+", default=["0"], metavar="N", help=threads_help)
    parser.add_argument("--score", default="", help=options.TIMED_SCORE_HELP)
    parser.add_argument("--frames", type=Path, metavar="FOLDER", help="camera frames (default: drawn road scenes)")


def _checkpoints(assignments: Sequence[str], bundles: Sequence[Path]) -> dict[Path, Path]:
    """Return bundle directory -> checkpoint, from texts NAME=PATH. NAME: name in bundle.yaml or the bundle's path."""
    bundle_names = [load_bundle(directory).contract.name for directory in bundles]
    # A name that two bundles share is ambiguous; their paths are not.
    by_name = {
        name: directory for name, directory in zip(bundle_names, bundles, strict=True) if bundle_names.count(name) == 1
    }
    by_name |= {str(directory): directory for directory in bundles}
    checkpoints: dict[Path, Path] = {}
    for text in assignments:
        name, equals, path = text.partition("=")
        if not equals or name not in by_name:
            raise ConfigError(
                f"--torch-checkpoint {text!r} is not NAME=PATH with the name of a bundle; "
                f"bundles: {', '.join(closest_first(name, by_name))}"
            )
        if not Path(path).is_file():
            raise ConfigError(f"--torch-checkpoint {text!r}: {path!r} does not exist")
        checkpoints[by_name[name]] = Path(path)
    return checkpoints
