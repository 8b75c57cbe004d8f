from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.results import (
    FORMAT_VERSION,
    Components,
    Curves,
    Evaluation,
    FrameResult,
    Result,
    load_evaluation,
    save_evaluation,
)

RESULT = Result(
    "enet", "fs_static", "void", "seeds", 30, 0.1126, 0.675, 0.8, None,
    iou={"road": 0.9}, components=Components(0.1, 0.2, 0.3, 0.5), inference_ms={"p50": 10.0},
    curves=Curves(recall=(0.0, 1.0), precision=(1.0, 0.1), histogram_known=(3, 4)),
    per_frame=(FrameResult("0", 10, 2, 0.5, 0.1), FrameResult("1", 10, 0)),
)  # fmt: skip


def test_saved_evaluation_is_loaded(tmp_path: Path) -> None:
    evaluation = Evaluation(FORMAT_VERSION, (RESULT,), "2026-01-01", "anomseg evaluate", {"cores": 2}, {"numpy": "2"})
    save_evaluation(evaluation, tmp_path / "a.json")
    assert load_evaluation(tmp_path / "a.json") == evaluation
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_missing_figures_are_null_in_json(tmp_path: Path) -> None:
    save_evaluation(Evaluation(FORMAT_VERSION, (RESULT,)), tmp_path / "a.json")
    (row,) = json.loads((tmp_path / "a.json").read_text())["results"]
    assert row["miou"] is None and row["auprc"] == 0.1126
    assert {"bundle", "dataset", "score", "protocol", "frames", "auprc", "fpr95", "auroc", "miou"} <= set(row)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 99}', '{"format_version": 1, "resluts": []}'])
def test_invalid_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.json"):
        load_evaluation(tmp_path / "a.json")


def test_nan_is_refused_when_saving(tmp_path: Path) -> None:
    bad = Result("a", "b", "c", "d", 1, float("nan"), None, None, None)
    with pytest.raises(ValueError, match="JSON"):
        save_evaluation(Evaluation(FORMAT_VERSION, (bad,)), tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()
