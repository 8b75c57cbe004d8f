"""`anomseg datasets cut-paste`."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from anomseg_ros.commands import options
from anomseg_ros.core.schema import from_plain
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.cut_paste import PasteConfig
from anomseg_ros.datasets.cut_paste_dataset import Manifest
from anomseg_ros.datasets.cut_paste_write import WriteConfig, write_cut_paste
from anomseg_ros.datasets.outlier_files import PARTS
from anomseg_ros.datasets.outlier_mixture import PROCEDURAL, ObjectsConfig, open_objects
from anomseg_ros.datasets.outlier_objects import ALL_KINDS, OVERLAP_CLASSES, DescribedSource, ProceduralObjects
from anomseg_ros.datasets.paste_config import CUT_OBJECTS, PLACEMENTS
from anomseg_ros.datasets.written_folder import PREVIEW
from anomseg_ros.errors import ConfigError

_PASTE = "paste_"
"""Put before the names of PasteConfig's fields, one of which is called like an option of the command."""


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
    _add_paste_options(parser)
    return parser


def _add_object_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--objects",
        nargs="+",
        default=[PROCEDURAL],
        metavar="SOURCE",
        help="cut-out objects: COCO's folder, images/ with masks/ or YOLO's labels/, or PNG files with alpha; "
        "`procedural` draws them. Each of several sources may say more: "
        "'{source: FOLDER, weight: 2, erode_share: 0.05}' "
        "(default procedural)",
    )
    parser.add_argument("--part", default="all", choices=PARTS, help="of the folders' pictures; val is one in five")
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


_PASTE_HELP = {
    "objects": "objects per frame",
    "scale": "factor on an object's size",
    "max_share": "of a frame, for all its objects",
    "feather_radius_px": "standard deviation of the mask's blur",
    "min_area_px": "fewest pixels of an object",
    "low_share": "probability of standing in the lower two thirds",
    "tone_match": "how far brightness follows the place, 0 to 1",
    "placement": "`road`: objects stand on the ground, sized by their distance",
    "horizon": "bounds of the horizon's row, as shares of the height",
    "camera_height_m": "of the camera above the road",
    "size_m": "longer side of an object on the ground",
    "free_share": "of the objects, placed as with `anywhere` all the same",
    "max_upscale": "largest factor that objects are enlarged by",
    "cut_share": "of the objects, cut by the frame's border",
    "cut_objects": "where objects go that their own picture cuts",
    "feather_range_px": "feather radius drawn per object, in place of a fixed one",
    "color_match": "how far each channel's mean and contrast follow the frame, 0 to 1; in place of --tone-match",
    "blur_match": "how far sharp objects follow the frame's sharpness, 0 to 1",
    "noise_match": "how far clean objects follow the frame's noise, 0 to 1",
    "lighting": "largest relative change of brightness across an object",
    "jpeg_share": "of the objects, with the traces of JPEG",
    "shadow": "of the objects on the ground, with a shadow",
    "distractor_share": "of the frames, with stains, shadows, patches, puddles, strokes or leaves that are no outliers",
    "distractors": "of them in such a frame",
}
_CHOICES = {"placement": PLACEMENTS, "cut_objects": CUT_OBJECTS}


def _add_paste_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of PasteConfig; `objects` is called --count, because --objects says which."""
    hints = typing.get_type_hints(PasteConfig)
    for field in dataclasses.fields(PasteConfig):
        bounds = _bounds_of(hints[field.name])
        name = "count" if field.name == "objects" else field.name
        many: dict[str, Any] = {"nargs": 2, "metavar": ("MIN", "MAX")} if len(bounds) == 2 else {}
        if len(bounds) == 1 and field.name not in _CHOICES:
            many["metavar"] = "N"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=_PASTE + field.name,
            type=bounds[0],
            default=field.default,
            choices=_CHOICES.get(field.name),
            help=_PASTE_HELP[field.name],
            **many,
        )


def _bounds_of(hint: Any) -> tuple[Any, ...]:
    """Return (float,) for `float` and `float | None`, (float, float) for such pairs."""
    args = tuple(arg for arg in typing.get_args(hint) if arg is not type(None))
    return _bounds_of(args[0]) if len(args) == 1 else args or (hint,)


def _paste_config(args: argparse.Namespace) -> PasteConfig:
    given = {field.name: getattr(args, _PASTE + field.name) for field in dataclasses.fields(PasteConfig)}
    return from_plain(PasteConfig, given, "cut-paste")


def _source(args: argparse.Namespace) -> DescribedSource:
    if args.objects == [PROCEDURAL]:
        for name in ("exclude", "part"):
            if getattr(args, name) not in (None, "all"):
                raise ConfigError(f"--{name} is for a folder of objects; `procedural` has kinds: give --kinds")
        size_px = None if args.object_size_px is None else (args.object_size_px[0], args.object_size_px[1])
        return ProceduralObjects(options.several(args.kinds) if args.kinds else ALL_KINDS, size_px)
    for name in ("kinds", "object_size_px"):
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')} is for drawn objects; leave it out, or --objects")
    return open_objects([_objects_config(text, args) for text in args.objects])


def _objects_config(text: str, args: argparse.Namespace) -> ObjectsConfig:
    """Return the source that a word of --objects describes; --part and --exclude hold for folders that do not say."""
    given: Any = {"source": text}
    if text.startswith("{"):
        try:
            given = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--objects {text!r} is not YAML: {' '.join(str(error).split())}") from None
    if isinstance(given, dict) and given.get("source", PROCEDURAL) != PROCEDURAL:
        given = {"part": args.part, "exclude": options.several(args.exclude) if args.exclude else None, **given}
    return from_plain(ObjectsConfig, given, f"--objects {text}")


def _summary(manifest: Manifest, folder: Path) -> str:
    made_of = manifest.made_of
    return (
        f"{manifest.count} frames of {made_of.source}{f' {made_of.split}' if made_of.split else ''} with objects "
        f"({made_of.objects.name}) in {str(folder)!r}, sha256 {manifest.sha256[:16]}…; look at "
        f"{str(folder / PREVIEW)!r}, read them as cut_paste={folder}"
    )
