from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.core.color_vision import VISIONS, lab_colors
from anomseg_ros.core.score_scale import FIRST_ANCHOR, ScoreScale, color_map, score_scale

THRESHOLDS = {0.05: -3.0, 0.02: -2.2, 0.01: -1.7, 0.005: -1.25, 0.001: -0.5}


def test_thresholds_anchor_the_colours() -> None:
    scale = score_scale(THRESHOLDS, (-20.0, 0.0), bounded=False)
    assert scale.ticks == ((-3.0, "5 %"), (-1.7, "1 %"), (-0.5, "0.1 %"))
    assert [scale.place(value) for value, _ in scale.ticks] == pytest.approx([0.25, 0.5, 0.75])
    assert scale.place(-8.0) == 0 and scale.place(4.0) == 1


def test_usual_pixels_are_dark_where_the_fixed_range_drew_them_bright() -> None:
    scale = score_scale(THRESHOLDS, (-20.0, 0.0), bounded=False)
    road = scale.colored(np.full((2, 2), -5.0, np.float32))  # at 75 % of the range
    assert lab_colors(road)[..., 0].max() < 15
    assert lab_colors(scale.colored(np.full((1, 1), -0.4, np.float32)))[..., 0].min() > 60


@pytest.mark.parametrize(
    ("thresholds", "drawn_range", "bounded"),
    [
        (THRESHOLDS, (-20.0, 0.0), False),
        ({0.05: 0.01, 0.01: 0.3, 0.001: 0.9}, (0.0, 1.0), True),
        ({0.05: 0.0, 0.01: 1.0}, (0.0, 1.0), True),  # at the ends
        ({0.01: 0.5}, (0.0, 1.0), True),
        ({0.01: 3.0}, (-20.0, 0.0), False),  # beyond the usual range
        ({0.01: 0.0}, (-20.0, 0.0), False),
        ({0.05: 0.4, 0.01: 0.4, 0.001: 0.4}, (0.0, 1.0), True),  # equal
        ({0.05: 0.5, 0.01: 0.2}, (0.0, 1.0), True),  # of different sets
        ({0.01: float("inf")}, (0.0, 1.0), True),
        ({0.01: float("nan"), 0.05: -1e300, 0.001: 1e29}, (-20.0, 0.0), False),
        ({0.0: 0.5}, (0.0, 1.0), True),
        ({}, (-20.0, 0.0), False),
        ({}, (1.0, 1.0), False),
    ],
)
def test_every_scale_rises_from_0_to_1(
    thresholds: dict[float, float], drawn_range: tuple[float, float], bounded: bool
) -> None:
    scale = score_scale(thresholds, drawn_range, bounded)
    assert all(a < b for a, b in zip(scale.values, scale.values[1:], strict=False))
    assert all(a < b for a, b in zip(scale.places, scale.places[1:], strict=False))
    assert scale.places[0] == 0 and scale.places[-1] == 1
    assert all(scale.place(value) >= FIRST_ANCHOR for value, _ in scale.ticks)
    scores = np.linspace(scale.values[0] - 1, scale.values[-1] + 1, 5000, dtype=np.float32).reshape(100, 50)
    exact = 255 * np.interp(scores, scale.values, scale.places)
    assert scale.gray(scores) == pytest.approx(exact, abs=1)


def test_without_thresholds_the_range_is_drawn() -> None:
    scale = score_scale({}, (-20.0, 0.0), bounded=False)
    assert scale.ticks == ()
    scores = np.array([[-30.0, -20.0, -10.0, 0.0, 5.0, np.inf, -np.inf]], np.float32)
    assert scale.gray(scores).tolist() == [[0, 0, 128, 255, 255, 255, 0]]


def test_close_thresholds_are_told_apart() -> None:
    scale = score_scale({0.05: 0.999, 0.01: 0.99999, 0.001: 0.999999}, (0.0, 1.0), bounded=True)
    scores = np.array([[value for value, _ in scale.ticks]], np.float32)
    assert scale.gray(scores)[0] == pytest.approx([64, 128, 191], abs=5)


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_become_brighter_for_everyone(vision: str) -> None:
    lightness = lab_colors(color_map()[::16], vision)[:, 0]
    assert (np.diff(lightness) > 1).all()


def test_a_scale_without_width_is_impossible() -> None:
    assert score_scale({}, (2.0, 1.0), bounded=False) == ScoreScale((2.0, 3.0), (0.0, 1.0))
