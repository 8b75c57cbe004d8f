"""The table of training-free scores: gains over the plain score, and the choice among candidates."""

from __future__ import annotations

from typing import Any

from training_free_table import as_markdown, chosen_candidate


def row(model: str, name: str, own: bool, plain: float, mix: float, candidates: tuple[float, ...]) -> dict[str, Any]:
    scores = {"max_logit": (plain, 60.0), "cluster_mix": (mix, 50.0), "cluster_binary": (1.0, 95.0)}
    named = {f"T 0.{digit}": (value, 61.0) for digit, value in enumerate(candidates, start=5)}
    return {"model": model, "set": name, "own": own, "frames": 10, "scores": scores, "candidates": named}


ROWS = [
    row("ENet", "road_anomaly_21", False, 25.0, 26.5, (27.0, 26.5)),
    row("ENet", "road_obstacle_21", False, 5.0, 4.9, (3.0, 4.9)),
    row("ENet", "small", True, 10.0, 10.0, (9.0, 10.0)),
    row("ENet", "large", True, 30.0, 32.0, (36.0, 32.0)),
]


def test_candidate_that_loses_anywhere_is_not_chosen() -> None:
    own = ROWS[2:]
    assert chosen_candidate(own) == "T 0.6"  # T 0.5 gains more on average, and loses on `small`
    assert chosen_candidate(ROWS) is None


def test_table_states_gains_and_losses() -> None:
    result = {"fit_frames": 20, "frames_per_set": 10, "missing": {"x": "the bundle has no checkpoint"}, "rows": ROWS}
    text = as_markdown(result, {})
    prose = text.replace("\n", " ")
    assert "at most 10 frames of each set" in prose and "on 20 frames of CamVid" in prose
    assert "| ENet | 25.00 / 60.00 | **26.50 / 50.00** | 1.00 / 95.00 |" in text
    assert "| `cluster_mix` | +0.70 | -0.10 | +1.50 | 1 | 1 |" in text
    assert "(small, large). Chosen: T 0.6." in text and "| T 0.5 | +2.50 | -1.00 | +1.00 |" in text
    assert "| ENet | road_obstacle_21 | 5.00 / 60.00 | 4.90 / 61.00 | -0.10 / +1.00 |" in text
    assert text.endswith("- x: the bundle has no checkpoint\n")
