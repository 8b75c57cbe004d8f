"""`anomseg datasets cut-paste`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from anomseg_ros.commands import options
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.cut_paste import PasteConfig
from anomseg_ros.datasets.cut_paste_dataset import Manifest
from anomseg_ros.datasets.cut_paste_write import WriteConfig, write_cut_paste
from anomseg_ros.datasets.outlier_objects import (
    ALL_KINDS,
    OVERLAP_CLASSES,
    DescribedSource,
    FolderObjects,
    ProceduralObjects,
)
from anomseg_ros.datasets.written_folder import PREVIEW
from anomseg_ros.errors import ConfigError

PROCEDURAL = "procedural"


def main(argv: Sequence[str] | None = None) -> int:
    """Write a dataset with outliers pasted in, or finish one; returns 0."""
    args = _parser().parse_args(argv)
    config = WriteConfig(args.seed, args.copies, args.limit, _paste_config(args))
    source = _source(args)
    dataset = open_named(args.dataset)
    with options.progress_bar() as bar:
        task = bar.add_task("cut-paste", total=None)
        manifest = write_cut_paste(
            dataset,
            source,
            args.output,
            config,
            overwrite=args.overwrite,
            threads=args.threads,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(_summary(manifest, args.output))
    return 0


def _parser() -> argparse.ArgumentParser:
    paste = PasteConfig()
    parser = options.parser(
        "datasets cut-paste",
        "Paste outliers into labelled frames and write a fixed, reproducible dataset for outlier exposure. Run again, "
        "it goes on where it was stopped.",
    )
    parser.add_argument("dataset", metavar="NAME=PATH[:SPLIT]", help="for example camvid=/data/CamVid:train")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset made with other options")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--copies", type=int, default=1, help="frames written per frame, each with other objects")
    parser.add_argument("--limit", type=int, metavar="N", help="take only the first N frames (default all)")
    parser.add_argument("--threads", type=int, default=2, help="frames made at a time; changes no byte")
    _add_object_options(parser)
    parser.add_argument(
        "--count", type=int, nargs=2, default=paste.objects, metavar=("MIN", "MAX"), help="objects per frame"
    )
    parser.add_argument(
        "--scale", type=float, nargs=2, default=paste.scale, metavar=("MIN", "MAX"), help="factor on an object's size"
    )
    parser.add_argument("--max-share", type=float, default=paste.max_share, help="of a frame, for all its objects")
    parser.add_argument(
        "--feather-radius-px", type=float, default=paste.feather_radius_px, help="standard deviation of the mask's blur"
    )
    parser.add_argument("--min-area-px", type=int, default=paste.min_area_px, help="fewest pixels of an object")
    parser.add_argument(
        "--low-share", type=float, default=paste.low_share, help="probability of standing in the lower two thirds"
    )
    parser.add_argument(
        "--tone-match", type=float, default=paste.tone_match, help="how far brightness follows the place, 0 to 1"
    )
    return parser


def _add_object_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--objects",
        default=PROCEDURAL,
        metavar="FOLDER",
        help="cut-out objects: COCO's folder, images/ with masks/, or PNG files with alpha; `procedural` draws them",
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        metavar="CLASS",
        help="classes of the folder to leave out, commas between them (default: those that overlap road scenes: "
        f"{', '.join(OVERLAP_CLASSES)})",
    )
    parser.add_argument(
        "--kinds", nargs="+", metavar="KIND", help=f"what `procedural` draws (default all: {', '.join(ALL_KINDS)})"
    )
    parser.add_argument(
        "--object-size-px",
        type=int,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="longer side of what `procedural` draws, before scaling (default 0.09 and 0.6 of the frames' height)",
    )


def _paste_config(args: argparse.Namespace) -> PasteConfig:
    return PasteConfig(
        objects=(args.count[0], args.count[1]),
        scale=(args.scale[0], args.scale[1]),
        max_share=args.max_share,
        feather_radius_px=args.feather_radius_px,
        min_area_px=args.min_area_px,
        low_share=args.low_share,
        tone_match=args.tone_match,
    )


def _source(args: argparse.Namespace) -> DescribedSource:
    if args.objects == PROCEDURAL:
        if args.exclude:
            raise ConfigError("--exclude is for a folder of objects; `procedural` has kinds: give --kinds")
        size_px = None if args.object_size_px is None else (args.object_size_px[0], args.object_size_px[1])
        return ProceduralObjects(options.several(args.kinds) if args.kinds else ALL_KINDS, size_px)
    for name in ("kinds", "object_size_px"):
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')} is for drawn objects; leave it out, or --objects")
    exclude = OVERLAP_CLASSES if args.exclude is None else options.several(args.exclude)
    return FolderObjects(args.objects, exclude)


def _summary(manifest: Manifest, folder: Path) -> str:
    made_of = manifest.made_of
    return (
        f"{manifest.count} frames of {made_of.source}{f' {made_of.split}' if made_of.split else ''} with objects "
        f"({made_of.objects.name}) in {str(folder)!r}, sha256 {manifest.sha256[:16]}…; look at "
        f"{str(folder / PREVIEW)!r}, read them as cut_paste={folder}"
    )
