"""`anomseg datasets pseudo-label`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from anomseg_ros.backends import open_detector
from anomseg_ros.commands import options
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.datasets.bundle_teacher import BundleTeacher
from anomseg_ros.datasets.pseudo_label import LabelConfig, Teacher
from anomseg_ros.datasets.pseudo_label_dataset import Manifest
from anomseg_ros.datasets.pseudo_label_sources import open_sources
from anomseg_ros.datasets.pseudo_label_write import UNCERTAIN_NAME, UNLABELLED_NAME, WriteConfig, write_pseudo_labels
from anomseg_ros.datasets.written_folder import PREVIEW
from anomseg_ros.errors import ConfigError

NAMED = 10
"""How many failures are printed; the manifest has them all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Label frames and write them, or go on; returns 0, or 1 where a frame failed."""
    args = _parser().parse_args(argv)
    config = _config(args)
    sources = open_sources(args.frames, args.video_step, options.several(args.known))
    teachers = [_teacher(text) for text in args.teacher]
    with options.progress_bar() as bar:
        task = bar.add_task("pseudo-label", total=sum(map(len, sources)))
        manifest = write_pseudo_labels(
            sources,
            teachers,
            args.output,
            config,
            overwrite=args.overwrite,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for failure in manifest.failures[:NAMED]:
        print(f"failed: {failure}", file=sys.stderr)
    print(_summary(manifest, args.output))
    return 1 if manifest.failures else 0


def _parser() -> argparse.ArgumentParser:
    labels = LabelConfig()
    parser = options.parser(
        "datasets pseudo-label",
        "Label frames in Cityscapes' 19 classes by networks that know them, and write them as a dataset to train on. "
        "Run again, it goes on where it was stopped.",
    )
    parser.add_argument(
        "--frames",
        nargs="+",
        required=True,
        metavar="KIND=PATH",
        help="a dataset by name (camvid=/data/CamVid:train; its own labels are kept), folder=PATH of pictures, "
        "scenery=PATH of pictures that show nothing but known classes, or video=FILE",
    )
    parser.add_argument(
        "--teacher",
        nargs="+",
        required=True,
        metavar="TEACHER",
        help="a checkpoint as NETWORK=FILE, or a bundle (its label, weighted by one minus its msp score)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset made with other options")
    parser.add_argument("--video-step", type=int, default=1, metavar="N", help="take every n-th frame of a video")
    parser.add_argument("--size", metavar="HxW", help="size to write, for example 512x1024 (default: each frame's own)")
    parser.add_argument("--flip", action="store_true", help="ask the teachers about mirrored frames too")
    parser.add_argument(
        "--scales", type=options.names, default="1", help="factors on the frames' size, commas between them"
    )
    parser.add_argument(
        "--confidence", type=float, default=labels.confidence, help="probability below which a class is uncertain"
    )
    parser.add_argument(
        "--known",
        nargs="+",
        default=(),
        metavar="SOURCE",
        help="sources that show nothing but known classes, by kind (the second of a kind is KIND2): their uncertain "
        "pixels are known with the class uncertain (252), as scenery's are, not unlabelled (255)",
    )
    parser.add_argument(
        "--validation", nargs="+", default=(), metavar="PATTERN", help="frames to hold out, such as 'camvid-0016E5_*'"
    )
    parser.add_argument(
        "--validation-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of each source that no pattern matches, hold out the last frames",
    )
    return parser


def _config(args: argparse.Namespace) -> WriteConfig:
    if args.video_step < 1:
        raise ConfigError(f"--video-step is {args.video_step}; expected at least 1")
    labels = LabelConfig(
        size_px=None if args.size is None else _size(args.size),
        scales=tuple(_number(text) for text in args.scales),
        flip=args.flip,
        confidence=args.confidence,
    )
    return WriteConfig(labels, tuple(args.validation), args.validation_share)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--size is {text!r}; expected HEIGHTxWIDTH in pixels, such as 512x1024")
    return int(height), int(width)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--scales holds {text!r}; expected numbers, such as 0.75,1,1.25") from None


def _teacher(text: str) -> Teacher:
    name, equals, path = text.partition("=")
    if not equals:
        return BundleTeacher(open_detector(find_bundle(text)))
    from anomseg_ros.training.teacher import NetworkTeacher  # needs torch

    return NetworkTeacher(name, Path(path).expanduser())


def _summary(manifest: Manifest, folder: Path) -> str:
    rows = [
        f"{name}: {result.written} of {result.stated} frames, {result.validation} held out, mean confidence "
        f"{result.confidence:.3f}, agreement {result.agreement:.3f}"
        for name, result in manifest.sources.items()
    ]
    without = ", ".join(f"{manifest.shares[name]:.1%} {name}" for name in (UNCERTAIN_NAME, UNLABELLED_NAME))
    return "\n".join(
        [
            *rows,
            f"{manifest.count} frames in {str(folder)!r} ({without}), {len(manifest.failures)} failed, sha256 "
            f"{manifest.sha256[:16]}…; look at {str(folder / PREVIEW)!r}, read them as pseudo_label={folder}",
        ]
    )
