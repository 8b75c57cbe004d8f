from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from anomseg_ros.cli import main
from anomseg_ros.evaluation.results import Evaluation, FrameResult, Result, save_evaluation

FRAMES = tuple(FrameResult(f"frame_{i}", 90, 10, 0.5 + i / 100, 0.2) for i in range(20))
ONE = Result("[red]net", "ra21", "void", "seeds", 20, 0.6, 0.3, 0.9, None, per_frame=FRAMES)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    changed = (replace(FRAMES[0], auprc=0.1), replace(FRAMES[1], auprc=0.4), *FRAMES[2:19])
    for name, result in (("a", ONE), ("b", replace(ONE, frames=19, auprc=0.55, per_frame=changed))):
        save_evaluation(Evaluation(1, (result,)), tmp_path / f"{name}.json")
    return [str(tmp_path / "a.json"), str(tmp_path / "b.json")]


def test_prints_differences_and_changed_frames(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *files]) == 0
    text = capsys.readouterr().out
    assert "[red]net, void on ra21 (seeds)" in text and text.count("protocol seeds") == 2
    assert "60.00" in text and "55.00" in text and "-5.00" in text
    assert text.index("50.00 > 10.00") < text.index("51.00 > 40.00")
    assert "2 of 19 frames changed" in text and "frames only in the first file: frame_19" in text
    assert "mIoU" not in text  # measured in neither


@pytest.mark.parametrize(("drop", "status"), [("0.04", 1), ("0.05", 0), ("0.06", 0)])
def test_exit_status_follows_auprc_limit(
    files: list[str], drop: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *files, "--fail-below-auprc", drop]) == status
    assert ("AuPRC fell by 0.050000, more than 0.04" in capsys.readouterr().err) == (status == 1)


def test_better_result_exits_with_zero(files: list[str]) -> None:
    assert main(["compare", *reversed(files), "--fail-below-auprc", "0"]) == 0


def test_writes_html_and_json(files: list[str], tmp_path: Path) -> None:
    page, data = tmp_path / "out" / "c.html", tmp_path / "out" / "c.json"
    assert main(["compare", *files, "--html", str(page), "--json", str(data), "--fail-below-auprc", "0"]) == 1
    assert "Comparison of 1 result<" in page.read_text()
    assert json.loads(data.read_text())["pairs"][0]["only_before"] == ["frame_19"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fail-below-auprc", "1"], "--fail-below-auprc is 1.0; give a fraction"),
        (["--fail-below-auprc", "nan"], "--fail-below-auprc is nan; give a fraction"),
        (["--top", "-1"], "--top is -1"),
    ],
)
def test_wrong_options_are_errors(
    files: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *files, *words]) == 1
    assert message in capsys.readouterr().err


def test_file_that_is_not_an_evaluation_is_an_error(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.json").write_text("{")
    assert main(["compare", *files]) == 1
    assert "b.json is not an evaluation" in capsys.readouterr().err


def test_report_writes_html_from_json(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", files[0]]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.html")
    assert "[red]net" in (tmp_path / "a.html").read_text()
    assert main(["report", files[0], "--html", str(tmp_path / "x" / "y.html")]) == 0
    assert (tmp_path / "x" / "y.html").read_text() == (tmp_path / "a.html").read_text()
