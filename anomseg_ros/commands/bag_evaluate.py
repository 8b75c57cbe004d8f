"""`anomseg bag evaluate`: a bag with ground truth through a bundle, through the real node, or as it was recorded."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from anomseg_ros.backends import open_detector
from anomseg_ros.commands import options
from anomseg_ros.commands.evaluate import ProgressLines, evaluation_of, print_tables
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.labels import LABEL_SETS
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import AnomsegError, BagError, ConfigError
from anomseg_ros.evaluation.bag_drive import MIN_ALARM_PX
from anomseg_ros.evaluation.bag_evaluate import BagOutcome, BagRequest, differences, evaluate_bag
from anomseg_ros.evaluation.bag_measure import BagSource, RecordedSource
from anomseg_ros.evaluation.bag_recorded import SCORE_TOPIC
from anomseg_ros.evaluation.evaluate import Outcome
from anomseg_ros.evaluation.pictures import PictureKey, draw_worst
from anomseg_ros.evaluation.results import Drive, Live, Result, save_evaluation
from anomseg_ros.metrics.protocols import PROTOCOLS


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the tables and write the files; returns 0 if everything was measured, else 1."""
    args = _parser().parse_args(argv)
    request = _request(args)
    with ProgressLines() as lines:
        name = args.bag.stem
        offline = evaluate_bag(request, lambda done, total: lines(name, done, total))
        errors = [offline.failure] if offline.failure else []
        results = list(offline.results)
        if args.live and not errors:
            try:
                results += _live(args, request, offline, lines)
            except AnomsegError as error:  # what was measured without the node is still told
                errors.append(f"--live: {error}")
            except ModuleNotFoundError as error:
                errors.append(f"--live needs ROS 2: source your ROS installation ({error})")
        pictures = _pictures(args, request, offline)
    warnings = tuple(dict.fromkeys(note for result in results for note in result.notes if note not in errors))
    outcome = Outcome(tuple(results), tuple(errors), warnings, _settings(args, request), pictures)
    _write_files(args, outcome, argv)
    _print(outcome)
    return 1 if errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(
        "bag evaluate",
        "Measure a bundle on a bag with ground truth (`anomseg bag write --dataset`): the figures of `anomseg "
        "evaluate`, alarms per minute, time to first detection and detection rate by object size. No ROS is needed, "
        "but for --live.",
    )
    parser.add_argument("bag", type=Path, help="bag directory, .mcap file or .db3 file")
    parser.add_argument("bundle", nargs="?", help="bundle directory, or name of a shipped bundle; not with --recorded")
    parser.add_argument(
        "--score", type=options.names, default=(), help="scores, comma separated (default: all); the first makes alarms"
    )
    parser.add_argument(
        "--protocol", nargs="+", choices=sorted(PROTOCOLS), default=["seeds"], help="how figures are defined"
    )
    parser.add_argument("--exact", action="store_true", help="no score is rounded, whatever memory that takes")
    parser.add_argument("--json", type=Path, help="file for everything measured, and how")
    parser.add_argument("--html", type=Path, help="file for the report, one self-contained page")
    _add_bag_options(parser)
    _add_mode_options(parser)
    options.add_backend_options(parser)
    return parser


def _add_bag_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the bag")
    group.add_argument("--topic", help="topic of the images (default: its only one)")
    group.add_argument("--anomaly-topic", help="ground truth (default: ground_truth/anomaly beside the images)")
    group.add_argument("--labels-topic", help="semantic ground truth (default: ground_truth/labels beside the images)")
    group.add_argument(
        "--label-set", choices=sorted(LABEL_SETS), help="what the semantic labels mean (default: as the bag says)"
    )
    drive = parser.add_argument_group("alarms and detections")
    drive.add_argument("--target-fpr", type=float, default=0.01, help="picks the threshold of the bundle's table")
    drive.add_argument("--threshold", type=float, help="score above which a pixel is an anomaly, in place of that")
    drive.add_argument("--min-alarm-px", type=int, default=MIN_ALARM_PX, help="smallest area of an alarm")


