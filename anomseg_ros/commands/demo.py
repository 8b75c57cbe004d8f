"""`anomseg demo`: play a drive through the real node under ROS 2 and write an HTML page of its outputs."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.commands import options
from anomseg_ros.commands.demo_drive import SYNTHETIC_FRAMES, SYNTHETIC_SEED, DemoDrive, open_drive, synthetic_drive
from anomseg_ros.commands.demo_frames import ShownDrive, show_drive
from anomseg_ros.commands.demo_page import pace, write_page
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.commands.result_files import print_differences, write_each
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.output_files import make_output_folder, write_results
from anomseg_ros.core.resources import DEMO_BUNDLE, ROAD_BUNDLE, SYNTHETIC_BUNDLE, find_bundle
from anomseg_ros.errors import ConfigError

if TYPE_CHECKING:
    from anomseg_ros.replay.live import LiveRun

DRIVE_BAG, OUTPUTS_BAG = "drive_bag", "outputs_bag"

_TIMED_FRAMES = 7
_LOAD_FACTOR = 1.25
_ROS_S = 0.01
"""The time per frame is the network's time multiplied by a factor for other load, plus seconds for transport by ROS."""

_MIN_RATE = 0.25
"""Lowest speed at which the shipped drive is played, even if the network is slower."""


@dataclass(frozen=True)
class DemoResult:
    """The figures of a demo. processing_ms, age_ms: latencies by percentile, see replay.live.LiveRun.

    rate: speed of the replay; 1 is the drive's own speed. period_ms: time between two frames at that speed. published:
    frames whose scores arrived. anomalies: number of known anomalies, None without ground truth. found: number of those
    that the mask covers at least by half in some frame.
    """

    drive: str
    bundle: str
    backend: str
    rate: float
    period_ms: float
    frames_in: int
    published: int
    dropped: int
    lost: int
    bad: int
    processing_ms: dict[str, float]
    age_ms: dict[str, float]
    anomalies: int | None = None
    found: int | None = None
    about: tuple[str, ...] = field(default=())


