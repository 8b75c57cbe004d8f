"""`anomseg datasets pseudo-label`: label frames by teacher networks and write a dataset."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from anomseg_ros.backends import open_detector
from anomseg_ros.commands import options
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.datasets.bundle_teacher import BundleTeacher
from anomseg_ros.datasets.pseudo_label import LabelConfig, Teacher
from anomseg_ros.datasets.pseudo_label_dataset import Manifest
from anomseg_ros.datasets.pseudo_label_sources import open_sources
from anomseg_ros.datasets.pseudo_label_write import UNCERTAIN_NAME, UNLABELLED_NAME, WriteConfig, write_pseudo_labels
from anomseg_ros.datasets.written_folder import PREVIEW
from anomseg_ros.errors import ConfigError

PRINTED_FAILURES = 10
"""Largest number of printed failures; the manifest has all of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Label frames and write a dataset, or continue an incomplete one; return 0, or 1 if a frame failed."""
    args = argument_parser().parse_args(argv)
    config = _config(args)
    sources = open_sources(args.frames, args.video_step, options.split_names(args.known))
    teachers = [_teacher(text) for text in args.teacher]
    with ProgressLines() as lines:
        manifest = write_pseudo_labels(
            sources,
            teachers,
            args.output,
            config,
            overwrite=args.overwrite,
            progress=lines,
        )
    for failure in manifest.failures[:PRINTED_FAILURES]:
        print(f"failed: {failure}", file=sys.stderr)
    print(_summary(manifest, args.output))
    return 1 if manifest.failures else 0


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg datasets pseudo-label`."""
    parser = options.parser(
        "datasets pseudo-label",
        "Label frames with Cityscapes' 19 classes by teacher networks, and write a dataset for training. The same "
        "command continues an interrupted run.",
    )
    parser.add_argument(
        "--frames",
        nargs="+",
        required=True,
        metavar="KIND=PATH",
        help="a dataset by name (camvid=/data/CamVid:train; its labels are kept), folder=PATH of pictures, "
        "scenery=PATH of pictures that show only known classes, or video=FILE",
    )
    parser.add_argument(
        "--teacher",
        nargs="+",
        required=True,
        metavar="TEACHER",
        help="a checkpoint as NETWORK=FILE, or a bundle (its labels are weighted by their confidence)",
    )
    parser.add_argument("--output", type=options.output_folder, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset made with other options")
    parser.add_argument("--video-step", type=int, default=1, metavar="N", help="use every n-th frame of a video")
    size_help = "size of the written frames, for example 512x1024 (default: that of each frame)"
    parser.add_argument("--size", metavar="HxW", help=size_help)
    _add_label_options(parser)
    _add_validation_options(parser)
    return parser


def _add_label_options(parser: argparse.ArgumentParser) -> None:
    labels = LabelConfig()
    parser.add_argument("--flip", action="store_true", help="run the teachers on mirrored frames too")
    scales_help = "factors for the frames' size, comma separated"
    parser.add_argument("--scales", type=options.names, default="1", help=scales_help)
    parser.add_argument(
        "--confidence",
        type=options.number,
        default=labels.confidence,
        help="probability below which a class is uncertain",
    )
    parser.add_argument(
        "--own-confidence",
        type=options.number,
        metavar="P",
        help="the same for pixels whose label in the dataset allows a few classes, such as CamVid's cyclist: rider or "
        "bicycle (default: --confidence)",
    )
    parser.add_argument(
        "--known",
        nargs="+",
        default=(),
        metavar="SOURCE",
        help="sources that show only known classes, by kind (the second source of a kind is KIND2): as for scenery, "
        "the label of their uncertain pixels is 252 (known, class uncertain), not 255 (unlabelled)",
    )


def _add_validation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--validation", nargs="+", default=(), metavar="PATTERN", help="frames to hold out, such as 'camvid-0016E5_*'"
    )
    parser.add_argument(
        "--validation-share",
        type=options.number,
        default=0.0,
        metavar="SHARE",
        help="share of last frames to hold out, for each source that no pattern matches",
    )


def _config(args: argparse.Namespace) -> WriteConfig:
    if args.video_step < 1:
        raise ConfigError(f"--video-step is {args.video_step}; expected at least 1")
    labels = LabelConfig(
        size_px=None if args.size is None else _size(args.size),
        scales=tuple(_number(text) for text in args.scales),
        flip=args.flip,
        confidence=args.confidence,
        own_confidence=args.own_confidence,
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
        raise ConfigError(f"--scales has {text!r}; expected numbers, such as 0.75,1,1.25") from None


def _teacher(text: str) -> Teacher:
    name, equals, path = text.partition("=")
    if not equals:
        return BundleTeacher(open_detector(find_bundle(text)))
    from anomseg_ros.training.teacher import NetworkTeacher  # needs torch

    return NetworkTeacher(name, Path(path).expanduser())


def _summary(manifest: Manifest, folder: Path) -> str:
    lines = [
        f"{name}: {result.written} of {result.stated} frames, {result.validation} held out, mean confidence "
        f"{result.confidence:.3f}, agreement {result.agreement:.3f}"
        for name, result in manifest.sources.items()
    ]
    shares = ", ".join(f"{manifest.shares[name]:.1%} {name}" for name in (UNCERTAIN_NAME, UNLABELLED_NAME))
    lines.append(
        f"{manifest.count} frames in {str(folder)!r} ({shares}), {len(manifest.failures)} failed, "
        f"sha256 {manifest.sha256[:16]}…; preview: {str(folder / PREVIEW)!r}; use the dataset as pseudo_label={folder}"
    )
    return "\n".join(lines)
