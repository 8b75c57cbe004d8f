"""Cross-entropy, ArcFace, and ArcFace with LoRA and an anomaly class: a small EoMT on CamVid, measured on three sets.

    nice -n 15 python mask_transformers.py --output /tmp/masks

trains eomt-camvid with either class loss, then eomt-lora-arcface-camvid on the first with cut-out objects, and measures
AuPRC and FPR95 by the protocol `seeds`. The figures go into mask_transformers.md, beside those of the paper. Every run
resumes where it was stopped. `--set` shortens all runs, as in `--set run.epochs=5`. The networks are trained from
scratch, so the figures compare losses, not systems.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import DATA, write_result
from trained_rows import SETS, cells, figures, train

from anomseg_ros.evaluation.paper_tables import papers, tables_page
from anomseg_ros.evaluation.results import load_evaluation

TABLE = Path(__file__).resolve().parent / "mask_transformers.md"
PAPER = "eomt-lora-arcface"

CAMVID, CUTOUTS = DATA / "CamVid", DATA / "cutouts"
COSINES = ("network.options.cosine_scale=30", "loss.class_loss=arcface")
SCORES = ("mask_msp", "mask_max_logit", "mask_max_entropy", "rba_sum", "rba")
RUNS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "cross-entropy": ("eomt-camvid", (), SCORES),
    "arcface": ("eomt-camvid", COSINES, SCORES),
    "lora-arcface-class": ("eomt-lora-arcface-camvid", (), ("mask_void", *SCORES)),
}
"""Name -> recipe, its changes, and scores."""
ROWS = {"cross-entropy": "eomt", "arcface": "eomt-arcface", "lora-arcface-class": "eomt-lora-arcface"}
"""Name -> row of the paper's tables."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--set", action="append", default=[], help="change of every run, key=value")
    args = parser.parse_args()
    runs = {name: one_run(name, args.output, args.set) for name in RUNS}
    print(write_result("mask_transformers", {"changes": args.set, "runs": runs}))
    TABLE.write_text(page(runs, args.set, args.output), encoding="utf-8")


def page(runs: dict[str, Any], changes: list[str], output: Path) -> str:
    """Return the figures of the runs in Markdown: every score, then the paper's tables."""
    command = " ".join(["python mask_transformers.py --output DIR", *(f"--set {change}" for change in changes)])
    lines = [
        "# A small EoMT on CamVid",
        "",
        "AuPRC / FPR95 in per cent, protocol `seeds`. One run each of 1.1 M parameters from scratch. The networks of",
        "the paper are 80 times as large and start from DINOv2, so the figures compare losses, not systems.",
        f"Written by `{command}`.",
        "",
        f"| run (mIoU on CamVid's val) | score | {' | '.join(SETS)} |",
        "|---" * (len(SETS) + 2) + "|",
    ]
    for name, run_ in runs.items():
        for score in RUNS[name][2]:
            lines.append(f"| {name} ({100 * run_['miou']:.1f}) | `{score}` | {cells(run_, score)} |")
    measured = {row: load_evaluation(output / name / "figures.json") for name, row in ROWS.items()}
    return "\n".join(lines) + "\n\n" + tables_page({PAPER: papers()[PAPER]}, measured).replace("# ", "## ", 1)


def one_run(name: str, output: Path, changes: list[str]) -> dict[str, Any]:
    """Train one network, or finish it, and return its mIoU and figures by set and score."""
    recipe, own, scores = RUNS[name]
    start = []
    if name == "lora-arcface-class":
        before = output / "cross-entropy" / "best.safetensors"
        start = [f"data.cut_paste.objects={CUTOUTS}", f"network.initial={{checkpoint: {before}, part: features}}"]
    train(recipe, CAMVID, output / name, scores, [*own, *start, *changes])
    return figures(output / name, scores)


if __name__ == "__main__":
    main()
