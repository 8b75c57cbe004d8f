"""`anomseg bag evaluate`: measure a bundle, the real node, or recorded outputs on bags."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from anomseg_ros.backends import open_detector
from anomseg_ros.commands import options
from anomseg_ros.commands.bag_tables import bags_table, drive_table, live_table, streaming_table
from anomseg_ros.commands.evaluate import (
    add_worker_options,
    command_line,
    print_remarks,
    print_tables,
    write_files,
)
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.bundle import CONTRACT_FILE, Bundle, load_bundle
from anomseg_ros.core.class_table import LABEL_SET_HELP
from anomseg_ros.core.delivered import losses
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.ego_mask import read_ego_mask
from anomseg_ros.core.resources import find_bundle, shipped_bundles
from anomseg_ros.core.temporal_filter import FILTERS, NO_FILTER, UNFILTERED, FilterSpec
from anomseg_ros.datasets.bag import BagDataset
from anomseg_ros.errors import AnomsegError, BagError, ConfigError
from anomseg_ros.evaluation.bag_evaluate import BagOutcome, BagPart, differences, evaluate_bags, name_of
from anomseg_ros.evaluation.bag_plan import BagRequest, BagSource
from anomseg_ros.evaluation.drive import MIN_ALARM_PX
from anomseg_ros.evaluation.evaluate import Outcome
from anomseg_ros.evaluation.pictures import PictureKey, draw_moments, draw_worst
from anomseg_ros.evaluation.readout import worst_first
from anomseg_ros.evaluation.recorded import SCORE_TOPIC, RecordedSource, Timeline
from anomseg_ros.evaluation.results import Live, Result
from anomseg_ros.evaluation.unlabelled_bags import with_unlabelled_bags
from anomseg_ros.evaluation.workers import Workers
from anomseg_ros.metrics.protocols import PROTOCOLS, protocol

if TYPE_CHECKING:
    from anomseg_ros.replay.live import LiveRun


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the tables and write the files; return 0 if everything was measured, else 1."""
    args = argument_parser().parse_args(argv)
    request = with_unlabelled_bags(_request(args))
    with ProgressLines() as lines:
        offline = evaluate_bags(request, lines)
        errors = list(offline.errors)
        results = list(offline.results)
        if args.live and not errors:
            try:
                live_results, live_errors = _evaluate_live(args, request, offline, lines)
                results += live_results
                errors += live_errors
            except AnomsegError as error:  # the results without the node are still reported
                errors.append(f"--live: {error}")
            except ModuleNotFoundError as error:
                errors.append(f"--live needs ROS 2: source your ROS installation ({error})")
        pictures = _worst_pictures(args, request, offline)
    warnings = tuple(dict.fromkeys(note for result in results for note in result.notes if note not in errors))
    outcome = Outcome(tuple(results), tuple(errors), warnings, _settings(args, request, offline), pictures)
    _print(outcome, offline.bags)
    write_files(args.json, args.html, outcome, command_line("bag evaluate", argv))
    return 1 if errors else 0


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg bag evaluate`."""
    parser = options.parser(
        "bag evaluate",
        "Measure a bundle on bags with ground truth (`anomseg bag write --dataset`): the figures of `anomseg "
        "evaluate`, alarms per minute, time to first detection and detection rate by object size. Of bags without "
        "ground truth: alarms, their area and duration, and the worst moments. Several bags give pooled figures. Only "
        "--live needs ROS.",
        {"--topic": "--image-topic"},
    )
    parser.usage = "%(prog)s [options] BUNDLE BAG [BAG ...]"
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="BUNDLE BAG [BAG ...]",
        help="a bundle directory or the name of a shipped bundle, then bag directories, .mcap files or .db3 files; "
        "the bundle is optional with --recorded",
    )
    score_help = "scores, comma separated (default: all); alarms are measured for the first one"
    parser.add_argument("--score", type=options.names, default=(), help=score_help)
    protocol_help = "definition of the figures, see docs/evaluate.md"
    parser.add_argument("--protocol", nargs="+", choices=sorted(PROTOCOLS), default=["seeds"], help=protocol_help)
    parser.add_argument("--exact", action="store_true", help=options.EXACT_HELP)
    parser.add_argument("--json", type=options.output_file, help=options.JSON_HELP)
    parser.add_argument("--html", type=options.output_file, help=options.HTML_HELP)
    add_worker_options(parser, "bags")
    options.add_road_region(parser, options.ROAD_PROTOCOLS_HELP)
    _add_bag_options(parser)
    _add_mode_options(parser)
    options.add_backend_options(parser)
    return parser


