"""`anomseg datasets check` and `anomseg datasets list`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.progress import Progress, TaskID

from anomseg_ros.commands import options
from anomseg_ros.datasets import DATASETS, dataset_type, open_named
from anomseg_ros.datasets.base import DatasetType
from anomseg_ros.datasets.check import CheckReport, check
from anomseg_ros.errors import AnomsegError


def main(argv: Sequence[str] | None = None) -> int:
    """Check each dataset and print a report; returns 0 if all can be used, else 1."""
    parser = options.parser(
        "datasets check",
        "Read every image and label of datasets: complete, readable, of one size, with known label values?",
    )
    parser.add_argument(
        "datasets", nargs="+", metavar="NAME=PATH", help="for example camvid=/data/CamVid, or camvid=/data/CamVid:train"
    )
    parser.add_argument("--allow-partial", action="store_true", help="accept fewer or more frames than published")
    parser.add_argument("--threads", type=int, default=2, help="frames read at a time")
    args = parser.parse_args(argv)
    usable = [_check_one(text, args.threads, args.allow_partial) for text in args.datasets]
    return 0 if all(usable) else 1


def main_list(argv: Sequence[str] | None = None) -> int:
    """Print every dataset with its splits, published sizes and official layout; returns 0."""
    options.parser("datasets list", "List the datasets by name, with splits, published sizes and layouts.").parse_args(
        argv
    )
    for name in DATASETS:
        kind = dataset_type(name)
        splits = ", ".join(_split(kind, split) for split in kind.splits)
        print(f"{name:<17}{splits or 'generated'}")
        for layout in kind.layouts:
            print(f"{'':<17}{layout}")
    print(
        "\nEach but cut_paste and pseudo_label may also be flat: images/N.png (or jpg, webp) with labels_masks/N.png."
    )
    print("See docs/datasets.md.")
    return 0


def _split(kind: DatasetType, split: str) -> str:
    count = kind.splits[split]
    default = " (default)" if split == kind.default_split and len(kind.splits) > 1 else ""
    return f"{split}{f' {count}' if count else ''}{default}"


def _check_one(text: str, threads: int, allow_partial: bool) -> bool:
    try:
        report = _checked(text, threads)
    except AnomsegError as error:
        print(f"{text}: NOT USABLE\n  error: {error}")
        return False
    print("\n".join(report.lines(allow_partial)))
    return report.ok(allow_partial)


def _checked(text: str, threads: int) -> CheckReport:
    dataset = open_named(text)
    with options.progress_bar() as bar:
        task = bar.add_task(dataset.name, total=len(dataset))
        return check(dataset, threads, partial(_advance, bar, task))


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)
