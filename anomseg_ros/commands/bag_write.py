"""`anomseg bag write`: a folder of images becomes a ROS 2 bag of camera frames."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anomseg_ros.bags.write import DEFAULT_FOV_DEG, DEFAULT_TOPIC, STORAGES, write_image_bag


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    made = argparse.ArgumentParser(
        prog="anomseg bag write",
        description="Write the images of a folder as a ROS 2 bag, in natural order of their names (2 before 10). Every "
        "frame gets a camera_info with the same stamp, in the namespace of the image topic.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with png, jpg or webp images",
        default=argparse.SUPPRESS,
    )
    made.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the bag to write, a directory",
        default=argparse.SUPPRESS,
    )
    made.add_argument("--rate", type=float, default=10.0, metavar="HZ", help="frames per second of the stamps")
    made.add_argument("--storage", choices=tuple(STORAGES), default="mcap", help="file format of the bag")
    made.add_argument("--topic", default=DEFAULT_TOPIC, help="topic of the images")
    made.add_argument(
        "--compressed",
        action="store_true",
        help="write CompressedImage on TOPIC/compressed: JPEG and PNG files as they are, others as PNG",
    )
    made.add_argument("--frame-id", default="camera", metavar="NAME", help="frame_id of every header")
    made.add_argument(
        "--fov-deg",
        type=float,
        default=DEFAULT_FOV_DEG,
        metavar="DEG",
        help="horizontal field of view of the pinhole camera that camera_info describes",
    )
    made.add_argument(
        "--start-time",
        type=float,
        metavar="SECONDS",
        help="stamp of the first frame in seconds since 1970 (default: now)",
        default=argparse.SUPPRESS,
    )
    made.add_argument("--overwrite", action="store_true", help="replace a bag that is already there")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0. Raises BagError."""
    options = parser().parse_args(argv)
    columns = (TextColumn("[bold]writing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("write", total=None)
        frames = write_image_bag(
            options.images,
            options.output,
            options.rate,
            storage=options.storage,
            topic=options.topic,
            compressed=options.compressed,
            frame_id=options.frame_id,
            fov_deg=options.fov_deg,
            start_time_s=getattr(options, "start_time", None),
            overwrite=options.overwrite,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    topic = f"{options.topic}/compressed" if options.compressed else options.topic
    print(f"{options.output}: {frames} frames on {topic}, {frames / options.rate:.1f} s at {options.rate:g} Hz")
    return 0