def _add_bag_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("topics of the bags")
    group.add_argument("--image-topic", help="image topic (default: the only one in the bag)")
    namespace = "in the namespace of the images"
    group.add_argument("--anomaly-topic", help=f"anomaly ground truth (default: ground_truth/anomaly {namespace})")
    group.add_argument("--labels-topic", help=f"semantic ground truth (default: ground_truth/labels {namespace})")
    label_set_help = f"classes of the semantic labels (default: as stated in the bag): {LABEL_SET_HELP}"
    group.add_argument("--label-set", help=label_set_help)
    ego_help = "image, non-zero where the camera sees its own vehicle; these pixels do not count"
    group.add_argument("--ego-mask", type=Path, metavar="FILE", help=ego_help)
    drive = parser.add_argument_group("alarms and detections")
    target_help = "false-positive rate that selects a threshold from the bundle"
    drive.add_argument("--target-fpr", type=options.fraction, default=0.01, help=target_help)
    alarms_help = "alarms per minute whose threshold in the bundle is used; 0 = off: --target-fpr selects it"
    drive.add_argument("--target-alarms-per-minute", type=options.number, default=0.0, metavar="N", help=alarms_help)
    threshold_help = "score above which a pixel is an anomaly; replaces --target-fpr"
    drive.add_argument("--threshold", type=options.number, help=threshold_help)
    drive.add_argument("--min-alarm-px", type=int, default=MIN_ALARM_PX, help="smallest area of an alarm, in pixels")
    drive.add_argument(
        "--alarm-frames-n", type=int, default=1, help="frames in which a region must appear to count ..."
    )
    drive.add_argument("--alarm-frames-m", type=int, help="... out of so many frames (default: the same number)")
    filter_help = "filter that smooths scores over time"
    drive.add_argument("--temporal-filter", choices=FILTERS, default=NO_FILTER, help=filter_help)
    drive.add_argument(
        "--filter-time-constant-s",
        type=options.number,
        default=UNFILTERED.time_constant_s,
        help="time in seconds in which the filter follows 63 %% of a change",
    )


def _add_mode_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("through the node, or from recorded outputs")
    modes = group.add_mutually_exclusive_group()
    modes.add_argument("--live", action="store_true", help="also play the bag through the real node, and compare")
    modes.add_argument("--recorded", action="store_true", help="run no model; use the outputs in each bag")
    group.add_argument("--rate", type=options.positive, default=1.0, help="speed of --live; 1 is the bag's own speed")
    keep_help = "bag to write the node's outputs of --live to"
    group.add_argument("--keep", type=options.output_folder, metavar="FILE", help=keep_help)
    group.add_argument("--score-topic", default=SCORE_TOPIC, help="topic of the recorded scores, 32FC1")
    predicted_help = "topic of the recorded labels, mono8 (default: labels in the namespace of the scores)"
    group.add_argument("--predicted-topic", help=predicted_help)


def _request(args: argparse.Namespace) -> BagRequest:
    bags, bundle = _bags_and_bundle(args.paths, args.recorded)
    if args.live and len(bags) > 1:
        raise ConfigError(f"--live plays one bag, {len(bags)} are given; give one bag, or omit --live")
    if args.keep is not None and args.keep.exists():
        raise BagError(f"--keep: {str(args.keep)!r} exists; choose another name")
    ego_mask = None
    if args.ego_mask is not None:
        read_ego_mask(args.ego_mask, "--ego-mask")  # refused before any bag is read
        ego_mask = str(args.ego_mask.resolve())
    topics = (args.image_topic, args.anomaly_topic, args.labels_topic, args.label_set)
    return BagRequest(
        bags=tuple(BagSource(bag, *topics, ego_mask=ego_mask) for bag in bags),
        bundle=bundle,
        scores=args.score,
        protocols=options.with_road_protocols(dict.fromkeys(args.protocol), args.road_region),
        exact=args.exact,
        target_fpr=args.target_fpr,
        target_alarms_per_minute=args.target_alarms_per_minute,
        threshold=args.threshold,
        min_alarm_px=args.min_alarm_px,
        alarm_frames=(args.alarm_frames_n, args.alarm_frames_m or args.alarm_frames_n),
        filter=FilterSpec(args.temporal_filter, args.filter_time_constant_s),
        recorded=RecordedSource("", "", args.score_topic, args.predicted_topic) if args.recorded else None,
        backend=args.backend,
        options=options.backend_options(args),
        workers=Workers(args.workers, args.ray),
    )


def _bags_and_bundle(paths: Sequence[str], recorded: bool) -> tuple[Sequence[str], Bundle | None]:
    """Return the bags and the bundle. The bundle is the first path; with recorded outputs, that may also be a bag."""
    first, *bags = paths
    if bags and not _is_bundle(first) and _is_bundle(bags[-1]):
        print("anomseg: the bundle is now given first: BUNDLE BAG [BAG ...]", file=sys.stderr)
        *bags, first = paths
    if recorded and (not bags or not _is_bundle(first)):
        return paths, None
    if not bags:
        raise ConfigError("no bag to evaluate; give BUNDLE BAG, or use --recorded for the outputs in a bag")
    return bags, load_bundle(find_bundle(first))


