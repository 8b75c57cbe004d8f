from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import Browser, chromium

from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.compare import auprc_failures, compare, save_comparison
from anomseg_ros.evaluation.report_compare import write_comparison
from anomseg_ros.evaluation.results import (
    Components,
    CorruptedFigures,
    Curves,
    Evaluation,
    Figures,
    FrameResult,
    Result,
    Robustness,
)

FRAMES = (
    FrameResult("a", 90, 10, 0.50, 0.20),
    FrameResult("b", 90, 10, 0.60, 0.30),
    FrameResult("c", 90, 10, 0.70, 0.40),
    FrameResult("empty", 100, 0),
)
ONE = Result(
    "net", "ra21", "void", "seeds", 4, 0.6, 0.3, 0.9, None,
    components=Components(0.1, 0.2, 0.3, 0.5), inference_ms={"p50": 20.0}, per_frame=FRAMES,
    curves=Curves(recall=(0.0, 1.0), precision=(1.0, 0.1), fpr=(0.0, 1.0), tpr=(0.0, 1.0)),
)  # fmt: skip


def evaluation(*results: Result) -> Evaluation:
    return Evaluation(1, results)


def test_figures_have_differences_and_a_direction() -> None:
    after = replace(ONE, auprc=0.65, fpr95=0.35, inference_ms={"p50": 15.0}, miou=0.7, components=None)
    (pair,) = compare(evaluation(ONE), evaluation(after)).pairs
    figures = {change.name: change for change in pair.figures}
    assert figures["AuPRC"].delta == pytest.approx(0.05) and figures["AuPRC"].better is True
    assert figures["FPR95"].delta == pytest.approx(0.05) and figures["FPR95"].better is False
    assert figures["AUROC"].delta == 0 and figures["AUROC"].better is None
    assert figures["time p50"].delta == -5 and figures["time p50"].better is True
    assert (figures["mIoU"].before, figures["mIoU"].after, figures["mIoU"].delta) == (None, 0.7, None)
    assert (figures["component F1"].before, figures["component F1"].after) == (0.3, None)
    assert pair.auprc is figures["AuPRC"]


def test_corrupted_means_are_compared_only_for_equal_corruptions(tmp_path: Path) -> None:
    def under(auprc: float, *severities: int) -> Evaluation:
        cells = tuple(CorruptedFigures("fog", severity, 4, Figures(auprc)) for severity in severities)
        one = Robustness(*ONE.key, Figures(0.6), Figures(auprc, None, 0.5), Figures(auprc / 0.6), cells)
        return Evaluation(1, (ONE,), robustness=(one,))

    (pair,) = compare(under(0.3, 1, 3), under(0.4, 1, 3)).pairs
    figures = {change.name: change for change in pair.figures}
    assert figures["AuPRC, corrupted"].delta == pytest.approx(0.1) and figures["AuPRC, corrupted"].better is True
    assert figures["mIoU, corrupted"].delta == 0 and figures["AuPRC"].delta == 0 and pair.notes == ()
    (pair,) = compare(under(0.3, 1, 3), under(0.4, 1)).pairs
    assert "different corruptions" in pair.notes[0] and "AuPRC, corrupted" not in {c.name for c in pair.figures}
    # Figures with and without corruptions are never compared.
    (pair,) = compare(evaluation(ONE), under(0.1, 1)).pairs
    assert pair.auprc.delta == 0 and all("corrupted" not in change.name for change in pair.figures)


def test_frames_are_sorted_by_change_and_unmatched_ones_listed() -> None:
    changed = (
        replace(FRAMES[0], auprc=0.51),
        replace(FRAMES[1], fpr95=0.6),
        FrameResult("new", 90, 10, 0.1, 0.1),
        replace(FRAMES[3], anomaly_px=5, auprc=0.2, fpr95=0.1),
    )
    (pair,) = compare(evaluation(ONE), evaluation(replace(ONE, per_frame=changed))).pairs
    assert [frame.frame_id for frame in pair.frames] == ["empty", "b", "a"]
    assert pair.frames[1].fpr95.delta == pytest.approx(0.3) and pair.frames[1].fpr95.better is False
    assert (pair.only_before, pair.only_after) == (("c",), ("new",))
    assert [frame.changed for frame in pair.frames] == [True, True, True]
    (same,) = compare(evaluation(ONE), evaluation(ONE)).pairs
    assert not any(frame.changed for frame in same.frames) and same.notes == ()


def test_results_are_paired_by_key() -> None:
    other = replace(ONE, dataset="ro21")
    comparison = compare(evaluation(ONE, other), evaluation(replace(ONE, score="msp"), ONE))
    assert [pair.key_before for pair in comparison.pairs] == [ONE.key]
    assert comparison.only_before == (other.key,)
    assert comparison.only_after == (("net", "ra21", "msp", "seeds"),)


