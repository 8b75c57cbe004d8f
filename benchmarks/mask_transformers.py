"""Cross-entropy, ArcFace, and ArcFace with LoRA and an anomaly class: a small EoMT on CamVid, measured on three sets.

    nice -n 15 python mask_transformers.py --output /tmp/masks

trains eomt-camvid with either class loss, then eomt-lora-arcface-camvid on the first with cut-out objects, and measures
AuPRC and FPR95 by the protocol `seeds`. The figures go into mask_transformers.md, beside those of the paper. Every run
resumes where it was stopped. `--set` shortens all runs, as in `--set run.epochs=5`. The networks are trained from
scratch, so the figures compare losses, not systems.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import DATA, write_result

from anomseg_ros.cli import main as anomseg
from anomseg_ros.evaluation.paper_tables import papers, tables_page
from anomseg_ros.evaluation.results import load_evaluation

FIGURES = ("frames", "auprc", "fpr95")
"""What the result keeps of an evaluation; the rest is in figures.json of the run."""
TABLE = Path(__file__).resolve().parent / "mask_transformers.md"
PAPER = "eomt-lora-arcface"

CAMVID, CUTOUTS = DATA / "CamVid", DATA / "cutouts"
SETS = {"road_anomaly_21": "RoadAnomaly21", "road_obstacle_21": "RoadObstacle21", "fs_static": "fs_static"}
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
    figures = {name: one_run(name, args.output, args.set) for name in RUNS}
    print(write_result("mask_transformers", {"changes": args.set, "runs": figures}))
    TABLE.write_text(page(figures, args.set, args.output), encoding="utf-8")


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
            rows = [run_["figures"][f"{key} {score}"] for key in SETS]
            cells = [f"{100 * row['auprc']:.1f} / {100 * row['fpr95']:.1f}" for row in rows]
            lines.append(f"| {name} ({100 * run_['miou']:.1f}) | `{score}` | {' | '.join(cells)} |")
    measured = {row: load_evaluation(output / name / "figures.json") for name, row in ROWS.items()}
    return "\n".join(lines) + "\n\n" + tables_page({PAPER: papers()[PAPER]}, measured).replace("# ", "## ", 1)


def one_run(name: str, output: Path, changes: list[str]) -> dict[str, Any]:
    """Train one network, or finish it, and return its mIoU and figures by set and score."""
    recipe, own, scores = RUNS[name]
    words = [f"--set={change}" for change in (*own, f"deploy.scores=[{','.join(scores)}]", "deploy.calibrate=false")]
    words += [f"--set={change}" for change in changes]
    if name == "lora-arcface-class":
        words.append(f"--set=data.cut_paste.objects={CUTOUTS}")
        words.append(
            f"--set=network.initial={{checkpoint: {output / 'cross-entropy' / 'best.safetensors'}, part: features}}"
        )
    folder = output / name
    resume = ["--resume"] if (folder / "state.pt").is_file() else []
    run("train", recipe, "--data", str(CAMVID), "--output", str(folder), *words, *resume)
    sets = [f"{key}={DATA / path}" for key, path in SETS.items()]
    report = folder / "figures.json"
    run(
        "evaluate",
        str(folder / "bundle"),
        "--dataset",
        *sets,
        "--score",
        *scores,
        "--allow-partial",
        "--json",
        str(report),
    )
    results = json.loads(report.read_text())["results"]
    rows = {f"{one['dataset']} {one['score']}": {key: one[key] for key in FIGURES} for one in results}
    return {"miou": json.loads((folder / "result.json").read_text())["miou"], "figures": rows}


def run(*words: str) -> None:
    """Run a command of the package."""
    if anomseg(list(words)):
        raise SystemExit(f"anomseg {' '.join(words)} failed")


if __name__ == "__main__":
    main()
