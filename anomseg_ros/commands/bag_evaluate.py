"""`anomseg bag evaluate`: bags with ground truth through a bundle, through the real node, or as they were recorded."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anomseg_ros.backends import open_detector
from anomseg_ros.commands import options
from anomseg_ros.commands.evaluate import ProgressLines, evaluation_of, print_tables
from anomseg_ros.core.bundle import CONTRACT_FILE, Bundle, load_bundle
from anomseg_ros.core.labels import LABEL_SETS
from anomseg_ros.core.resources import find_bundle, shipped_bundles
from anomseg_ros.errors import AnomsegError, BagError, ConfigError
from anomseg_ros.evaluation.bag_drive import MIN_ALARM_PX
from anomseg_ros.evaluation.bag_evaluate import BagOutcome, BagPart, BagRequest, differences, evaluate_bags
from anomseg_ros.evaluation.bag_measure import BagSource, RecordedSource
from anomseg_ros.evaluation.bag_recorded import SCORE_TOPIC
from anomseg_ros.evaluation.evaluate import Outcome
from anomseg_ros.evaluation.pictures import WORST_FRAMES, PictureKey, draw_worst
from anomseg_ros.evaluation.readout import worst_first
from anomseg_ros.evaluation.results import Drive, Live, Result, save_evaluation
from anomseg_ros.evaluation.workers import LOCAL_RAY, Workers
from anomseg_ros.metrics.protocols import PROTOCOLS, protocol


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the tables and write the files; returns 0 if everything was measured, else 1."""
    args = _parser().parse_args(argv)
    request = _request(args)
    with ProgressLines() as lines:
        offline = evaluate_bags(request, lines)
        errors = list(offline.errors)
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
    outcome = Outcome(tuple(results), tuple(errors), warnings, _settings(args, request, offline), pictures)
    _write_files(args, outcome, argv)
    _print(outcome, offline.bags)
    return 1 if errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(
        "bag evaluate",
        "Measure a bundle on bags with ground truth (`anomseg bag write --dataset`): the figures of `anomseg "
        "evaluate`, alarms per minute, time to first detection and detection rate by object size; of several bags, "
        "pooled. No ROS is needed, but for --live.",
    )
    parser.usage = "%(prog)s [options] BAG [BAG ...] BUNDLE"
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="BAG [BAG ...] BUNDLE",
        help="bag directories, .mcap files or .db3 files; last a bundle directory or the name of a shipped bundle, "
        "which may be left out with --recorded",
    )
    parser.add_argument(
        "--score", type=options.names, default=(), help="scores, comma separated (default: all); the first makes alarms"
    )
    parser.add_argument(
        "--protocol", nargs="+", choices=sorted(PROTOCOLS), default=["seeds"], help="how figures are defined"
    )
    parser.add_argument("--exact", action="store_true", help="no score is rounded, whatever memory that takes")
    parser.add_argument("--json", type=Path, help="file for everything measured, and how")
    parser.add_argument("--html", type=Path, help="file for the report, one self-contained page")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the bags; the result is the same")
    ray_help = f"spread the bags over the Ray cluster at this address, or {LOCAL_RAY!r} (needs anomseg_ros[cluster])"
    parser.add_argument("--ray", metavar="ADDRESS", help=ray_help)
    options.add_road_region(parser, options.MEASURED_ON_ROAD)
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
    chosen.add_argument("--live", action="store_true", help="then play the one bag through the real node and compare")
    chosen.add_argument("--recorded", action="store_true", help="run no model: take the outputs that each bag holds")
    modes.add_argument("--rate", type=float, default=1.0, help="speed of --live; 1 is the bag's own")
    modes.add_argument("--keep", type=Path, metavar="FILE", help="bag for what the node published in --live")
    modes.add_argument("--score-topic", default=SCORE_TOPIC, help="recorded scores, 32FC1; labels are beside")
    modes.add_argument("--predicted-topic", help="recorded labels, mono8 (default: labels beside the scores)")


def _request(args: argparse.Namespace) -> BagRequest:
    bags, bundle = _bags_and_bundle(args.paths, args.recorded)
    if args.live and len(bags) > 1:
        raise ConfigError(f"--live plays one bag, {len(bags)} are given; give one, or leave --live out")
    if args.keep is not None and args.keep.exists():
        raise BagError(f"--keep: {str(args.keep)!r} exists; choose another name")
    return BagRequest(
        bags=tuple(BagSource(bag, args.topic, args.anomaly_topic, args.labels_topic, args.label_set) for bag in bags),
        bundle=bundle,
        scores=args.score,
        protocols=options.with_road(dict.fromkeys(args.protocol), args.road_region),
        exact=args.exact,
        target_fpr=args.target_fpr,
        threshold=args.threshold,
        min_alarm_px=args.min_alarm_px,
        recorded=RecordedSource("", "", args.score_topic, args.predicted_topic) if args.recorded else None,
        backend=args.backend,
        options=options.backend_options(args),
        workers=Workers(args.workers, args.ray),
    )