def test_two_single_results_are_paired_with_notes_on_differences() -> None:
    after = replace(ONE, bundle="small", protocol="smiyc", precision="int8", known_px=7)
    (pair,) = compare(evaluation(ONE), evaluation(after)).pairs
    assert pair.notes == (
        "bundle 'net' against 'small'",
        "protocol 'seeds' against 'smiyc': the figures do not mean the same",
        "precision None against 'int8'",
        "known and anomalous pixels 0 and 0 against 7 and 0",
    )


def test_two_bundles_are_paired_by_dataset() -> None:
    before = (ONE, replace(ONE, dataset="ro21"), replace(ONE, dataset="fs"))
    after = tuple(replace(result, bundle="small") for result in before[:2])
    comparison = compare(evaluation(*before), evaluation(*after))
    assert [(pair.key_before[:2], pair.key_after[:2]) for pair in comparison.pairs] == [
        (("net", "ra21"), ("small", "ra21")),
        (("net", "ro21"), ("small", "ro21")),
    ]
    assert comparison.only_before == (before[2].key,)


def test_different_digest_of_the_same_bundle_is_noted() -> None:
    (pair,) = compare(evaluation(replace(ONE, bundle_sha256="1")), evaluation(replace(ONE, bundle_sha256="2"))).pairs
    assert pair.notes == ("the bundle's digest differs: it is not the same model",)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            (ONE, replace(ONE, bundle="x")),
            (replace(ONE, dataset="ro21"),),
            "no result in common: the first has net, void",
        ),
        ((), (ONE,), "the first has none"),
        ((ONE, ONE), (ONE,), r"the first evaluation has net, void on ra21 \(seeds\) 2 times"),
        ((ONE,), (ONE, ONE), "the second evaluation has"),
    ],
)
def test_incomparable_evaluations_are_refused(
    before: tuple[Result, ...], after: tuple[Result, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(evaluation(*before), evaluation(*after))


@pytest.mark.parametrize(
    ("auprc", "drop", "failures"),
    [(0.55, 0.05, 0), (0.5499, 0.05, 1), (0.6, 0.0, 0), (0.5999, 0.0, 1), (0.9, 0.0, 0), (None, 0.5, 1)],
)
def test_auprc_drop_beyond_the_limit_fails(auprc: float | None, drop: float, failures: int) -> None:
    comparison = compare(evaluation(ONE), evaluation(replace(ONE, auprc=auprc)))
    assert len(auprc_failures(comparison, drop)) == failures


def test_missing_result_fails() -> None:
    comparison = compare(evaluation(ONE, replace(ONE, dataset="ro21")), evaluation(ONE))
    assert auprc_failures(comparison, 0.5) == ["net, void on ro21 (seeds): is missing from the second evaluation"]


def test_comparison_is_saved_as_json(tmp_path: Path) -> None:
    save_comparison(compare(evaluation(ONE), evaluation(replace(ONE, auprc=0.5))), tmp_path / "new" / "c.json")
    data = json.loads((tmp_path / "new" / "c.json").read_text())
    assert data["pairs"][0]["figures"][0] == {
        "name": "AuPRC", "unit": "fraction", "before": 0.6, "after": 0.5, "delta": pytest.approx(-0.1), "better": False,
    }  # fmt: skip
    assert len(data["pairs"][0]["frames"]) == 4 and data["only_before"] == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.json"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.mark.slow
def test_comparison_page_is_escaped_and_fits_the_screen(browser: Browser, tmp_path: Path) -> None:
    evil = replace(ONE, bundle="<img src=x onerror=alert(1)>", auprc=0.5, per_frame=FRAMES[1:])
    before, after = evaluation(ONE, replace(ONE, score="msp")), evaluation(evil, replace(evil, score="msp"))
    write_comparison(compare(before, after), before, after, tmp_path / "c.html")
    document = (tmp_path / "c.html").read_text()
    assert "<img src=x" not in document and not re.search("https?:", document)
    assert document.count("Frames only before: a") == 2
    for width_px in (390, 1400):
        browser.open(tmp_path / "c.html", width_px)
        assert browser.js("[innerWidth, document.documentElement.scrollWidth]") == [width_px, width_px]
    assert browser.js("[...document.querySelectorAll('td.worse')].map((cell) => cell.textContent)[0]") == "-10.00 worse"
    assert browser.js("document.querySelectorAll('.frames tbody tr').length") == 6
    assert browser.complaints == []
