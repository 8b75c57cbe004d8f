"""What is pasted into training frames, and how they are cropped: the effect of each on frames and objects held out.

    nice -n 15 python pasted_frames.py --data WORLD --output DIR

It continues outlier_losses.py in the same DIR: MiDE-Net without outliers, then rows with a void class, each with one
change of the recipe enet-world. Two sets are measured, both of WORLD's validation frames with objects from pictures
that no row pasted: mostly small things on the road, and large objects, up to half of the frame. The figures go into
pasted_frames.md. Every run resumes where it was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import run, write_result
from outlier_losses import HELD, OBJECTS, RECIPE, changes_of_rows, make_held, parse_arguments
from trained_rows import cells, figures, train

SCORES = ("void", "max_entropy")
ROWS: Mapping[str, tuple[str, ...]] = {
    "as in the recipe": (),
    "no large objects": ("data.cut_paste.paste.scale=[0.1,0.4]", "data.cut_paste.paste.max_share=0.03"),
    "large objects only": ("data.cut_paste.paste.scale=[0.8,1.5]", "data.cut_paste.paste.free_share=1"),
    "anywhere, not on the road": ("data.cut_paste.paste.placement=anywhere",),
    "no stains and shadows that are no objects": ("data.cut_paste.paste.distractor_share=0",),
    "hard edges": ("data.cut_paste.paste.feather_range_px=[0,0]",),
    "crops only": ("augment.whole_frame=0",),
    "whole frames only": ("augment.whole_frame=1",),
}
"""Row -> changes of the recipe."""
LARGE = "--count 1 2 --scale 0.8 1.5 --max-share 0.5 --placement anywhere --max-upscale 2.5 --cut-objects border"
LARGE += " --feather-range-px 0.4 1.4 --color-match 0 0.6 --blur-match 0 1 --noise-match 0 1 --lighting 0.25 --seed 2"
TABLE = Path(__file__).resolve().parent / "pasted_frames.md"


def main() -> None:
    args = parse_arguments(__doc__)
    small = make_held(args.data, args.output, args.copies)
    large = args.output / "held-large"
    if not large.is_dir():
        words = ["--objects", *OBJECTS, "--part", "val", *LARGE.split()]
        run(["datasets", "cut-paste", f"pseudo_label={args.data}:val", "--output", str(large), *words])
    changes = changes_of_rows(args.data, args.output, args.epochs, args.set)
    rows = {}
    for name, own in ROWS.items():
        folder = args.output / name.replace(",", "").replace(" ", "-")
        train(RECIPE, args.data, folder, SCORES, [*changes, *own])
        rows[name] = figures(folder, SCORES, {HELD: small})
        rows[name]["large"] = figures(folder, SCORES, {HELD: large}, "large.json")["figures"]
    print(write_result("pasted_frames", {"epochs": args.epochs, "changes": args.set, "rows": rows}))
    TABLE.write_text(page(rows, args.epochs), encoding="utf-8")


def page(rows: Mapping[str, Any], epochs: list[int]) -> str:
    """Return the figures of the rows in Markdown."""
    lines = [
        "# What is pasted into training frames",
        "",
        "MiDE-Net, trained without outliers and then with a void class for as many steps in each row. AuPRC / FPR95 in",
        "per cent on held-out frames with objects that were not in training: mostly small things on the road, and",
        "large objects, up to half of the frame. mIoU on these frames without objects. Written by",
        f"`python pasted_frames.py --data WORLD --output DIR --epochs {epochs[0]} {epochs[1]}`.",
        "",
        "| change of the recipe | mIoU | small, `void` | small, `max_entropy` | large, `void` | large, `max_entropy` |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        large = {"figures": row["large"]}
        found = " | ".join(cells(one, score, [HELD]) for one in (row, large) for score in SCORES)
        lines.append(f"| {name} | {100 * row['miou']:.1f} | {found} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
