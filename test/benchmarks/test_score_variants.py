"""Variants of the score: each is a map of the frame's size, and the figures are those of the plain scores."""

from __future__ import annotations

import numpy as np
import pytest
import score_variants

from anomseg_ros.core.progress import no_progress
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.core.types import Outputs
from anomseg_ros.evaluation.evaluate import Request, evaluate


@pytest.mark.parametrize("name", score_variants.VARIANTS)
def test_variant_is_a_finite_map_that_rises_with_void(name: str) -> None:
    generator = np.random.default_rng(0)
    scores = {each: generator.random((40, 60), np.float32) * 0.1 for each in score_variants.SCORES}
    for score in scores.values():
        score[10:30, 20:40] += 0.8
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 50:] = 1
    found = score_variants.VARIANTS[name](Outputs(labels, scores))
    assert found.shape == (40, 60) and np.isfinite(found).all()
    assert found[15:25, 25:35].mean() > found[:8, :15].mean()


def test_figures_of_void_are_those_of_evaluate() -> None:
    rows, frames = score_variants.measure("enet-synthetic", "synthetic=5:3", "onnxruntime")
    assert frames == 3 and set(rows) == set(score_variants.VARIANTS)
    request = Request((find_bundle("enet-synthetic"),), ("synthetic=5:3",), ("void",), ("fishyscapes",))
    (result,) = evaluate(request, no_progress).results
    assert rows["`void`"]["auprc"] == pytest.approx(result.auprc, abs=1e-3)
    assert rows["`void`"]["fpr95"] == pytest.approx(result.fpr95, abs=1e-3)


def test_page_has_every_variant() -> None:
    rows = {name: {"auprc": 0.5, "fpr95": 0.0125} for name in score_variants.VARIANTS}
    text = score_variants.page("one", 3, rows)
    assert text.count("| 50.00 | 1.25 |") == len(score_variants.VARIANTS)
