"""The page of the small mask transformers: every score of every run, and the paper's tables beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mask_transformers
import trained_rows

from anomseg_ros.evaluation.results import Evaluation, Result, save_evaluation


def one_run(folder: Path, scores: tuple[str, ...], auprc: float) -> dict[str, Any]:
    """Write the evaluation of a run, and return what `one_run` of the script returns for it."""
    results = [
        Result("net", dataset, score, "seeds", 10, auprc, 0.25, None, None)
        for dataset in trained_rows.SETS
        for score in scores
    ]
    folder.mkdir()
    save_evaluation(Evaluation(1, tuple(results)), folder / "figures.json")
    plain = json.loads((folder / "figures.json").read_text())["results"]
    return {"miou": 0.3, "figures": {f"{one['dataset']} {one['score']}": one for one in plain}}


def test_page_has_every_score_of_every_run_and_the_papers_tables(tmp_path: Path) -> None:
    figures = {
        name: one_run(tmp_path / name, scores, 0.1 * number)
        for number, (name, (_, _, scores)) in enumerate(mask_transformers.RUNS.items(), start=1)
    }
    text = mask_transformers.page(figures, ["run.epochs=5"], tmp_path)
    assert "`python mask_transformers.py --output DIR --set run.epochs=5`" in text
    for name, (_, _, scores) in mask_transformers.RUNS.items():
        assert all(f"| {name} (30.0) | `{score}` |" in text for score in scores)
    assert "19.35 / 87.62; **10.00 / 25.00** (seeds)" in text  # cross-entropy on RoadAnomaly21, table 1
    assert "39.96 / 63.80; **30.00 / 25.00** (seeds)" in text  # the learned class, table 4
    assert text.count("\n# ") == 0 and text.startswith("# ")
