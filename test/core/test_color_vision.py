from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.core.color_vision import VISIONS, color_difference, lab_colors, smallest_differences


def test_lab_of_primaries_and_greys() -> None:
    # Lindbloom's table for sRGB and D65.
    lab = lab_colors([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (119, 119, 119)])
    expected = [
        (53.24, 80.09, 67.20),
        (87.73, -86.18, 83.18),
        (32.30, 79.19, -107.86),
        (100.0, 0.0, 0.0),
        (0.0, 0.0, 0.0),
        (50.03, 0.0, 0.0),
    ]
    assert lab == pytest.approx(np.array(expected), abs=0.02)


@pytest.mark.parametrize("vision", VISIONS)
def test_greys_look_alike_to_everyone(vision: str) -> None:
    greys = [(level,) * 3 for level in (0, 60, 128, 200, 255)]
    assert lab_colors(greys, vision) == pytest.approx(lab_colors(greys), abs=0.1)


SHARMA = [  # of the pairs that Sharma, Wu and Dalal publish with their paper
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
    ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


def test_differences_are_the_published_ones() -> None:
    one, other, expected = (np.array(values) for values in zip(*SHARMA, strict=True))
    assert color_difference(one, other) == pytest.approx(expected, abs=1e-4)
    assert color_difference(other, one) == pytest.approx(expected, abs=1e-4)


def test_red_and_green_are_close_without_one_kind_of_cones() -> None:
    red, olive = [(170, 60, 40)], [(110, 100, 30)]
    full = color_difference(lab_colors(red), lab_colors(olive))[0]
    assert full > 30 and smallest_differences(red, olive)[0] < full / 2


def test_smallest_difference_is_to_the_nearest_colour() -> None:
    assert smallest_differences([(0, 0, 0), (255, 255, 255)], [(255, 255, 255), (0, 0, 0)]) == pytest.approx([0, 0])
    assert smallest_differences([(0, 0, 0)], [(255, 255, 255)])[0] == pytest.approx(100, abs=0.1)
