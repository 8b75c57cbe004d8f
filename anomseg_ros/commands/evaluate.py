"""`anomseg evaluate`: measure bundles on datasets; print tables and write JSON and an HTML report."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from anomseg_ros.commands import options
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.commands.result_files import write_each
from anomseg_ros.commands.robustness_tables import print_robustness
from anomseg_ros.core.bundle import CONTRACT_FILE
from anomseg_ros.core.class_table import LABEL_SET_HELP, find_label_set
from anomseg_ros.core.resources import find_bundle, shipped_bundles
from anomseg_ros.datasets import DATASETS
from anomseg_ros.datasets.corruptions import COLLECTIONS, KINDS, SEVERITIES, Corruption, corruptions_of
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.evaluate import Outcome, Request, evaluate
from anomseg_ros.evaluation.machine import describe_machine, package_versions
from anomseg_ros.evaluation.report_tables import is_unlabelled
from anomseg_ros.evaluation.results import FORMAT_VERSION, Evaluation, Result, save_evaluation
from anomseg_ros.evaluation.workers import LOCAL_RAY, Workers
from anomseg_ros.metrics.protocols import PROTOCOLS, protocol


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the tables and write the files; return 0 if everything was measured, else 1."""
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
    print_tables(Console(), outcome.results)
    print_robustness(Console(), outcome.robustness)
    print_remarks(console, outcome)
    write_files(args.json, args.html, outcome, command_line("evaluate", argv))
    return 1 if outcome.errors else 0