def main(argv: list[str]) -> int:
    """Play the drive through the node and write the page; return 0, or 1 if frames or all outputs are missing."""
    args = argument_parser().parse_args(argv)
    if args.synthetic and args.drive is not None:
        raise ConfigError(f"got the drive {str(args.drive)!r} and --synthetic; give one of them")
    for option in ("max-frames", "pictures"):
        value = getattr(args, option.replace("-", "_"))
        if value is not None and value < 1:
            raise ConfigError(f"got --{option} {value}; expected at least 1")
    bundle = load_bundle(find_bundle(args.bundle)) if args.bundle else None
    drive = _prepare_drive(args)
    make_output_folder(args.output)
    bundle = bundle or load_bundle(find_bundle(drive.bundle))
    rate = args.rate if args.rate is not None else _default_rate(args, drive, bundle)
    run = _play_through_node(drive, bundle, rate, args)
    shown = show_drive(drive, args.output / OUTPUTS_BAG, bundle, run.detector, args.output)
    result = _result(drive, bundle, rate, run, shown)
    page = args.output / "index.html"
    _print_result(result, page)
    write_each(
        partial(write_results, args.output / "result.json", json.dumps(asdict(result), indent=2) + "\n"),
        partial(write_page, page, result, shown, run.detector),
    )
    return max(print_differences(run.differences), 0 if result.published else 1)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg demo`."""
    parser = options.parser(
        "demo",
        "Play a drive through the node and write an HTML page of its outputs.",
        {"--frames": "--max-frames", "--topic": "--image-topic"},
    )
    parser.add_argument(
        "drive",
        nargs="?",
        type=Path,
        help="video, or MCAP or sqlite3 bag with a camera topic (default: the shipped drive with pasted objects)",
    )
    parser.add_argument("--synthetic", action="store_true", help="play a synthetic drive instead")
    defaults = f"{DEMO_BUNDLE} for the shipped drive, {ROAD_BUNDLE} for yours, {SYNTHETIC_BUNDLE} for the synthetic one"
    parser.add_argument("--bundle", help=f"bundle directory or name of a shipped bundle (default: {defaults})")
    parser.add_argument("--image-topic", help="camera topic of the bag (default: its only one)")
    rate_help = "speed of the replay (default: 1; slower for the shipped and synthetic drives if the network is slow)"
    parser.add_argument("--rate", type=options.number, help=rate_help)
    parser.add_argument(
        "--output", type=options.output_folder, default="demo_output", help="folder for the page and its pictures"
    )
    pictures_help = "approximate largest number of frames on the page"
    parser.add_argument("--pictures", type=int, default=150, help=pictures_help)
    frames_help = f"largest number of frames to play (default: all; {SYNTHETIC_FRAMES} for the synthetic drive)"
    parser.add_argument("--max-frames", type=int, help=frames_help)
    parser.add_argument("--seed", type=int, default=SYNTHETIC_SEED, help="seed of the synthetic drive")
    parser.add_argument("--threads", type=int, default=0, help="processor threads of the node; 0 = one per core")
    return parser


def _prepare_drive(args: argparse.Namespace) -> DemoDrive:
    """Return the drive that the arguments select, as a bag."""
    bag = args.output / DRIVE_BAG
    if args.synthetic:
        return synthetic_drive(bag, args.max_frames, args.seed)
    return open_drive(args.drive, bag, args.image_topic, args.max_frames)


def _default_rate(args: argparse.Namespace, drive: DemoDrive, bundle: Bundle) -> float:
    """Return 1 for the user's own drive, which may show drops; otherwise the highest rate without drops."""
    return 1.0 if args.drive is not None else fitting_rate(drive, bundle, args.threads)


def fitting_rate(drive: DemoDrive, bundle: Bundle, threads: int) -> float:
    """Return the speed, from _MIN_RATE to 1, at which the network should process every frame on this machine."""
    detector = open_detector(bundle, "onnxruntime", BackendOptions(threads=threads))
    score = bundle.contract.score_names[:1]
    detector.warm_up(score)
    times_s = []
    for _ in range(_TIMED_FRAMES):
        start_s = time.perf_counter()
        detector.detect(drive.first, score)
        times_s.append(time.perf_counter() - start_s)
    detector.close()
    needed_s = float(np.median(times_s)) * _LOAD_FACTOR + _ROS_S
    return round(min(1.0, max(_MIN_RATE, drive.period_s / needed_s)), 2)


def _play_through_node(drive: DemoDrive, bundle: Bundle, rate: float, args: argparse.Namespace) -> LiveRun:
    """Start the node in its own ROS domain, play the drive into it and record its outputs."""
    from anomseg_ros.replay.live import LABELS_TOPIC, MASK_TOPIC, SCORE_TOPIC, Recording, play_and_record

    outputs: Path = args.output / OUTPUTS_BAG
    shutil.rmtree(outputs, ignore_errors=True)
    frames_per_picture = drive.frames / args.pictures
    every_ns = round(drive.period_s * frames_per_picture * 1e9) if frames_per_picture > 1 else 0
    with ProgressLines() as lines:
        return play_and_record(
            drive.bag,
            drive.topic,
            outputs,
            ["--bundle", str(bundle.directory.resolve()), "--threads", str(args.threads)],
            rate,
            args.output / "node.log",
            lines,
            Recording((SCORE_TOPIC, LABELS_TOPIC, MASK_TOPIC), every_ns),
        )


def _result(drive: DemoDrive, bundle: Bundle, rate: float, run: LiveRun, shown: ShownDrive) -> DemoResult:
    return DemoResult(
        drive=drive.name,
        bundle=bundle.contract.name,
        backend=run.detector.get("backend", "unknown"),
        rate=rate,
        period_ms=drive.period_s / rate * 1e3,
        frames_in=run.frames,
        published=run.answered,
        dropped=run.dropped,
        lost=run.lost,
        bad=run.bad,
        processing_ms=dict(run.processing_ms),
        age_ms=dict(run.age_ms),
        anomalies=shown.anomalies,
        found=shown.anomalies_found,
        about=drive.about,
    )


def _print_result(result: DemoResult, page: Path) -> None:
    console = Console()
    counts = f"{result.frames_in} frames in, {result.published} out, {result.dropped} dropped, {result.lost} lost"
    table = Table("latency", "p50, ms", "p95, ms", "p99, ms", title=f"{counts}, {result.bad} bad", title_justify="left")
    for name, values in (("frame to listener", result.age_ms), ("arrival to output", result.processing_ms)):
        table.add_row(name, *(f"{values[key]:.1f}" if key in values else "-" for key in ("p50", "p95", "p99")))
    console.print(table)
    console.print(f"{pace(result)}\nopen {page}", soft_wrap=True, markup=False, highlight=False)