def _add_mode_options(parser: argparse.ArgumentParser) -> None:
    modes = parser.add_argument_group("through the node, or as recorded")
    chosen = modes.add_mutually_exclusive_group()
    chosen.add_argument("--live", action="store_true", help="then play the bag through the real node and compare")
    chosen.add_argument("--recorded", action="store_true", help="run no model: take the outputs that the bag holds")
    modes.add_argument("--rate", type=float, default=1.0, help="speed of --live; 1 is the bag's own")
    modes.add_argument("--keep", type=Path, metavar="FILE", help="bag for what the node published in --live")
    modes.add_argument("--score-topic", default=SCORE_TOPIC, help="recorded scores, 32FC1; labels are beside")
    modes.add_argument("--predicted-topic", help="recorded labels, mono8 (default: labels beside the scores)")


def _request(args: argparse.Namespace) -> BagRequest:
    if args.bundle is None and not args.recorded:
        raise ConfigError("no bundle to run; give one after the bag, or --recorded for the outputs in the bag")
    if args.keep is not None and args.keep.exists():
        raise BagError(f"--keep: {str(args.keep)!r} exists; choose another name")
    bundle: Bundle | None = None if args.bundle is None else load_bundle(find_bundle(args.bundle))
    recorded = RecordedSource(str(args.bag), "", args.score_topic, args.predicted_topic) if args.recorded else None
    return BagRequest(
        bag=BagSource(str(args.bag), args.topic, args.anomaly_topic, args.labels_topic, args.label_set),
        bundle=bundle,
        scores=args.score,
        protocols=tuple(dict.fromkeys(args.protocol)),
        exact=args.exact,
        target_fpr=args.target_fpr,
        threshold=args.threshold,
        min_alarm_px=args.min_alarm_px,
        recorded=recorded,
        backend=args.backend,
        options=options.backend_options(args),
    )


def _live(args: argparse.Namespace, request: BagRequest, offline: BagOutcome, lines: ProgressLines) -> list[Result]:
    """Play the bag through the node, evaluate what it published, and return that as results of their own."""
    from anomseg_ros.node.live import play_and_record

    assert request.bundle is not None
    score = offline.results[0].score
    with request.bag.open() as dataset:
        image_topic = dataset.image_topic
    with tempfile.TemporaryDirectory(prefix="anomseg-live-") as folder:
        output = args.keep or Path(folder) / "outputs"
        run = play_and_record(
            args.bag,
            image_topic,
            output,
            ["--bundle", str(request.bundle.directory.resolve()), "--score", score, *_node_backend(args)],
            args.rate,
            Path(folder) / "node.log",
            lambda done, total: lines(f"{args.bag.stem} through the node", done, total),
        )
        recorded = RecordedSource(str(output), score)
        outcome = evaluate_bag(replace(request, scores=(score,), recorded=recorded))
    complete = {result.protocol: result for result in offline.results if result.score == score}
    return [
        replace(
            result,
            dataset=f"{result.dataset} live",
            live=Live(
                rate=args.rate,
                frames=run.frames,
                answered=run.answered,
                dropped=run.dropped,
                lost=run.lost,
                bad=run.bad,
                latency_ms=run.latency_ms,
                processing_ms=run.processing_ms,
                age_ms=run.age_ms,
                difference=differences(result, complete[result.protocol]),
            ),
        )
        for result in outcome.results
    ]


def _node_backend(args: argparse.Namespace) -> list[str]:
    return ["--backend", args.backend, "--provider", args.provider, "--threads", str(args.threads)]


def _pictures(args: argparse.Namespace, request: BagRequest, offline: BagOutcome) -> dict[PictureKey, bytes]:
    if args.html is None or request.bundle is None or request.recorded is not None:
        return {}
    detector = open_detector(request.bundle, request.backend, request.options)
    try:
        with request.bag.open() as dataset:
            return draw_worst(detector, dataset, offline.results)
    finally:
        detector.close()


