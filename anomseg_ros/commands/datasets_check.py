"""`anomseg datasets check` and `anomseg datasets list`: report problems of datasets, and list the datasets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from anomseg_ros.commands import options
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.datasets import DATASETS, dataset_type, open_named
from anomseg_ros.datasets.check import CheckReport, check
from anomseg_ros.datasets.dataset import DatasetType
from anomseg_ros.errors import AnomsegError


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg datasets check`."""
    parser = options.parser(
        "datasets check",
        "Read every image and label of datasets, and report missing or unreadable files, differing sizes and unknown "
        "label values.",
        {"--threads": "--workers"},
    )
    parser.add_argument(
        "datasets", nargs="+", metavar="NAME=PATH", help="for example camvid=/data/CamVid, or camvid=/data/CamVid:train"
    )
    parser.add_argument("--allow-partial", action="store_true", help=options.ALLOW_PARTIAL_HELP)
    parser.add_argument("--workers", type=int, default=2, help="number of frames that are read in parallel")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check each dataset and print a report; return 0 if all can be used, else 1."""
    args = argument_parser().parse_args(argv)
    usable = [_print_check(text, args.workers, args.allow_partial) for text in args.datasets]
    return 0 if all(usable) else 1


def argument_parser_list() -> argparse.ArgumentParser:
    """Return the parser of `anomseg datasets list`."""
    parser = options.parser("datasets list", "List the datasets with their splits, published sizes and layouts.")
    return parser


def main_list(argv: Sequence[str] | None = None) -> int:
    """Print every dataset with its splits, published sizes and official layouts; return 0."""
    argument_parser_list().parse_args(argv)
    for name in DATASETS:
        kind = dataset_type(name)
        splits = ", ".join(_split_text(kind, split) for split in kind.splits)
        print(f"{name:<17}{splits or 'generated'}")
        for layout in kind.layouts:
            print(f"{'':<17}{layout}")
    print(
        "\nAll except folder, cut_paste and pseudo_label may also be flat: images/N.png (or jpg, webp) with "
        "labels_masks/N.png."
    )
    print("See docs/datasets.md.")
    return 0


def _split_text(kind: DatasetType, split: str) -> str:
    count = kind.splits[split]
    default = " (default)" if split == kind.default_split and len(kind.splits) > 1 else ""
    return f"{split}{f' {count}' if count else ''}{default}"


def _print_check(text: str, threads: int, allow_partial: bool) -> bool:
    """Check a dataset and print its report; return whether it can be used."""
    try:
        report = _check(text, threads)
    except AnomsegError as error:
        print(f"{text}: NOT USABLE\n  error: {error}")
        return False
    print("\n".join(report.lines(allow_partial)))
    return report.ok(allow_partial)


def _check(text: str, threads: int) -> CheckReport:
    dataset = open_named(text)
    with ProgressLines() as lines:
        return check(dataset, threads, lines)
