"""Rows of a comparison of trainings: each is trained by a recipe with changes, resumably, then measured on sets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import DATA, run

SETS = {
    "road_anomaly_21": DATA / "RoadAnomaly21",
    "road_obstacle_21": DATA / "RoadObstacle21",
    "fs_static": DATA / "fs_static",
}
"""Dataset -> folder of the anomaly sets that are here."""
FIGURES = ("frames", "auprc", "fpr95")
"""What a result keeps of an evaluation; the rest is in figures.json of the run."""


def train(recipe: str, data: Path, folder: Path, scores: Sequence[str], changes: Iterable[str]) -> None:
    """Train a recipe with changes on a folder of data, or finish it. The bundle has these scores and no thresholds."""
    words = [f"--set=deploy.scores=[{','.join(scores)}]", "--set=deploy.calibrate=false"]
    words += [f"--set={change}" for change in changes]
    resume = ["--resume"] if (folder / "state.pt").is_file() else []
    run(["train", recipe, "--data", str(data), "--output", str(folder), *words, *resume])


def figures(
    folder: Path, scores: Sequence[str], sets: Mapping[str, Path] = SETS, name: str = "figures.json"
) -> dict[str, Any]:
    """Return the mIoU of a run on its validation frames, and AuPRC and FPR95 of each set and score.

    An evaluation that is there already under that name is taken, so that a comparison resumes where it was stopped.
    """
    report = folder / name
    if not report.is_file():
        words = ["--dataset", *(f"{name}={path}" for name, path in sets.items()), "--score", *scores]
        run(["evaluate", str(folder / "bundle"), *words, "--allow-partial", "--json", str(report)])
    results = json.loads(report.read_text())["results"]
    rows = {f"{one['dataset']} {one['score']}": {key: one[key] for key in FIGURES} for one in results}
    return {"miou": json.loads((folder / "result.json").read_text())["miou"], "figures": rows}


def cells(row: Mapping[str, Any], score: str, sets: Iterable[str] = SETS) -> str:
    """Return AuPRC / FPR95 in per cent, a cell of a Markdown table for each set."""
    found = (row["figures"][f"{name} {score}"] for name in sets)
    return " | ".join(f"{100 * one['auprc']:.1f} / {100 * one['fpr95']:.1f}" for one in found)