def _settings(args: argparse.Namespace, request: BagRequest) -> dict[str, object]:
    bundle = request.bundle
    return {
        "bag": asdict(request.bag),
        "bundles": {} if bundle is None else {bundle.contract.name: {"files": dict(bundle.contract.files)}},
        "scores": list(request.scores),
        "protocols": list(request.protocols),
        "exact": request.exact,
        "target_fpr": request.target_fpr,
        "threshold": request.threshold,
        "recorded": None if request.recorded is None else asdict(request.recorded),
        "live_rate": args.rate if args.live else None,
        "backend": request.backend,
        "options": asdict(request.options),
    }


def _write_files(args: argparse.Namespace, outcome: Outcome, argv: Sequence[str] | None) -> None:
    if args.json is None and args.html is None:
        return
    evaluation = evaluation_of(outcome, command_line("bag evaluate", argv))
    if args.json is not None:
        save_evaluation(evaluation, args.json)
    if args.html is not None:
        from anomseg_ros.evaluation.report import write_report

        write_report(evaluation, args.html, outcome.pictures)


def command_line(command: str, argv: Sequence[str] | None) -> str:
    """Return the command as it was typed."""
    import shlex
    import sys

    return shlex.join(["anomseg", *command.split(), *(sys.argv[3:] if argv is None else argv)])


def _print(outcome: Outcome) -> None:
    console, log = Console(), Console(stderr=True)
    print_tables(console, outcome.results)
    told: set[tuple[str, str]] = set()
    for result in outcome.results:
        if (result.dataset, result.score) in told:
            continue
        told.add((result.dataset, result.score))
        if result.drive is not None:
            console.print(_drive_table(result, result.drive))
        if result.live is not None:
            console.print(_live_table(result, result.live))
    for warning in outcome.warnings:
        log.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    for error in outcome.errors:
        log.print(f"anomseg: error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)


def _drive_table(result: Result, drive: Drive) -> Table:
    title = (
        f"{result.dataset}: {result.score} > {drive.threshold:g} ({drive.threshold_source}), {drive.duration_s:.1f} s"
    )
    table = Table(title=title, title_justify="left", show_header=False)
    rate = "-" if drive.alarms_per_minute is None else f"{drive.alarms_per_minute:.2f} per minute"
    table.add_row("alarms", f"{drive.alarms} of {drive.min_alarm_px} px or more, {rate}")
    delay = drive.median_seconds_to_detection
    found = f"{drive.objects_detected} of {len(drive.objects)}"
    table.add_row("objects detected", found + ("" if delay is None else f", after {delay:.2f} s (median)"))
    for size in drive.sizes:
        if size.frames:
            name = (
                f"{size.from_px} px or more" if size.below_px is None else f"{size.from_px} to {size.below_px - 1} px"
            )
            share = f"{100 * size.detected / size.frames:.1f} % of {size.frames} object frames"
            table.add_row(f"detected at {name}", share)
    return table


def _live_table(result: Result, live: Live) -> Table:
    table = Table(title=f"{result.dataset}: at {live.rate:g} times its speed", title_justify="left", show_header=False)
    counts = f"{live.answered} answered, {live.dropped} dropped, {live.lost} lost, {live.bad} bad"
    table.add_row(f"{live.frames} frames", counts)
    times = {
        "stamp to output": live.latency_ms,
        "arrival to output": live.processing_ms,
        "frame to listener": live.age_ms,
    }
    for name, values in times.items():
        table.add_row(f"{name}, ms", ", ".join(f"{key} {value:.1f}" for key, value in values.items()) or "-")
    for name, value in live.difference.items():
        fraction = name in ("auprc", "fpr95", "auroc", "miou")
        table.add_row(
            f"{result.protocol} {name}, live - no drop", f"{100 * value:+.2f} %" if fraction else f"{value:+g}"
        )
    return table