def _bags_and_bundle(paths: Sequence[str], recorded: bool) -> tuple[Sequence[str], Bundle | None]:
    """Tell the bags from the bundle: the last path, unless outputs were recorded and it is a bag as well."""
    *bags, last = paths
    if recorded and (not bags or not _is_bundle(last)):
        return paths, None
    if not bags:
        raise ConfigError("no bundle to run; give one after the bag, or --recorded for the outputs in the bag")
    return bags, load_bundle(find_bundle(last))


def _is_bundle(name: str) -> bool:
    path = Path(name)
    return (path / CONTRACT_FILE).is_file() if path.exists() else name in shipped_bundles()


def _live(args: argparse.Namespace, request: BagRequest, offline: BagOutcome, lines: ProgressLines) -> list[Result]:
    """Play the bag through the node, evaluate what it published, and return that as results of their own."""
    from anomseg_ros.node.live import play_and_record

    assert request.bundle is not None
    score = offline.results[0].score
    (source,) = request.bags
    with source.open() as dataset:
        image_topic = dataset.image_topic
    with tempfile.TemporaryDirectory(prefix="anomseg-live-") as folder:
        output = args.keep or Path(folder) / "outputs"
        run = play_and_record(
            Path(source.path),
            image_topic,
            output,
            ["--bundle", str(request.bundle.directory.resolve()), "--score", score, *_node_backend(args)],
            args.rate,
            Path(folder) / "node.log",
            lambda done, total: lines(f"{request.names[0]} through the node", done, total),
        )
        recorded = RecordedSource(str(output), score)
        protocols = tuple(name for name in request.protocols if protocol(name).road_region is None)
        outcome = evaluate_bags(replace(request, scores=(score,), protocols=protocols, recorded=recorded))
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
    """Draw the frames that are the worst of all bags, each from its own bag."""
    if args.html is None or request.bundle is None or request.recorded is not None:
        return {}
    pictures: dict[PictureKey, bytes] = {}
    several = len(request.bags) > 1
    detector = open_detector(request.bundle, request.backend, request.options)
    try:
        for part in offline.bags:
            prefix = f"{part.name}/" if several else ""
            results = _of_bag(offline.results, prefix)
            if part.frames and results:
                with part.source.open() as dataset:
                    drawn = draw_worst(detector, dataset, results)
                pictures |= {(*key[:4], prefix + key[4]): picture for key, picture in drawn.items()}
        return pictures
    finally:
        detector.close()


def _of_bag(results: Sequence[Result], prefix: str) -> list[Result]:
    """Return the results with only those of their worst frames that are in one bag, by their ids there."""
    if not prefix:
        return list(results)
    kept = []
    for result in results:
        worst = [frame for frame in worst_first(result.per_frame)[:WORST_FRAMES] if frame.frame_id.startswith(prefix)]
        own = tuple(replace(frame, frame_id=frame.frame_id.removeprefix(prefix)) for frame in worst)
        if own:
            kept.append(replace(result, per_frame=own))
    return kept


def _settings(args: argparse.Namespace, request: BagRequest, offline: BagOutcome) -> dict[str, object]:
    bundle = request.bundle
    return {
        "bags": [
            {
                **asdict(part.source),
                "name": part.name,
                "frames": part.frames,
                "failure": part.failure,
                "drive": None if part.drive is None else asdict(part.drive),
                "road_drive": None if part.road_drive is None else asdict(part.road_drive),
            }
            for part in offline.bags
        ],
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
        "workers": asdict(request.workers),
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


def _print(outcome: Outcome, bags: Sequence[BagPart]) -> None:
    console, log = Console(), Console(stderr=True)
    print_tables(console, outcome.results)
    told: set[tuple[str, str, str | None]] = set()
    for result in outcome.results:
        of = result.dataset, result.score, protocol(result.protocol).road_region
        if of in told:
            continue
        told.add(of)
        if result.drive is not None:
            console.print(_drive_table(result, result.drive))
        if result.live is not None:
            console.print(_live_table(result, result.live))
    if len(bags) > 1:
        console.print(_bags_table(bags))
    for warning in outcome.warnings:
        log.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    for error in outcome.errors:
        log.print(f"anomseg: error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)


def _drive_table(result: Result, drive: Drive) -> Table:
    title = (
        f"{result.dataset}: {result.score} > {drive.threshold:g} ({drive.threshold_source}), {drive.duration_s:.1f} s"
    )
    if drive.road_region is not None:
        title += f"; alarms limited to the region {drive.road_region!r}"
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


def _bags_table(bags: Sequence[BagPart]) -> Table:
    table = Table("bag", "frames", "seconds", "alarms", "objects detected", title="per bag", title_justify="left")
    for part in bags:
        drive = part.drive
        told = ["-"] * 3
        if drive is not None:
            found = f"{drive.objects_detected} of {len(drive.objects)}"
            told = [f"{drive.duration_s:.1f}", str(drive.alarms), found]
        table.add_row(escape(part.name), str(part.frames) + (", failed" if part.failure else ""), *told)
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
