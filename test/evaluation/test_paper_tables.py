"""The papers' tables with figures of ours beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomseg_ros.catalog.entries import load_catalog
from anomseg_ros.cli import main
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.paper_tables import papers, read_paper, row_ids, tables_page
from anomseg_ros.evaluation.results import Evaluation, Result, save_evaluation
from anomseg_ros.scores import SCORES

ROWS = [row for paper in papers().values() for table in paper.tables for row in table.rows]


def test_shipped_tables_name_scores_and_catalog_entries_that_exist() -> None:
    entries = {entry.name for entry in load_catalog().checkpoints}
    assert ROWS and {row.score for row in ROWS} <= set(SCORES)
    assert {row.checkpoint for row in ROWS if row.checkpoint} <= entries
    for row in ROWS:
        assert all(value is None or 0 < value < 100 for pair in row.values.values() for value in pair)


def test_rows_without_a_checkpoint_say_so_and_measured_figures_stand_beside() -> None:
    own = Result("net", "road_anomaly_21", "mask_void", "seeds", 10, 0.5, 0.25, None, None)
    text = tables_page(papers(), {"eomt-lora-arcface": Evaluation(1, (own,))})
    assert "39.96 / 63.80; **50.00 / 25.00** (seeds)" in text
    assert "80.92 / 68.19; not measured" in text and "| not published |" in text
    assert "| `intern_image-b-cityscapes` |" in text and "192.8 M fits no size" in text


def test_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Result("net", "road_anomaly_21", "mask_void", "seeds", 10, 0.5, 0.25, None, None)
    save_evaluation(Evaluation(1, (own,)), tmp_path / "own.json")
    page = tmp_path / "page.md"
    assert main(["papers", "--tables", str(page), "--measured", f"eomt-lora-arcface={tmp_path / 'own.json'}"]) == 0
    assert "**50.00 / 25.00** (seeds)" in page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tables", "page.md", "--measured", "eomt-lora=x.json"], "no row of the papers is called 'eomt-lora'"),
        (["--tables", "page.md", "--measured", "x.json"], "expected ROW=JSON"),
        (["--measured", "eomt=x.json"], "needs --tables"),
        ([], "give --weights and --data"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["papers", *words]) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["[", "title: x", "{title: x, source: y, tables: [{name: z, rows: [{id: 1}]}]}"])
def test_damaged_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "paper.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"paper\.yaml"):
        read_paper(path)


def test_ids_are_unique_in_order() -> None:
    assert row_ids(papers()) == list(dict.fromkeys(row.id for row in ROWS))
