"""`anomseg datasets cut-paste`: paste outliers into labelled frames and write a dataset."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from anomseg_ros.commands import options
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.schema import from_plain
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.cut_paste import Manifest
from anomseg_ros.datasets.cut_paste_write import WriteConfig, write_cut_paste
from anomseg_ros.datasets.written_folder import PREVIEW
from anomseg_ros.errors import ConfigError
from anomseg_ros.outliers.cut_paste import PasteConfig
from anomseg_ros.outliers.files import PARTS
from anomseg_ros.outliers.mixture import PROCEDURAL, ObjectsConfig, open_objects
from anomseg_ros.outliers.objects import ALL_KINDS, OVERLAP_CLASSES, DescribedSource, ProceduralObjects
from anomseg_ros.outliers.paste_config import CUT_OBJECTS, PLACEMENTS

_PASTE_PREFIX = "paste_"
"""Prefix of argument names of PasteConfig's fields, since the field `objects` conflicts with --objects."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write a dataset with pasted outliers, or continue an incomplete one; return 0."""
    args = argument_parser().parse_args(argv)
    config = WriteConfig(args.seed, args.copies, args.limit, _paste_config(args))
    source = _source(args)
    dataset = open_named(args.dataset)
    with ProgressLines() as lines:
        manifest = write_cut_paste(
            dataset,
            source,
            args.output,
            config,
            overwrite=args.overwrite,
            threads=args.workers,
            progress=lines,
        )
    print(_summary(manifest, args.output))
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg datasets cut-paste`."""
    parser = options.parser(
        "datasets cut-paste",
        "Paste outliers into labelled frames and write a fixed, reproducible dataset for outlier exposure. The same "
        "command continues an interrupted run.",
        {"--threads": "--workers"},
    )
    parser.add_argument("dataset", metavar="NAME=PATH[:SPLIT]", help="for example camvid=/data/CamVid:train")
    parser.add_argument("--output", type=options.output_folder, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset made with other options")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--copies", type=int, default=1, help="copies of each frame, each with other objects")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N frames (default: all)")
    threads_help = "number of frames that are made in parallel; does not change the result"
    parser.add_argument("--workers", type=int, default=2, help=threads_help)
    _add_object_options(parser)
    _add_paste_options(parser)
    return parser


def _add_object_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--objects",
        nargs="+",
        default=[PROCEDURAL],
        metavar="SOURCE",
        help="sources of objects: `procedural` for drawn ones, or a folder with COCO, with images/ and masks/ or "
        "YOLO's labels/, or with PNG files with alpha. A source may have settings: "
        "'{source: FOLDER, weight: 2, erode_share: 0.05}' (default: procedural)",
    )
    part_help = "part of the folders' pictures; val is one picture in five"
    parser.add_argument("--part", default="all", choices=PARTS, help=part_help)
    parser.add_argument(
        "--exclude",
        nargs="+",
        metavar="CLASS",
        help="classes of the folders to exclude, comma separated (default: those that occur in road scenes: "
        f"{', '.join(OVERLAP_CLASSES)})",
    )
    kinds_help = f"kinds of objects that `procedural` draws (default: all: {', '.join(ALL_KINDS)})"
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help=kinds_help)
    parser.add_argument(
        "--object-size-px",
        type=int,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="longer side of drawn objects, before scaling (default: 0.09 and 0.6 of the frames' height)",
    )


_PASTE_HELP = {
    "objects": "objects per frame",
    "scale": "factor for an object's size",
    "max_share": "largest share of a frame for all its objects",
    "feather_radius_px": "standard deviation of the mask's blur",
    "min_area_px": "smallest area of an object, in pixels",
    "low_share": "probability of a place in the lower two thirds of the frame",
    "tone_match": "degree to which brightness is matched to the frame, 0 to 1",
    "placement": "`road`: objects stand on the ground, scaled by their distance",
    "horizon": "bounds of the horizon's row, as shares of the height",
    "camera_height_m": "height of the camera above the road",
    "size_m": "longer side of an object on the ground",
    "free_share": "share of objects that are placed as with `anywhere`",
    "max_upscale": "largest factor by which objects are enlarged",
    "cut_share": "share of objects that are cut off by the frame's border",
    "cut_objects": "placement of objects that are cut off in their own picture",
    "feather_range_px": "range of feather radii, drawn per object; replaces --feather-radius-px",
    "color_match": "degree to which each channel's mean and contrast are matched to the frame, 0 to 1; replaces "
    "--tone-match",
    "blur_match": "degree to which sharp objects are matched to the frame's sharpness, 0 to 1",
    "noise_match": "degree to which clean objects are matched to the frame's noise, 0 to 1",
    "lighting": "largest relative change of brightness across an object",
    "jpeg_share": "share of objects with JPEG artefacts",
    "shadow": "share of objects on the ground that have a shadow",
    "distractor_share": "share of frames with stains, shadows, patches, puddles, strokes or leaves that are not "
    "labelled as outliers",
    "distractors": "number of these in such a frame",
}
_CHOICES = {"placement": PLACEMENTS, "cut_objects": CUT_OBJECTS}


def _add_paste_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of PasteConfig; `objects` is --count, since --objects is the list of sources."""
    hints = typing.get_type_hints(PasteConfig)
    for field in dataclasses.fields(PasteConfig):
        types = _element_types(hints[field.name])
        name = "count" if field.name == "objects" else field.name
        shape: dict[str, Any] = {"nargs": 2, "metavar": ("MIN", "MAX")} if len(types) == 2 else {}
        if len(types) == 1 and field.name not in _CHOICES:
            shape["metavar"] = "N"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=_PASTE_PREFIX + field.name,
            type=options.number if types[0] is float else types[0],
            default=field.default,
            choices=_CHOICES.get(field.name),
            help=_PASTE_HELP[field.name],
            **shape,
        )


def _element_types(hint: Any) -> tuple[Any, ...]:
    """Return (float,) for the type hints `float` and `float | None`, and (float, float) for pairs of floats."""
    args = tuple(arg for arg in typing.get_args(hint) if arg is not type(None))
    return _element_types(args[0]) if len(args) == 1 else args or (hint,)


def _paste_config(args: argparse.Namespace) -> PasteConfig:
    values = {field.name: getattr(args, _PASTE_PREFIX + field.name) for field in dataclasses.fields(PasteConfig)}
    return from_plain(PasteConfig, values, "cut-paste")


def _source(args: argparse.Namespace) -> DescribedSource:
    if args.objects == [PROCEDURAL]:
        for name in ("exclude", "part"):
            if getattr(args, name) not in (None, "all"):
                raise ConfigError(f"--{name} is for folders of objects; for `procedural` give --kinds")
        size_px = None if args.object_size_px is None else (args.object_size_px[0], args.object_size_px[1])
        return ProceduralObjects(options.split_names(args.kinds) if args.kinds else ALL_KINDS, size_px)
    for name in ("kinds", "object_size_px"):
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')} is for drawn objects; omit it or --objects")
    return open_objects([_objects_config(text, args) for text in args.objects])


def _objects_config(text: str, args: argparse.Namespace) -> ObjectsConfig:
    """Return the source that an argument of --objects describes; --part and --exclude are defaults for folders."""
    settings: Any = {"source": text}
    if text.startswith("{"):
        try:
            settings = parse_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--objects {text!r} is not YAML: {' '.join(str(error).split())}") from None
    if isinstance(settings, dict) and settings.get("source", PROCEDURAL) != PROCEDURAL:
        exclude = options.split_names(args.exclude) if args.exclude else None
        settings = {"part": args.part, "exclude": exclude, **settings}
    return from_plain(ObjectsConfig, settings, f"--objects {text}")


def _summary(manifest: Manifest, folder: Path) -> str:
    origin = manifest.made_of
    source = f"{origin.source} {origin.split}" if origin.split else origin.source
    return (
        f"{manifest.count} frames of {source} with objects ({origin.objects.name}) in {str(folder)!r}, "
        f"sha256 {manifest.sha256[:16]}…; preview: {str(folder / PREVIEW)!r}; use the dataset as cut_paste={folder}"
    )
