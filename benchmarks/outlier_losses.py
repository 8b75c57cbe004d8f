"""The losses that use pasted outliers, compared on frames and objects held out from training.

    nice -n 15 python outlier_losses.py --data WORLD --output DIR

WORLD is a folder of `anomseg datasets pseudo-label` (docs/datasets.md); ./objects holds the folders of objects that the
recipe enet-world names. MiDE-Net is trained on the frames without outliers first. From there, each row trains on with
its loss: same frames, objects, seed and number of steps. The measured set is WORLD's validation frames with objects
from pictures that no row pasted, `anomseg datasets cut-paste --part val`; the anomaly sets are not touched. The figures
go into outlier_losses.md. Every run resumes where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import run, write_result
from trained_rows import cells, figures, train

RECIPE = "enet-world"
ALONE = (
    *("network.name=mide_net", "teachers=[]", "loss.entropy_weight=0", "run.precision=32-true"),
    *("loss.distillation_weight=0", "loss.distillation_class_weights=false", "loss.distillation_of_outliers=false"),
)
"""Changes of the recipe for all rows: MiDE-Net without a teacher."""
KNOWN = ("data.void=none",)
"""Of rows whose networks have known classes alone."""
KNOWN_SCORES, VOID_SCORES = ("max_logit", "msp", "max_entropy", "energy"), ("void", "max_logit", "msp", "max_entropy")
ROWS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no outliers": ((*KNOWN, "data.cut_paste.probability=0"), KNOWN_SCORES),
    "LogitNorm, no outliers": (
        (*KNOWN, "data.cut_paste.probability=0", "loss.logit_norm_temperature=0.04"),
        KNOWN_SCORES,
    ),
    "entropy": ((*KNOWN, "loss.entropy_weight=0.3"), KNOWN_SCORES),
    "energy margin": ((*KNOWN, "loss.energy_weight=0.1"), KNOWN_SCORES),
    "void class": ((), VOID_SCORES),
    "void class, focal": (("loss.kind=focal",), VOID_SCORES),
    "void class and entropy": (("loss.entropy_weight=0.3",), VOID_SCORES),
    "void class and energy margin": (("loss.energy_weight=0.1",), VOID_SCORES),
}
"""Row -> changes of the recipe, and scores."""
OBJECTS = (
    "{source: objects/cutouts, weight: 3}",
    "{source: objects/debris, weight: 1, erode_share: 0.03}",
    "{source: objects/coco, weight: 1.5}",
)
PASTE = "--count 1 4 --min-area-px 40 --max-share 0.5 --placement road --size-m 0.12 3.0 --scale 0.1 1.5"
PASTE += " --max-upscale 2.5 --cut-objects border --feather-range-px 0.4 1.4 --color-match 0 0.6 --blur-match 0 1"
PASTE += " --noise-match 0 1 --lighting 0.25 --shadow 0.5 --distractor-share 0.35 --seed 1"
TABLE = Path(__file__).resolve().parent / "outlier_losses.md"
HELD = "cut_paste"


def main() -> None:
    args = parse_arguments(__doc__)
    rows = run_rows(args.data, args.output, args.epochs, args.copies, args.set)
    print(write_result("outlier_losses", {"epochs": args.epochs, "changes": args.set, "rows": rows}))
    TABLE.write_text(page(rows, args.epochs), encoding="utf-8")


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Return the options of a comparison of rows that start from the same network."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="WORLD", help="folder of pseudo-labelled frames")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--epochs", type=int, nargs=2, default=[6, 2], metavar=("START", "ROW"))
    parser.add_argument("--copies", type=int, default=3, help="of each measured frame, with other objects")
    parser.add_argument("--set", action="append", default=[], help="change of every run, key=value")
    return parser.parse_args()


def run_rows(data: Path, output: Path, epochs: Sequence[int], copies: int, changes: list[str]) -> dict[str, Any]:
    """Return the figures of every row."""
    held = make_held(data, output, copies)
    of_row = changes_of_rows(data, output, epochs, changes)
    rows = {}
    for name, (own, scores) in ROWS.items():
        folder = output / name.replace(",", "").replace(" ", "-")
        train(RECIPE, data, folder, scores, [*of_row, *own])
        rows[name] = figures(folder, scores, {HELD: held})
    return rows


def make_held(data: Path, output: Path, copies: int) -> Path:
    """Return the folder of validation frames with objects from pictures that no row pastes; make it if needed."""
    held = output / "held"
    if not held.is_dir():
        words = ["--objects", *OBJECTS, "--part", "val", "--copies", str(copies), *PASTE.split()]
        run(["datasets", "cut-paste", f"pseudo_label={data}:val", "--output", str(held), *words])
    return held


def changes_of_rows(data: Path, output: Path, epochs: Sequence[int], changes: Sequence[str]) -> list[str]:
    """Return the changes that all rows have. Train the network that they start from, unless it is there."""
    plain, scores = ROWS["no outliers"]
    of_start, of_row = ([*ALONE, f"run.epochs={number}", *changes] for number in epochs)
    train(RECIPE, data, output / "start", scores, [*of_start, *plain])
    start = f"network.initial={{checkpoint: {output / 'start' / 'best.safetensors'}, num_classes: 19}}"
    return [*of_row, start]


def page(rows: dict[str, Any], epochs: Sequence[int]) -> str:
    """Return the figures of the rows in Markdown."""
    lines = [
        "# Losses with pasted outliers",
        "",
        "MiDE-Net, trained on pseudo-labelled frames of several countries without outliers, then with each loss for as",
        "many steps. AuPRC / FPR95 in per cent on validation frames with objects that were not in training; mIoU on",
        "these frames without objects. Written by",
        f"`python outlier_losses.py --data WORLD --output DIR --epochs {epochs[0]} {epochs[1]}`.",
        "",
        "| loss | mIoU | score | AuPRC / FPR95 |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        for score in ROWS[name][1]:
            lines.append(f"| {name} | {100 * row['miou']:.1f} | `{score}` | {cells(row, score, [HELD])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
