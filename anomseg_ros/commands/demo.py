"""`anomseg demo`: a drive goes through the real node under real ROS 2; a page with what it said comes out."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.commands import options
from anomseg_ros.commands.demo_drive import SYNTHETIC_FRAMES, SYNTHETIC_SEED, DemoDrive, open_drive, synthetic_drive
from anomseg_ros.commands.demo_frames import ShownDrive, show_drive
from anomseg_ros.commands.demo_page import pace, write_page
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.resources import DEMO_BUNDLE, ROAD_BUNDLE, SYNTHETIC_BUNDLE, find_bundle
from anomseg_ros.errors import ConfigError

if TYPE_CHECKING:
    from anomseg_ros.node.live import LiveRun

DRIVE_BAG, OUTPUTS_BAG = "drive_bag", "outputs_bag"

_TIMED_FRAMES = 7
_MARGIN = 1.25
_ROS_S = 0.01
"""A frame is given this much more than the network needs alone: its way through ROS, and what else the machine does."""

_SLOWEST = 0.25
"""The shipped drive is never played slower than this: a network that needs more time is too slow for it."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured. Latencies in milliseconds by percentile; see node.live for what they are.

    rate: speed of the replay, 1 = the drive's own. period_ms: between two frames at that speed. anomalies: known ones,
    of which found were marked at least half in some frame; None where none are known.
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
    """Parse the arguments, prepare the drive, play it through the node, and write the page."""
    args = _parser().parse_args(argv)
    if args.synthetic and args.drive is not None:
        raise ConfigError(f"got the drive {str(args.drive)!r} and --synthetic; give one of them")
    for option in ("frames", "pictures"):
        given = getattr(args, option)
        if given is not None and given < 1:
            raise ConfigError(f"got --{option} {given}; expected at least 1")
    args.output.mkdir(parents=True, exist_ok=True)
    bundle = load_bundle(find_bundle(args.bundle)) if args.bundle else None
    drive = prepared_drive(args)
    bundle = bundle or load_bundle(find_bundle(drive.bundle))
    rate = args.rate if args.rate is not None else default_rate(args, drive, bundle)
    run = play_through_node(drive, bundle, rate, args)
    shown = show_drive(drive, args.output / OUTPUTS_BAG, bundle, run.detector, args.output)
    result = _result(drive, bundle, rate, run, shown)
    (args.output / "result.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    page = write_page(args.output / "index.html", result, shown, run.detector)
    _print_result(result, page)
    return 0 if result.published else 1


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("demo", "Play a drive through the node and write a page of what it said.")
    parser.add_argument(
        "drive",
        nargs="?",
        type=Path,
        help="video, or MCAP or sqlite3 bag with a camera topic (default: the shipped drive with pasted objects)",
    )
    parser.add_argument("--synthetic", action="store_true", help="play a synthetic drive instead")
    defaults = f"{DEMO_BUNDLE} for the shipped drive, {ROAD_BUNDLE} for yours, {SYNTHETIC_BUNDLE} for the synthetic one"
    parser.add_argument("--bundle", help=f"bundle directory or name of a shipped bundle (default: {defaults})")
    parser.add_argument("--topic", help="camera topic of the bag (default: its only one)")
    parser.add_argument(
        "--rate",
        type=float,
        help="speed of the replay (default: 1; what is shipped is played slower where the network needs it)",
    )
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for pictures and page")
    parser.add_argument("--pictures", type=int, default=150, help="show at most about this many frames")
    parser.add_argument(
        "--frames",
        type=int,
        help=f"play at most this many frames of a video (default: all, {SYNTHETIC_FRAMES} of the synthetic drive)",
    )
    parser.add_argument("--seed", type=int, default=SYNTHETIC_SEED, help="which synthetic drive")
    parser.add_argument("--threads", type=int, default=0, help="processor threads of the node; 0 = one per core")
    return parser


def prepared_drive(args: argparse.Namespace) -> DemoDrive:
    """Return the drive that the arguments ask for, as a bag."""
    bag = args.output / DRIVE_BAG
    if args.synthetic:
        return synthetic_drive(bag, args.frames, args.seed)
    return open_drive(args.drive, bag, args.topic, args.frames)


def default_rate(args: argparse.Namespace, drive: DemoDrive, bundle: Bundle) -> float:
    """Return 1 for a drive of the user's, which shows what this machine drops; else what the network keeps up with."""
    return 1.0 if args.drive is not None else fitting_rate(drive, bundle, args.threads)


def fitting_rate(drive: DemoDrive, bundle: Bundle, threads: int) -> float:
    """Return the speed, 1 or less, at which this machine's network keeps up with every frame of the drive."""
    detector = open_detector(bundle, "onnxruntime", BackendOptions(threads=threads))
    score = bundle.contract.score_names[:1]
    detector.warm_up(score)
    times_s = []
    for _ in range(_TIMED_FRAMES):
        started = time.perf_counter()
        detector.detect(drive.first, score)
        times_s.append(time.perf_counter() - started)
    detector.close()
    needed_s = float(np.median(times_s)) * _MARGIN + _ROS_S
    return round(min(1.0, max(_SLOWEST, drive.period_s / needed_s)), 2)


def play_through_node(drive: DemoDrive, bundle: Bundle, rate: float, args: argparse.Namespace) -> LiveRun:
    """Start the node in its own ROS domain, play the drive into it and keep what it publishes."""
    import shutil

    from anomseg_ros.node.live import LABELS_TOPIC, MASK_TOPIC, SCORE_TOPIC, Recording, play_and_record

    outputs: Path = args.output / OUTPUTS_BAG
    shutil.rmtree(outputs, ignore_errors=True)
    shown = max(args.pictures, 1)
    every_ns = round(drive.period_s * drive.frames / shown * 1e9) if drive.frames > shown else 0
    with options.progress_bar() as progress:
        task = progress.add_task(f"{bundle.contract.name} in the node", total=drive.frames)
        return play_and_record(
            drive.bag,
            drive.topic,
            outputs,
            ["--bundle", str(bundle.directory.resolve()), "--threads", str(args.threads)],
            rate,
            args.output / "node.log",
            lambda done, total: progress.update(task, completed=done, total=total),
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
        anomalies=None if shown.found is None else shown.found[1],
        found=None if shown.found is None else shown.found[0],
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