def print_remarks(console: Console, outcome: Outcome) -> None:
    """Print the warnings and errors."""
    for warning in outcome.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    for error in outcome.errors:
        console.print(f"anomseg: error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)


def evaluation_of(outcome: Outcome, command: str) -> Evaluation:
    """Return the outcome with the command, machine, versions and settings that are needed to repeat it."""
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
    """Print a table per protocol as in the papers: a row per bundle and score, AuPRC and FPR95 per dataset."""
    for name in dict.fromkeys(result.protocol for result in results):
        protocol_results = [result for result in results if result.protocol == name and not is_unlabelled(result)]
        for table in _tables(name, protocol_results, console):
            console.print(table, crop=False, no_wrap=True, overflow="ignore")
    timed = {(result.bundle, result.dataset): result for result in results if result.inference_ms and result.network_ms}
    for (bundle, dataset), result in timed.items():
        console.print(f"{bundle} on {dataset}: {_times(result)}", soft_wrap=True, highlight=False)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    args = argument_parser().parse_args(argv)
    # argparse takes bundles after --dataset for its values.
    args.bundles += [_bundle(text) for text in args.dataset if "=" not in text]
    args.dataset = [text for text in args.dataset if "=" in text]
    args.score = options.split_names(args.score)
    args.protocol = [protocol(name).name for name in options.split_names(args.protocol or ["seeds"])]
    args.corruptions = _corruptions(args.corrupt, args.severity)
    return args


def _bundle(text: str) -> str:
    """Return a bundle that was given after --dataset. Raises ConfigError for what is no bundle."""
    if text not in shipped_bundles() and not (Path(text) / CONTRACT_FILE).is_file():
        example = text if text in DATASETS else "road_anomaly_21"
        raise ConfigError(
            f"--dataset {text!r} is neither NAME=PATH nor a bundle; give the dataset's name and its folder, such as "
            f"--dataset {example}=FOLDER"
        )
    return text


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg evaluate`."""
    parser = options.parser("evaluate", "Measure bundles on datasets: anomaly and semantic figures, and speed.")
    parser.add_argument("bundles", nargs="*", help="bundle directories, or names of shipped bundles")
    dataset_help = f"datasets and their folders; names: {', '.join(DATASETS)}"
    parser.add_argument("--dataset", nargs="+", action="extend", default=[], metavar="NAME=PATH", help=dataset_help)
    score_help = "scores to measure (default: all scores of the bundle)"
    parser.add_argument("--score", nargs="+", action="extend", default=[], metavar="SCORE", help=score_help)
    protocol_help = f"definitions of the figures, see docs/evaluate.md: {', '.join(PROTOCOLS)} (default: seeds)"
    parser.add_argument("--protocol", nargs="+", action="extend", default=[], metavar="PROTOCOL", help=protocol_help)
    options.add_road_region(parser, options.ROAD_PROTOCOLS_HELP)
    parser.add_argument("--json", type=options.output_file, help=options.JSON_HELP)
    parser.add_argument("--html", type=options.output_file, help=options.HTML_HELP)
    parser.add_argument("--exact", action="store_true", help=options.EXACT_HELP)
    parser.add_argument("--allow-partial", action="store_true", help=options.ALLOW_PARTIAL_HELP)
    parser.add_argument("--require-miou", action="store_true", help="fail if a bundle's classes do not fit a dataset")
    target_help = "false-positive rate whose threshold in the bundle is applied to each dataset (default: 0.01)"
    parser.add_argument("--target-fpr", type=options.fraction, default=0.01, metavar="RATE", help=target_help)
    network_only_help = "only time the network, without other work at the same time"
    parser.add_argument("--network-only", action="store_true", help=network_only_help)
    _add_corruption_options(parser)
    add_worker_options(parser)
    state_help = "folder from which a killed run continues (default: name of the JSON with the suffix .state)"
    parser.add_argument("--state", type=options.output_folder, help=state_help)
    save_help = "seconds between saves of the state"
    parser.add_argument("--save-every", type=options.number, default=15.0, metavar="SECONDS", help=save_help)
    _add_checkpoint_options(parser)
    options.add_backend_options(parser)
    return parser


def _add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a checkpoint instead of a bundle (needs anomseg_ros[offline])")
    group.add_argument("--checkpoint", type=Path, help=options.CHECKPOINT_FILE_HELP)
    group.add_argument("--network", help="network of the checkpoint")
    group.add_argument("--num-classes", type=int, help=options.NUM_CLASSES_HELP)
    group.add_argument("--void-class", type=int, help=options.VOID_CLASS_HELP)
    group.add_argument("--label-set", default="cityscapes", help=LABEL_SET_HELP)
    options.add_input_size(group, (512, 1024))
    group.add_argument("--temperature", type=options.number, default=1.0, help="T of softmax(z / T)")


def _add_corruption_options(parser: argparse.ArgumentParser) -> None:
    corrupt_help = (
        f"also measure under common corruptions: {', '.join(KINDS)}, or a group: {', '.join(COLLECTIONS)} (needs "
        "anomseg_ros[corruptions], see docs/evaluate.md)"
    )
    parser.add_argument("--corrupt", action="append", default=[], metavar="NAME[,NAME…]", help=corrupt_help)
    severity_help = "severities of corruptions, for example 3, 1,3,5 or 2-4 (default: 1-5)"
    parser.add_argument("--severity", metavar="N", help=severity_help)


def _corruptions(texts: Sequence[str], severities: str | None) -> tuple[Corruption, ...]:
    names = options.split_names(texts)
    if not names and severities is not None:
        raise ConfigError(f"--severity {severities} has no effect without --corrupt; give --corrupt NAME or all")
    if not names and texts:
        raise ConfigError(f"--corrupt {texts[0]!r} has no names; give a corruption, a group or all")
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


def add_worker_options(parser: argparse.ArgumentParser, shared: str = "frames") -> None:
    """Add --workers and --ray. shared: the units of work that are distributed."""
    workers_help = f"number of processes that share the {shared}; does not change the result"
    parser.add_argument("--workers", type=int, default=1, help=workers_help)
    ray_help = (
        f"distribute the {shared} over the Ray cluster at this address, or over a {LOCAL_RAY!r} one (needs "
        "anomseg_ros[cluster])"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help=ray_help)


def _request(args: argparse.Namespace, bundles: list[Path]) -> Request:
    state = args.state
    if state is None and args.json is not None and (args.json.is_file() or not args.json.exists()):
        state = args.json.with_suffix(".state")
    return Request(
        bundles=tuple(bundles),
        datasets=tuple(args.dataset),
        scores=args.score,
        protocols=options.with_road_protocols(args.protocol, args.road_region),
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

    label_set, known = find_label_set(args.label_set)
    config = ExportConfig(
        name=args.checkpoint.stem,
        num_classes=args.num_classes,
        void_class=args.void_class,
        label_set=label_set,
        known_classes=known,
        height_px=args.size[0],
        width_px=args.size[1],
        scores=args.score,
        temperature=args.temperature,
    )
    bundle, _ = export_checkpoint(args.network, args.checkpoint, config, folder / "bundle")
    return bundle.directory


def write_files(json: Path | None, html: Path | None, outcome: Outcome, command: str) -> None:
    """Write the result files. Raises OutputError.

    Args:
        json: JSON file; None: no file.
        html: HTML report; None: no file.
        outcome: the results.
        command: the command line as typed.
    """
    if json is None and html is None:
        return
    evaluation = evaluation_of(outcome, command)
    writes: list[Callable[[], None]] = []
    if json is not None:
        writes.append(partial(save_evaluation, evaluation, json))
    if html is not None and outcome.results:
        from anomseg_ros.evaluation.report import write_report

        writes.append(partial(write_report, evaluation, html, outcome.pictures))
    write_each(*writes)


def command_line(command: str, argv: Sequence[str] | None) -> str:
    """Return a command line as typed. argv: arguments of the command; None: those of this process."""
    words = command.split()
    return shlex.join(["anomseg", *words, *(sys.argv[1 + len(words) :] if argv is None else argv)])


def _tables(protocol: str, results: Sequence[Result], console: Console) -> list[Table]:
    """Return as few tables as fit the console's width; all columns of a dataset are in the same table."""
    groups: list[list[str]] = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        extended = [*groups[-1], dataset] if groups else [dataset]
        table = _table(protocol, _results_on(results, extended))
        if groups and options.full_width(table, console) <= console.width:
            groups[-1] = extended
        else:
            groups.append([dataset])
    tables = [_table(protocol, _results_on(results, group)) for group in groups]
    for table in tables:
        table.width = options.full_width(table, console)  # otherwise rich would cut a dataset that is too wide
    return tables


def _results_on(results: Sequence[Result], datasets: Sequence[str]) -> list[Result]:
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
    """Return heading -> attribute for the figures that at least one result of a dataset has."""
    results = _results_on(results, [dataset])
    columns = {"AuPRC": "auprc", "FPR95": "fpr95"} if any(result.auprc is not None for result in results) else {}
    if any(result.miou is not None for result in results):
        columns["mIoU"] = "miou"
    if any(result.ece is not None for result in results):
        columns["ECE"] = "ece"
    if any(result.components is not None for result in results):
        columns |= {"sIoU": "components.siou", "PPV": "components.ppv", "F1": "components.f1"}
    if any(result.at_threshold is not None for result in results):
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
    total = "" if result.wall_ms is None else f"; {result.wall_ms:.1f} ms per frame with loading and measuring"
    return f"{', '.join(parts)}{total}; {result.backend}"
