"""Figures under corruptions: means and ratios, resuming jobs, and unchanged clean results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anomseg_ros.datasets.corruptions import Corruption
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation import evaluate as engine
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.report import render_report
from anomseg_ros.evaluation.results import (
    Evaluation,
    Figures,
    Result,
    load_evaluation,
    save_evaluation,
)
from anomseg_ros.evaluation.robustness import kinds_of, robustness_of, severities_of
from anomseg_ros.evaluation.saved_state import JobState
from anomseg_ros.evaluation.workers import Workers

CLEAN = Result("net", "ra21", "void", "seeds", 4, 0.8, 0.2, 0.9, None)
CORRUPTIONS = (Corruption("gaussian_noise", 1), Corruption("gaussian_noise", 5), Corruption("fog", 5))


def test_robustness_has_means_and_ratios_to_clean() -> None:
    other = replace(CLEAN, score="msp", auprc=0.5, fpr95=0.0)
    measured = {
        CORRUPTIONS[0]: (replace(other, fpr95=0.1), replace(CLEAN, auprc=0.6, fpr95=0.3, frames=3)),
        CORRUPTIONS[1]: (replace(CLEAN, auprc=0.2, fpr95=0.5), replace(other, auprc=None)),
    }
    void, msp = robustness_of((CLEAN, other), measured)
    assert void.key == CLEAN.key and void.clean == Figures(0.8, 0.2, None)
    assert (void.mean.auprc, void.mean.fpr95, void.mean.miou) == (pytest.approx(0.4), pytest.approx(0.4), None)
    assert (void.ratio.auprc, void.ratio.fpr95, void.ratio.miou) == (pytest.approx(0.5), pytest.approx(2.0), None)
    assert [(c.kind, c.severity, c.frames) for c in void.corruptions] == [
        ("gaussian_noise", 1, 3),
        ("gaussian_noise", 5, 4),
    ]
    assert kinds_of(void) == ("gaussian_noise",) and severities_of(void) == (1, 5)
    # A mean needs all corruptions, and a ratio to 0 is undefined.
    assert msp.mean.auprc is None and msp.ratio.auprc is None
    assert msp.mean.fpr95 == pytest.approx(0.05) and msp.ratio.fpr95 is None


@pytest.fixture
def request_(tiny_bundle: Path) -> Request:
    pytest.importorskip("imagecorruptions", reason="needs anomseg_ros[corruptions]")
    return Request((tiny_bundle,), ("synthetic=4:2",), ("void", "msp"))


def results_without_times(results: tuple[Result, ...]) -> list[Result]:
    return [replace(result, inference_ms=None, network_ms=None, wall_ms=None, per_frame=()) for result in results]


def test_corrupted_jobs_resume_and_keep_clean_results(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = evaluate(request_)
    asked = replace(request_, corruptions=CORRUPTIONS, state=tmp_path / "state", save_every_s=0.0)
    runs: list[str] = []
    run = engine._run

    def stop_at_the_last(request: Request, job: engine._Job, progress: engine.Progress) -> tuple[Result, ...]:
        runs.append(str(job.corruption))
        if len(runs) == 4:
            raise KeyboardInterrupt
        return run(request, job, progress)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(engine, "_run", stop_at_the_last)
        evaluate(asked)
    # The figures of finished corruptions are kept, their counts are deleted.
    assert len(list((tmp_path / "state").glob("*/results.json"))) == 2
    assert len(list((tmp_path / "state").glob("*/0*"))) == 1

    def noted(*given: Any) -> Any:
        runs.append(str(given[1].corruption))
        return run(*given)

    runs.clear()
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_run", noted)
        outcome = evaluate(asked)
    assert runs == ["None", "fog 5"]
    assert outcome.errors == () and not (tmp_path / "state").exists()
    assert results_without_times(outcome.results) == results_without_times(clean.results)
    assert outcome.robustness == evaluate(replace(asked, state=None)).robustness
    assert outcome.settings["corruptions"] == ["gaussian_noise 1", "gaussian_noise 5", "fog 5"]

    assert [one.key for one in outcome.robustness] == [result.key for result in clean.results]
    for one, result in zip(outcome.robustness, clean.results, strict=True):
        assert one.clean == Figures(result.auprc, result.fpr95, result.miou)
        assert len(one.corruptions) == 3 and {cell.frames for cell in one.corruptions} == {result.frames}
        assert one.mean.miou is not None and one.mean.auprc is not None
        assert len({cell.figures.auprc for cell in one.corruptions}) == 3
    path = tmp_path / "e.json"
    save_evaluation(Evaluation(1, outcome.results, robustness=outcome.robustness), path)
    assert load_evaluation(path).robustness == outcome.robustness


@pytest.mark.slow
def test_processes_give_exactly_the_same_results(request_: Request) -> None:
    asked = replace(request_, corruptions=CORRUPTIONS[1:])
    assert evaluate(replace(asked, workers=Workers(2))).robustness == evaluate(asked).robustness


def test_damaged_result_file_counts_as_missing(tmp_path: Path) -> None:
    state = JobState(tmp_path, {"job": 1}, 1.0)
    assert state.finished() is None
    state.finish([CLEAN])
    assert state.finished() == (CLEAN,) and JobState(tmp_path, {"job": 2}, 1.0).finished() is None
    next(tmp_path.glob("*/results.json")).write_text("{")
    assert state.finished() is None
    JobState(None, {}, 1.0).finish([CLEAN])
    assert JobState(None, {}, 1.0).finished() is None


def test_network_only_with_corruptions_is_refused(request_: Request) -> None:
    with pytest.raises(ConfigError, match="network_only"):
        evaluate(replace(request_, corruptions=CORRUPTIONS, network_only=True))


def test_report_shades_cells_by_the_loss() -> None:
    clean = replace(CLEAN, bundle="<i>net")
    measured = {CORRUPTIONS[0]: (clean,), CORRUPTIONS[1]: (replace(clean, auprc=0.0, fpr95=1.0),)}
    robustness = robustness_of((clean,), measured)
    page = render_report(Evaluation(1, (CLEAN,), robustness=robustness))
    section = page[page.index('<h2 id="corruptions">') :]
    assert 'href="#corruptions"' in page and "<i>net" not in page and section.count('<table class="heat">') == 2
    assert section.count("<table") == section.count("</table>") and section.count("<td") == section.count("</td>")
    assert '<td style="--lost:0%">80.0</td><td style="--lost:60%">0.0</td><td style="--lost:30%">40.0</td>' in section
    assert '<td style="--lost:0%">20.0</td><td style="--lost:60%">100.0</td><td style="--lost:30%">60.0</td>' in section
    assert "AuPRC ratio 0.500 · FPR95 ratio 3.000" in section and "gaussian_noise" in section
    assert "corruptions" not in render_report(Evaluation(1, (CLEAN,))).split("</style>")[1]
