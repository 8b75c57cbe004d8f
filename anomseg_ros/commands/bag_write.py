"""`anomseg bag write`: a folder of images, or a dataset with its ground truth, becomes a ROS 2 bag of camera frames."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anomseg_ros.bags.write import (
    DEFAULT_FOV_DEG,
    DEFAULT_TOPIC,
    STORAGES,
    BagWriter,
    write_image_bag,
    write_labelled_frames,
)
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.base import Dataset, LabelledFrame
from anomseg_ros.errors import DatasetError
from anomseg_ros.evaluation.bag import CLASSES_FACT, DATASET_FACT, LABEL_SET_FACT, classes_to_fact


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    made = argparse.ArgumentParser(
        prog="anomseg bag write",
        description="Write the images of a folder (in natural order of their names, 2 before 10) or the frames of a "
        "dataset as a ROS 2 bag. Every frame gets a camera_info with the same stamp, in the namespace of the image "
        "topic; a dataset's frames also get their ground truth there: ground_truth/anomaly (0 known, 1 anomaly, "
        "255 ignored) and ground_truth/labels (train ids), where the dataset has them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_source(made)
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
        help="write CompressedImage on TOPIC/compressed: JPEG and PNG files of a folder as they are, others as PNG",
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


def _add_source(made: argparse.ArgumentParser) -> None:
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder with png, jpg or webp images",
        default=argparse.SUPPRESS,
    )
    source.add_argument(
        "--dataset",
        metavar="NAME=PATH",
        help="dataset with ground truth, see `anomseg datasets list`; NAME=PATH:SPLIT chooses a split",
        default=argparse.SUPPRESS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0. Raises BagError, DatasetError."""
    options = parser().parse_args(argv)
    columns = (TextColumn("[bold]writing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        write = _write_dataset if "dataset" in options else _write_images
        frames, beside = write(options, bar)
    topic = f"{options.topic}/compressed" if options.compressed else options.topic
    seconds = frames / options.rate
    print(f"{options.output}: {frames} frames on {topic}{beside}, {seconds:.1f} s at {options.rate:g} Hz")
    return 0


def _write_images(options: argparse.Namespace, bar: Progress) -> tuple[int, str]:
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
    return frames, ""


def _write_dataset(options: argparse.Namespace, bar: Progress) -> tuple[int, str]:
    dataset = open_named(options.dataset)
    if dataset.problems:
        raise DatasetError(
            f"{dataset.name}: {len(dataset.problems)} problems, the first: {dataset.problems[0]}; "
            f"`anomseg datasets check {options.dataset}` lists them"
        )
    with BagWriter(
        options.output,
        storage=options.storage,
        topic=options.topic,
        compressed=options.compressed,
        frame_id=options.frame_id,
        fov_deg=options.fov_deg,
        overwrite=options.overwrite,
    ) as bag:
        bag.state(DATASET_FACT, dataset.name)
        if dataset.label_set is not None:
            bag.state(LABEL_SET_FACT, dataset.label_set)
        if dataset.classes is not None:
            bag.state(CLASSES_FACT, classes_to_fact(dataset.classes))
        frames = bar.track(_frames(dataset), total=len(dataset), description="write")
        count = write_labelled_frames(bag, frames, options.rate, getattr(options, "start_time", None))
        written = [topic for topic in (bag.anomaly_topic, bag.labels_topic) if topic in bag.topics]
    return count, f" with {' and '.join(written)}" if written else " without ground truth: the dataset has none"


def _frames(dataset: Dataset) -> Iterator[LabelledFrame]:
    return (dataset.load(index) for index in range(len(dataset)))
