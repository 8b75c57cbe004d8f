"""`anomseg bag write`: write a folder of images, a video or a dataset with ground truth as a ROS 2 bag."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from anomseg_ros.bags.pinhole_camera import DEFAULT_FOV_DEG
from anomseg_ros.bags.write import DEFAULT_TOPIC, STORAGES, BagWriter, write_image_bag, write_labelled_frames
from anomseg_ros.commands import options
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.video import Video, is_video
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.bag import CLASSES_FACT, DATASET_FACT, LABEL_SET_FACT, classes_to_fact
from anomseg_ros.datasets.dataset import Dataset, LabelledFrame
from anomseg_ros.errors import DatasetError

_DEFAULT_RATE_HZ = 10.0


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg bag write`."""
    parser = options.parser(
        "bag write",
        "Write the images of a folder (in natural order of their names, 2 before 10), the frames of a video or the "
        "frames of a dataset as a ROS 2 bag. Every frame has a camera_info with the same stamp, in the namespace of "
        "the image topic. The frames of a dataset also have the available ground truth there: ground_truth/anomaly (0 "
        "known, 1 anomaly, 255 ignored) and ground_truth/labels (train ids).",
        {"--rate": "--fps", "--topic": "--image-topic"},
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, metavar="PATH", help="folder with png, jpg or webp images, or a video")
    source.add_argument(
        "--dataset",
        metavar="NAME=PATH",
        help="dataset with ground truth, see `anomseg datasets list`; NAME=PATH:SPLIT selects a split",
    )
    parser.add_argument(
        "--output", type=options.output_folder, required=True, metavar="FILE", help="directory of the bag"
    )
    fps_help = f"frames per second of the stamps (default: the rate of a video, else {_DEFAULT_RATE_HZ:g})"
    parser.add_argument("--fps", type=options.number, metavar="HZ", help=fps_help)
    parser.add_argument("--storage", choices=tuple(STORAGES), default="mcap", help="file format of the bag")
    parser.add_argument("--image-topic", default=DEFAULT_TOPIC, help="topic of the images")
    parser.add_argument(
        "--compressed",
        action="store_true",
        help="write CompressedImage on TOPIC/compressed: JPEG and PNG files of a folder unchanged, frames of a video "
        "as JPEG, other images as PNG",
    )
    parser.add_argument("--frame-id", default="camera", metavar="NAME", help="frame_id of every header")
    parser.add_argument(
        "--fov-deg",
        type=options.number,
        default=DEFAULT_FOV_DEG,
        metavar="DEG",
        help="horizontal field of view of the pinhole camera in camera_info",
    )
    parser.add_argument(
        "--start-time",
        type=options.number,
        metavar="SECONDS",
        help="stamp of the first frame in seconds since 1970 (default: now)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bag")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the bag; return 0. Raises BagError, DatasetError."""
    args = argument_parser().parse_args(argv)
    if args.fps is None:
        args.fps = _usual_rate_hz(args.images)
    with ProgressLines() as lines:
        write = _write_images if args.dataset is None else _write_dataset
        frames, truth = write(args, lines)
    topic = f"{args.image_topic}/compressed" if args.compressed else args.image_topic
    seconds = frames / args.fps
    print(f"{args.output}: {frames} frames on {topic}{truth}, {seconds:.1f} s at {args.fps:g} Hz")
    return 0


def _usual_rate_hz(images: Path | None) -> float:
    """Return the rate that a video states, else the default."""
    stated = Video(images).rate_hz if images is not None and is_video(images) else 0.0
    return stated if stated > 0 else _DEFAULT_RATE_HZ


def _write_images(args: argparse.Namespace, lines: ProgressLines) -> tuple[int, str]:
    frames = write_image_bag(
        args.images,
        args.output,
        args.fps,
        storage=args.storage,
        topic=args.image_topic,
        compressed=args.compressed,
        frame_id=args.frame_id,
        fov_deg=args.fov_deg,
        start_time_s=args.start_time,
        overwrite=args.overwrite,
        progress=lines,
    )
    return frames, ""


def _write_dataset(args: argparse.Namespace, lines: ProgressLines) -> tuple[int, str]:
    """Write the bag; return the number of frames and a description of the ground truth."""
    dataset = open_named(args.dataset)
    if dataset.problems:
        raise DatasetError(
            f"{dataset.name}: {len(dataset.problems)} problems, the first: {dataset.problems[0]}; "
            f"`anomseg datasets check {args.dataset}` lists them"
        )
    with BagWriter(
        args.output,
        storage=args.storage,
        topic=args.image_topic,
        compressed=args.compressed,
        frame_id=args.frame_id,
        fov_deg=args.fov_deg,
        overwrite=args.overwrite,
    ) as bag:
        bag.add_fact(DATASET_FACT, dataset.name)
        if dataset.label_set is not None:
            bag.add_fact(LABEL_SET_FACT, dataset.label_set)
        if dataset.classes is not None:
            bag.add_fact(CLASSES_FACT, classes_to_fact(dataset.classes))
        frames = lines.bars.track(_frames(dataset), total=len(dataset), description="frames written")
        count = write_labelled_frames(bag, frames, args.fps, args.start_time)
        written = [topic for topic in (bag.anomaly_topic, bag.labels_topic) if topic in bag.topics]
    return count, f" with {' and '.join(written)}" if written else " without ground truth: the dataset has none"


def _frames(dataset: Dataset) -> Iterator[LabelledFrame]:
    return (dataset.load(index) for index in range(len(dataset)))
