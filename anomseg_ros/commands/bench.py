"""`anomseg bench`: latency, memory and size of bundles side by side, and accuracy over latency as a picture."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console

from anomseg_ros.backends import BACKENDS
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.bench.accuracy import METRICS, Wanted, common_dataset, find_accuracy
from anomseg_ros.bench.candidates import EAGER, Candidate, candidates_of, left_out, thread_counts
from anomseg_ros.bench.chart import pareto_chart
from anomseg_ros.bench.measure import CostOf, Extras, Measured, measure, read_frames
from anomseg_ros.bench.results import FORMAT_VERSION, Accuracy, BenchReport, save_report
from anomseg_ros.bench.rounds import Stop
from anomseg_ros.commands import options
from anomseg_ros.commands.bench_output import check_picture, print_report, write_picture
from anomseg_ros.commands.evaluate import ProgressLines
from anomseg_ros.core.bundle import Contract, load_bundle, sha256_of
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import BundleError, ConfigError, closest_first
from anomseg_ros.evaluation.machine import describe_machine, package_versions
from anomseg_ros.evaluation.results import Evaluation, load_evaluation


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the files; returns 0."""
    args = _parser().parse_args(argv)
    threads, warnings = thread_counts(options.several(args.threads))
    for path in args.plot:
        check_picture(path)
    stop = Stop(args.rounds, args.seconds)
    evaluations = [load_evaluation(path) for path in args.accuracy]
    frames = read_frames(args.frames)
    with ExitStack() as stack, ProgressLines() as lines:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="anomseg-")))
        bundles = [find_bundle(name) for name in args.bundles]
        checkpoints = _checkpoints(args.torch_checkpoint, bundles)
        bundles += resized(bundles, checkpoints, args.size, folder)
        candidates = candidates_of(bundles, backends(args.backend), threads, score=args.score, provider=args.provider)
        eager = _eager_candidates(candidates, checkpoints, threads)
        missing = left_out(bundles, backends(args.backend), args.provider)
        everything = [*eager, *candidates]
        accuracy = _accuracies(everything, args, evaluations)
        extras = Extras(not args.no_memory, cost_counter(), accuracy, _own_eager(candidates, eager))
        measured = measure(everything, frames, stop, extras, lines)
    report = report_of(
        measured,
        [*warnings, *missing, *measured.warnings],
        shlex.join(["anomseg", "bench", *(argv or [])]),
        _settings(args),
    )
    if args.json is not None:
        save_report(report, args.json)
    print_report(Console(), report)
    for path in args.plot:
        write_picture(pareto_chart(report, published=not args.no_published), path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(
        "bench", "Measure bundles side by side: latency, frames per second, parameters, multiply-adds, size, memory."
    )
    parser.add_argument("bundles", nargs="+", help="bundle directories, or names of shipped bundles")
    parser.add_argument(
        "--torch-checkpoint",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="also time this checkpoint of the bundle called NAME in torch as it is (needs anomseg_ros[offline])",
    )
    size_help = "also measure these input sizes of bundles with a --torch-checkpoint, exported again"
    parser.add_argument("--size", nargs="+", default=[], type=size_of, metavar="HxW", help=size_help)
    add_measuring_options(parser)
    parser.add_argument("--rounds", type=int, help="how often each candidate runs (default: as --seconds allows)")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to measure, all candidates together")
    parser.add_argument("--no-memory", action="store_true", help="do not start a process per candidate for its memory")
    parser.add_argument("--json", type=Path, help="file for everything measured, and how")
    picture_help = "picture of accuracy over latency; .png needs an installed Chromium"
    parser.add_argument("--plot", type=Path, action="append", default=[], metavar="FILE.svg|.png", help=picture_help)
    accuracy_help = "JSON of `anomseg evaluate --json` on these bundles (default: what bundle.yaml says of its quality)"
    parser.add_argument("--accuracy", type=Path, nargs="+", default=[], metavar="FILE", help=accuracy_help)
    parser.add_argument("--metric", choices=METRICS, help="accuracy to show (default: auprc if known, else miou)")
    parser.add_argument("--dataset", default="", metavar="NAME", help="dataset of that accuracy (default: most known)")
    parser.add_argument("--no-published", action="store_true", help="leave the papers' points out of the picture")
    return parser


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Add what bench and tune share: engines, threads, score and frames."""
    backend_help = f"engines, of {', '.join(sorted(BACKENDS))}"
    parser.add_argument("--backend", nargs="+", default=["onnxruntime"], metavar="BACKEND", help=backend_help)
    parser.add_argument("--provider", default=BackendOptions().provider, help=options.PROVIDER_HELP)
    parser.add_argument(
        "--threads", nargs="+", default=["0"], metavar="N", help="processor threads; 0 = one per core; several: 1,2"
    )
    parser.add_argument("--score", default="", help="score to compute beside the labels (default: the bundle's first)")
    parser.add_argument("--frames", type=Path, metavar="FOLDER", help="camera frames (default: drawn road scenes)")


def size_of(given: str) -> tuple[int, int]:
    """Argument type: HxW in pixels."""
    height, cross, width = given.lower().partition("x")
    if not cross or not height.isdecimal() or not width.isdecimal() or not int(height) or not int(width):
        raise argparse.ArgumentTypeError(f"{given!r} is not a size; expected HEIGHTxWIDTH in pixels, such as 512x1024")
    return int(height), int(width)


def backends(given: Sequence[str]) -> tuple[str, ...]:
    """Return the names of --backend. Raises ConfigError for an unknown one."""
    chosen = options.several(given)
    for name in chosen:
        if name not in BACKENDS:
            raise ConfigError(f"unknown backend {name!r}; known: {', '.join(closest_first(name, BACKENDS))}")
    return chosen


def resized(
    bundles: Sequence[Path], checkpoints: dict[Path, Path], sizes: Sequence[tuple[int, int]], folder: Path
) -> list[Path]:
    """Export every bundle that has a checkpoint at every size it does not have; `checkpoints` gets theirs too."""
    if sizes and not checkpoints:
        raise ConfigError("a bundle has one input size: for --size, give the checkpoint that it was exported from")
    made: list[Path] = []
    for directory, checkpoint in list(checkpoints.items()):
        bundle = load_bundle(directory)
        for height_px, width_px in sizes:
            if (height_px, width_px) == (bundle.contract.input.height_px, bundle.contract.input.width_px):
                continue
            from anomseg_ros.compression.reexport import export_at_size

            output = folder / f"{bundle.contract.name}-{height_px}x{width_px}"
            if not _is_from(output, checkpoint):
                export_at_size(bundle, checkpoint, height_px, width_px, output)
            made.append(output)
            checkpoints[output] = checkpoint
    return made


def _is_from(output: Path, checkpoint: Path) -> bool:
    """Whether an earlier run of the same command has left a whole bundle of this checkpoint."""
    if not checkpoint.is_file() or not output.is_dir():
        return False
    try:
        return load_bundle(output).contract.provenance.source_sha256 == sha256_of(checkpoint)
    except BundleError:
        return False


def cost_counter() -> CostOf | None:
    """Return what counts parameters and multiply-adds; None where the onnx package is not installed."""
    try:
        from anomseg_ros.compression.cost import graph_cost
    except ModuleNotFoundError:
        return None
    return graph_cost


def report_of(measured: Measured, warnings: Sequence[str], command: str, settings: dict[str, object]) -> BenchReport:
    """Return what was measured with everything that is needed to repeat it."""
    return BenchReport(
        format_version=FORMAT_VERSION,
        entries=measured.entries,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        machine=describe_machine(),
        versions=package_versions(),
        settings=settings,
        times_ms=measured.times_ms,
        warnings=tuple(warnings),
    )


def _settings(args: argparse.Namespace) -> dict[str, object]:
    frames = "drawn road scenes" if args.frames is None else args.frames.name
    return {"rounds": args.rounds, "seconds": args.seconds, "frames": frames, "provider": args.provider}


def _checkpoints(given: Sequence[str], bundles: Sequence[Path]) -> dict[Path, Path]:
    """Return bundle directory -> checkpoint of NAME=PATH, NAME as in bundle.yaml or as the bundle was given."""
    own = [load_bundle(directory).contract.name for directory in bundles]
    # A name that two bundles share says nothing; their folders do.
    names = {name: directory for name, directory in zip(own, bundles, strict=True) if own.count(name) == 1}
    names |= {str(directory): directory for directory in bundles}
    found: dict[Path, Path] = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not equals or name not in names:
            raise ConfigError(
                f"--torch-checkpoint {item!r} is not NAME=PATH with the name of a bundle; "
                f"bundles: {', '.join(closest_first(name, names))}"
            )
        if not Path(path).is_file():
            raise ConfigError(f"--torch-checkpoint {item!r}: {path!r} does not exist")
        found[names[name]] = Path(path)
    return found


def _eager_candidates(
    candidates: Sequence[Candidate], checkpoints: dict[Path, Path], threads: Sequence[int]
) -> list[Candidate]:
    by_bundle = {Path(candidate.bundle): candidate for candidate in reversed(candidates)}
    return [
        replace(
            by_bundle[directory], backend=EAGER, threads=number, checkpoint=str(path), provider="cpu", precision="fp32"
        )
        for directory, path in checkpoints.items()
        if directory in by_bundle
        for number in threads
    ]


def _own_eager(candidates: Sequence[Candidate], eager: Sequence[Candidate]) -> dict[str, str]:
    """Return title -> title of the candidate's own float network in torch, by the checkpoint both come from."""
    digests = {one.checkpoint: sha256_of(Path(one.checkpoint)) for one in eager if one.checkpoint is not None}
    own: dict[str, str] = {}
    for candidate in candidates:
        contract = load_bundle(candidate.bundle).contract
        for one in eager:
            same_network = one.bundle == candidate.bundle or _comes_from(contract, digests.get(one.checkpoint or ""))
            size = (candidate.height_px, candidate.width_px, candidate.threads)
            if same_network and size == (one.height_px, one.width_px, one.threads):
                own.setdefault(candidate.title, one.title)
    return own


def _comes_from(contract: Contract, digest: str | None) -> bool:
    return digest is not None and contract.provenance.source_sha256 == digest


def _accuracies(
    candidates: Sequence[Candidate], args: argparse.Namespace, evaluations: Sequence[Evaluation]
) -> dict[str, Accuracy]:
    """Return title -> the figure that the picture shows, of one metric on one dataset, where it is known."""
    contracts = {candidate.title: load_bundle(candidate.bundle).contract for candidate in candidates}
    metric = args.metric
    if metric is None:
        metric = "auprc" if common_dataset(list(contracts.values()), "auprc", evaluations) else "miou"
    dataset = args.dataset or common_dataset(list(contracts.values()), metric, evaluations)
    wanted = Wanted(metric, dataset, args.score)
    found = {}
    for candidate in candidates:
        contract = contracts[candidate.title]
        # Torch runs the float weights: what was measured of an int8 bundle is not theirs.
        if candidate.backend == EAGER and contract.precision != "fp32":
            continue
        if accuracy := find_accuracy(contract, wanted, evaluations):
            found[candidate.title] = accuracy
    return found
