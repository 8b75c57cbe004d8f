"""`anomseg evaluate`: bundles on datasets, to a table, JSON and an HTML report."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from anomseg_ros.commands import options
from anomseg_ros.commands.robustness_tables import print_robustness
from anomseg_ros.core.labels import LABEL_SETS
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.datasets import DATASETS
from anomseg_ros.datasets.corruptions import COLLECTIONS, KINDS, SEVERITIES, Corruption, corruptions_of
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.evaluate import Outcome, Request, evaluate
from anomseg_ros.evaluation.machine import describe_machine, package_versions
from anomseg_ros.evaluation.results import FORMAT_VERSION, Evaluation, Result, save_evaluation
from anomseg_ros.evaluation.workers import LOCAL_RAY, Workers
from anomseg_ros.metrics.protocols import PROTOCOLS, protocol


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the table and write the files; returns 0 if everything was measured, else 1."""
    args = _parse(argv)
    console = Console(stderr=True)
    with ExitStack() as stack:
        bundles = [find_bundle(name) for name in args.bundles]
        if args.checkpoint is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="anomseg-")))
            with console.status(f"reading {args.checkpoint.name}"):
                bundles.append(_bundle_of_checkpoint(args, folder))
        with ProgressLines() as lines:
            outcome = evaluate(_request(args, bundles), lines)
    evaluation = evaluation_of(outcome, _command_line("evaluate", argv))
    _write_files(args, evaluation, outcome)
    print_tables(Console(), outcome.results)
    print_robustness(Console(), outcome.robustness)
    for warning in outcome.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    for error in outcome.errors:
        console.print(f"anomseg: error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
    return 1 if outcome.errors else 0


def evaluation_of(outcome: Outcome, command: str) -> Evaluation:
    """Return the outcome with everything that is needed to repeat it."""
    return Evaluation(
        format_version=FORMAT_VERSION,
        results=outcome.results,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        machine=describe_machine(),
        versions=package_versions(),
        settings={**outcome.settings, "errors": list(outcome.errors), "warnings": list(outcome.warnings)},
        robustness=outcome.robustness,
    )


def print_tables(console: Console, results: Sequence[Result]) -> None:
    """Print a table per protocol, like the papers': a row per bundle and score, AuPRC and FPR95 per dataset."""
    for name in dict.fromkeys(result.protocol for result in results):
        own = [result for result in results if result.protocol == name]
        for table in _tables(name, own, console):
            console.print(table, crop=False, no_wrap=True, overflow="ignore")
    timed = {(result.bundle, result.dataset): result for result in results if result.inference_ms and result.network_ms}
    for (bundle, dataset), result in timed.items():
        console.print(f"{bundle} on {dataset}: {_times(result)}", soft_wrap=True, highlight=False)


class ProgressLines:
    """One progress bar per job, made when the job is first heard of."""

    def __init__(self) -> None:
        self._bar: Progress = options.progress_bar()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressLines:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` frames are done."""
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done, total=total)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    args = _parser().parse_args(argv)
    # A bundle that follows an option of several values is taken for one of them.
    args.bundles += [text for text in args.dataset if "=" not in text]
    args.dataset = [text for text in args.dataset if "=" in text]
    args.score = options.several(args.score)
    args.protocol = [protocol(name).name for name in options.several(args.protocol or ["seeds"])]
    args.corruptions = _corruptions(args.corrupt, args.severity)
    return args


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("evaluate", "Measure bundles on datasets: anomaly and semantic figures, and speed.")
    parser.add_argument("bundles", nargs="*", help="bundle directories, or names of shipped bundles")
    dataset_help = f"datasets and their folders; names: {', '.join(DATASETS)}"
    parser.add_argument("--dataset", nargs="+", action="extend", default=[], metavar="NAME=PATH", help=dataset_help)
    score_help = "scores to measure (default: all the bundle has)"
    parser.add_argument("--score", nargs="+", action="extend", default=[], metavar="SCORE", help=score_help)
    protocol_help = f"how figures are defined, see docs/evaluate.md: {', '.join(PROTOCOLS)} (default: seeds)"
    parser.add_argument("--protocol", nargs="+", action="extend", default=[], metavar="PROTOCOL", help=protocol_help)
    options.add_road_region(parser, options.MEASURED_ON_ROAD)
    parser.add_argument("--json", type=Path, help="file for everything measured, and how")
    parser.add_argument("--html", type=Path, help="file for the report, one self-contained page")
    parser.add_argument("--exact", action="store_true", help="no score is rounded, whatever memory that takes")
    parser.add_argument("--allow-partial", action="store_true", help="accept fewer or more frames than published")
    parser.add_argument("--require-miou", action="store_true", help="fail if a bundle's classes do not fit a dataset")
    target_help = "false-positive rate whose threshold in the bundle is tried on each dataset (default: 0.01)"
    parser.add_argument("--target-fpr", type=float, default=0.01, metavar="RATE", help=target_help)
    parser.add_argument("--network-only", action="store_true", help="time the network with nothing beside it, only")
    _add_corruption_options(parser)
    add_worker_options(parser)
    parser.add_argument(
        "--state", type=Path, help="folder that a killed run goes on from (default: JSON name + .state)"
    )
    parser.add_argument("--save-every", type=float, default=15.0, metavar="SECONDS", help="how often that is written")
    checkpoint = parser.add_argument_group("a checkpoint instead of a bundle (needs anomseg_ros[offline])")
    checkpoint.add_argument("--checkpoint", type=Path, help=".pth, .pt, .tar or .safetensors file")
    checkpoint.add_argument("--network", help="the checkpoint's network")
    checkpoint.add_argument("--num-classes", type=int, help="outputs of the network, the void class included")
    checkpoint.add_argument("--void-class", type=int, help="index of the output that means anomaly")
    checkpoint.add_argument("--label-set", default="cityscapes", choices=sorted(LABEL_SETS), help="the known classes")
    checkpoint.add_argument("--height", type=int, default=512, help="input height, pixels")
    checkpoint.add_argument("--width", type=int, default=1024, help="input width, pixels")
    checkpoint.add_argument("--temperature", type=float, default=1.0, help="T of softmax(z / T)")
    options.add_backend_options(parser)
    return parser


def _add_corruption_options(parser: argparse.ArgumentParser) -> None:
    help_ = (
        f"measure again under common corruptions: {', '.join(KINDS)}, or a group: {', '.join(COLLECTIONS)} (needs "
        "anomseg_ros[corruptions], see docs/evaluate.md)"
    )
    parser.add_argument("--corrupt", action="append", default=[], metavar="NAME[,NAME…]", help=help_)
    severity_help = "severities of corruptions, for example 3, 1,3,5 or 2-4 (default: 1-5)"
    parser.add_argument("--severity", metavar="N", help=severity_help)


def _corruptions(given: Sequence[str], severities: str | None) -> tuple[Corruption, ...]:
    names = options.several(given)
    if not names and severities is not None:
        raise ConfigError(f"--severity {severities} is of corruptions; give --corrupt NAME, or all, with it")
    if not names and given:
        raise ConfigError(f"--corrupt {given[0]!r} names nothing; give a corruption, a group or all")
    return corruptions_of(names, SEVERITIES if severities is None else _severities(severities))


def _severities(text: str) -> list[int]:
    numbers: list[int] = []
    for part in options.names(text) or ("",):
        low, _, high = part.partition("-")
        bounds = [int(bound) for bound in (low, high or low) if bound in map(str, SEVERITIES)]
        if len(bounds) < 2 or bounds[0] > bounds[1]:
            raise ConfigError(f"--severity {text!r} is not a list of numbers from 1 to 5 such as 3, 1,3,5 or 2-4")
        numbers += range(bounds[0], bounds[1] + 1)
    return numbers


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Add --workers and --ray."""
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share the frames; the result is the same"
    )
    ray_help = f"spread the frames over the Ray cluster at this address, or {LOCAL_RAY!r} (needs anomseg_ros[cluster])"
    parser.add_argument("--ray", metavar="ADDRESS", help=ray_help)


def _request(args: argparse.Namespace, bundles: list[Path]) -> Request:
    state = args.state
    if state is None and args.json is not None:
        state = args.json.with_suffix(".state")
    return Request(
        bundles=tuple(bundles),
        datasets=tuple(args.dataset),
        scores=args.score,
        protocols=options.with_road(args.protocol, args.road_region),
        exact=args.exact,
        allow_partial=args.allow_partial,
        network_only=args.network_only,
        require_miou=args.require_miou,
        target_fpr=args.target_fpr,
        pictures=args.html is not None,
        corruptions=args.corruptions,
        backend=args.backend,
        options=options.backend_options(args),
        workers=Workers(args.workers, args.ray),
        state=state,
        save_every_s=args.save_every,
    )


def _bundle_of_checkpoint(args: argparse.Namespace, folder: Path) -> Path:
    if args.network is None or args.num_classes is None:
        raise ConfigError("--checkpoint needs --network and --num-classes (and --void-class for a void classifier)")
    from anomseg_ros.export import ExportConfig, export_checkpoint

    config = ExportConfig(
        name=args.checkpoint.stem,
        num_classes=args.num_classes,
        void_class=args.void_class,
        label_set=args.label_set,
        height_px=args.height,
        width_px=args.width,
        scores=args.score,
        temperature=args.temperature,
    )
    bundle, _ = export_checkpoint(args.network, args.checkpoint, config, folder / "bundle")
    return bundle.directory


def _write_files(args: argparse.Namespace, evaluation: Evaluation, outcome: Outcome) -> None:
    if args.json is not None:
        save_evaluation(evaluation, args.json)
    if args.html is not None and outcome.results:
        from anomseg_ros.evaluation.report import write_report

        write_report(evaluation, args.html, outcome.pictures)


def _command_line(command: str, argv: Sequence[str] | None) -> str:
    import sys

    words = sys.argv[1:] if argv is None else list(argv)
    return shlex.join(["anomseg", command, *words])


def _tables(protocol: str, results: Sequence[Result], console: Console) -> list[Table]:
    """Return as few tables as the console's width allows, each of whole datasets."""
    groups: list[list[str]] = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        wider = [*groups[-1], dataset] if groups else [dataset]
        if groups and options.full_width(_table(protocol, _of(results, wider)), console) <= console.width:
            groups[-1] = wider
        else:
            groups.append([dataset])
    tables = [_table(protocol, _of(results, group)) for group in groups]
    for table in tables:
        table.width = options.full_width(table, console)  # a single dataset that is too wide is not squeezed
    return tables


def _of(results: Sequence[Result], datasets: Sequence[str]) -> list[Result]:
    return [result for result in results if result.dataset in datasets]


def _table(protocol: str, results: Sequence[Result]) -> Table:
    datasets = list(dict.fromkeys(result.dataset for result in results))
    table = Table(title=f"protocol {protocol}: AuPRC up, FPR95 down, percent", title_justify="left")
    for heading in ("bundle", "network", "score"):
        table.add_column(heading)
    for dataset in datasets:
        for heading in _columns(dataset, results):
            table.add_column(f"{dataset}\n{heading}", justify="right")
    for bundle, score in dict.fromkeys((result.bundle, result.score) for result in results):
        rows = {r.dataset: r for r in results if (r.bundle, r.score) == (bundle, score)}
        network = next(iter(rows.values())).network or ""
        cells = [
            _percent(rows.get(dataset), attribute)
            for dataset in datasets
            for attribute in _columns(dataset, results).values()
        ]
        table.add_row(bundle, network, score, *cells)
    return table


def _columns(dataset: str, results: Sequence[Result]) -> dict[str, str]:
    """Return heading -> attribute of what some result of a dataset has."""
    own = [result for result in results if result.dataset == dataset]
    columns = {"AuPRC": "auprc", "FPR95": "fpr95"} if any(result.auprc is not None for result in own) else {}
    if any(result.miou is not None for result in own):
        columns["mIoU"] = "miou"
    if any(result.ece is not None for result in own):
        columns["ECE"] = "ece"
    if any(result.components is not None for result in own):
        columns |= {"sIoU": "components.siou", "PPV": "components.ppv", "F1": "components.f1"}
    if any(result.at_threshold is not None for result in own):
        columns["FPR at threshold"] = "at_threshold.fpr"
    return columns or {"AuPRC": "auprc"}


def _percent(result: Result | None, attribute: str) -> str:
    value: object = result
    for name in attribute.split("."):
        value = getattr(value, name, None)
    return f"{100 * value:.2f}" if isinstance(value, float) else "-"


def _times(result: Result) -> str:
    inference, network = result.inference_ms or {}, result.network_ms or {}
    parts = [
        f"{name} p50 {times['p50']:.1f} p95 {times['p95']:.1f} p99 {times['p99']:.1f} ms"
        for name, times in (("inference", inference), ("network", network))
        if times
    ]
    whole = "" if result.wall_ms is None else f"; {result.wall_ms:.1f} ms per frame with loading and measuring"
    return f"{', '.join(parts)}{whole}; {result.backend}"