def _is_bundle(name: str) -> bool:
    path = Path(name)
    return (path / CONTRACT_FILE).is_file() if path.exists() else name in shipped_bundles()


def _evaluate_live(
    args: argparse.Namespace, request: BagRequest, offline: BagOutcome, lines: ProgressLines
) -> tuple[list[Result], list[str]]:
    """Play the bag through the node and evaluate its outputs; return the results and the errors.

    Errors are outputs that did not arrive and frames that could not be measured.
    """
    from anomseg_ros.replay.live import play_and_record

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
            ["--bundle", str(request.bundle.directory.resolve()), "--score", score, *_node_options(args)],
            args.rate,
            Path(folder) / "node.log",
            lines,
        )
        recorded = RecordedSource(str(output), score, timeline=Timeline(run.sent_ns, run.score_received_ns))
        protocols = tuple(name for name in request.protocols if protocol(name).road_region is None)
        # The node has already filtered the scores.
        live_request = replace(request, scores=(score,), protocols=protocols, recorded=recorded, filter=UNFILTERED)
        outcome = evaluate_bags(live_request)
    offline_results = {result.protocol: result for result in offline.results if result.score == score}
    results = [
        replace(
            result,
            dataset=f"{result.dataset} live",
            live=_live_figures(run, args.rate, differences(result, offline_results[result.protocol])),
        )
        for result in outcome.results
    ]
    return results, [f"--live: {error}" for error in (*losses(run.differences), *outcome.errors)]


def _live_figures(run: LiveRun, rate: float, difference: Mapping[str, float]) -> Live:
    return Live(
        rate=rate,
        frames=run.frames,
        answered=run.answered,
        dropped=run.dropped,
        lost=run.lost,
        bad=run.bad,
        latency_ms=run.latency_ms,
        processing_ms=run.processing_ms,
        age_ms=run.age_ms,
        difference=difference,
    )


def _node_options(args: argparse.Namespace) -> list[str]:
    names = ("backend", "provider", "threads", "temporal_filter", "filter_time_constant_s")
    words = [argument for name in names for argument in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    return words if args.ego_mask is None else [*words, "--ego-mask", str(args.ego_mask.resolve())]


def _worst_pictures(args: argparse.Namespace, request: BagRequest, offline: BagOutcome) -> dict[PictureKey, bytes]:
    """Draw the worst frames of all bags for the report."""
    if args.html is None or request.bundle is None or request.recorded is not None:
        return {}
    several = len(request.bags) > 1
    results = [result for result in offline.results if not several or worst_first(result.per_frame)]
    pictures: dict[PictureKey, bytes] = {}
    detector = open_detector(request.bundle, request.backend, request.options)
    try:
        for part in offline.bags:
            if part.frames:
                with part.source.open() as dataset:
                    dataset.prefix = f"{part.name}/" if several else ""
                    if dataset.known:
                        pictures |= _moments(detector, dataset, part, offline.results)
                    else:
                        pictures |= draw_worst(detector, dataset, results)
        return pictures
    finally:
        detector.close()


def _moments(
    detector: Detector, dataset: BagDataset, part: BagPart, results: Sequence[Result]
) -> dict[PictureKey, bytes]:
    pictures: dict[PictureKey, bytes] = {}
    for result in results:
        drive = part.drive if protocol(result.protocol).road_region is None else part.road_drive
        if drive is not None:
            pictures |= draw_moments(detector, dataset, result, drive)
    return pictures


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
        "bundles": {} if bundle is None else {name_of(bundle): {"files": dict(bundle.contract.files)}},
        "scores": list(request.scores),
        "protocols": list(request.protocols),
        "exact": request.exact,
        "target_fpr": request.target_fpr,
        "target_alarms_per_minute": request.target_alarms_per_minute,
        "threshold": request.threshold,
        "alarm_frames": list(request.alarm_frames),
        "filter": asdict(request.filter),
        "recorded": None if request.recorded is None else asdict(request.recorded),
        "live_rate": args.rate if args.live else None,
        "backend": request.backend,
        "options": asdict(request.options),
        "workers": asdict(request.workers),
    }


def _print(outcome: Outcome, bags: Sequence[BagPart]) -> None:
    console = Console()
    print_tables(console, outcome.results)
    printed: set[tuple[str, str, str | None]] = set()
    for result in outcome.results:
        key = result.dataset, result.score, protocol(result.protocol).road_region
        if key in printed:  # protocols differ only in their pixel figures
            continue
        printed.add(key)
        if result.drive is not None:
            console.print(drive_table(result, result.drive))
        if result.streaming is not None:
            results = [other for other in outcome.results if (other.dataset, other.score) == key[:2]]
            console.print(streaming_table(results, result.streaming))
        if result.live is not None:
            console.print(live_table(result, result.live))
    if len(bags) > 1:
        console.print(bags_table(bags))
    print_remarks(Console(stderr=True), outcome)
