"""`anomseg datasets import`: turn the export of a labelling tool into a dataset `folder`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from anomseg_ros.commands import options
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.core.class_table import CLASSES_FILE
from anomseg_ros.datasets.imports import FORMATS, read_export
from anomseg_ros.datasets.imports.write import Imported, Roles, write_folder
from anomseg_ros.datasets.written_folder import PREVIEW
from anomseg_ros.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Import the frames and print their classes; return 0."""
    args = argument_parser().parse_args(argv)
    roles = Roles(_renamed(args.map), tuple(args.ignore), tuple(args.outliers))
    export = read_export(args.format, args.source)
    with ProgressLines() as lines:
        made = write_folder(
            export,
            args.output,
            roles,
            made_from=f"{args.format}: {args.source.resolve().name}",
            copy=args.copy,
            overwrite=args.overwrite,
            progress=lines,
        )
    options.print_whole(_table(made))
    print(f"{args.output}: {made.count} frames. Look at {args.output / PREVIEW}, state the licence of the frames in")
    print(f"{args.output / CLASSES_FILE}, then run: anomseg datasets check folder={args.output}:all")
    return 0


def _table(made: Imported) -> Table:
    table = Table("class", "role", "value", "pixels", "frames")
    total = max(1, sum(made.pixels) + made.unlabelled_px)
    for own, pixels, frames in zip(made.table.classes, made.pixels, made.frames, strict=True):
        table.add_row(own.name, own.role, str(own.id), f"{pixels / total:.2%}", str(frames))
    table.add_row("(nobody labelled)", "unlabelled", "255", f"{made.unlabelled_px / total:.2%}", "")
    return table


def _renamed(pairs: Sequence[str]) -> dict[str, str]:
    renamed: dict[str, str] = {}
    for text in pairs:
        old, equals, new = (part.strip() for part in text.partition("="))
        if not (old and equals and new):
            raise ConfigError(f"--map {text!r} is not of the form OLD=NEW, for example --map 'pick-up=car'")
        if renamed.setdefault(old, new) != new:
            raise ConfigError(f"--map gives {old!r} two names, {renamed[old]!r} and {new!r}; give one")
    return renamed


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg datasets import`."""
    parser = options.parser(
        "datasets import",
        "Turn the export of a labelling tool, or a dataset in its own format, into a dataset `folder`: pictures, label "
        f"images, {CLASSES_FILE} and a preview. Nothing is downloaded; the source is not changed.",
    )
    parser.add_argument("format", choices=tuple(FORMATS), help="see docs/own_classes.md for what each expects")
    parser.add_argument("source", type=Path, help="folder of the unpacked export")
    parser.add_argument("--output", required=True, type=options.output_folder, help="the new folder")
    parser.add_argument(
        "--map", nargs="+", default=[], metavar="OLD=NEW", help="rename classes; the same new name merges them"
    )
    parser.add_argument(
        "--ignore", nargs="+", default=[], metavar="CLASS", help="familiar things that are no class, such as the bonnet"
    )
    parser.add_argument("--outliers", nargs="+", default=[], metavar="CLASS", help="classes that are anomalies")
    parser.add_argument("--copy", action="store_true", help="copy pictures that could be linked")
    parser.add_argument("--overwrite", action="store_true", help="replace an imported dataset at --output")
    return parser
