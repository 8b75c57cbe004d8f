"""Marks of anomalies are far from every class colour, for all palettes and kinds of colour vision, and not of noise."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from anomseg_ros.core.anomaly_marks import (
    EDGE_COLOR,
    MIN_DIFFERENCE,
    MIN_LIGHTNESS,
    PREFERRED_COLOR,
    anomaly_color,
    drawn_area,
    drawn_contours,
)
from anomseg_ros.core.color_vision import VISIONS, color_difference, lab_colors
from anomseg_ros.core.labels import LABEL_SETS, UNLABELLED, VOID, ClassInfo, palette
from anomseg_ros.core.overlay import overlay

OWN = {
    "bright": ((0, 255, 255), (255, 255, 255), (255, 255, 0), (255, 0, 255), (0, 255, 0)),
    "nearly cyan": ((10, 240, 250), (128, 64, 128)),
    "rainbow": ((255, 0, 0), (255, 128, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255)),
    "none": (),
}
"""Palettes of one's own."""
PALETTES = {
    **{name: tuple(info.color for info in classes) for name, classes in LABEL_SETS.items()},
    **OWN,
}
FRAMES = {"night": 12, "asphalt": 110, "sky": 235}
"""Grey levels of frames."""


def smallest_difference(color: Sequence[int], others: Sequence[Sequence[int]], vision: str) -> float:
    return float(color_difference(lab_colors(color, vision), lab_colors(others, vision)).min())


def table(colors: Sequence[tuple[int, int, int]]) -> npt.NDArray[np.uint8]:
    return palette([*(ClassInfo(f"class {i}", color, i) for i, color in enumerate(colors)), VOID])


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("name", PALETTES)
def test_the_colour_of_anomalies_is_far_from_every_class(name: str, vision: str) -> None:
    color = anomaly_color(table(PALETTES[name]))
    is_crowded = len(PALETTES[name]) > 100  # ADE20k's 150 classes leave no colour far from all of them
    assert smallest_difference(color, [*PALETTES[name], (0, 0, 0)], vision) > (5 if is_crowded else 12)
    if name in LABEL_SETS and not is_crowded:
        assert color == PREFERRED_COLOR


@pytest.mark.parametrize("seed", range(8))
def test_random_palettes_have_a_colour_for_anomalies(seed: int) -> None:
    generator = np.random.default_rng(seed)
    colors = [(int(r), int(g), int(b)) for r, g, b in generator.integers(0, 256, (int(generator.integers(2, 30)), 3))]
    color = anomaly_color(table(colors))
    for vision in VISIONS:
        assert smallest_difference(color, colors, vision) > 8


def test_a_class_of_the_preferred_colour_gets_another_mark() -> None:
    color = anomaly_color(table([PREFERRED_COLOR]))
    assert smallest_difference(color, [PREFERRED_COLOR], "full") > MIN_DIFFERENCE
    assert lab_colors(color)[0] >= MIN_LIGHTNESS


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", PALETTES)
def test_marks_are_visible_on_every_class_in_dark_grey_and_bright_frames(name: str, frame: str) -> None:
    image = np.full((180, 320, 3), FRAMES[frame], np.uint8)
    mask = np.zeros((180, 320), np.uint8)
    mask[60:120, 80:240] = 255
    colors = table(PALETTES[name])
    marks = [anomaly_color(colors), EDGE_COLOR]
    for value in (*range(len(PALETTES[name])), UNLABELLED):
        labels = np.full((180, 320), value, np.uint8)
        tint = overlay(image, labels, None, colors)[0, 0]
        drawn = overlay(image, labels, mask, colors)
        # One of the two, line or edge, stands out from the class; both are on the outline and in the hatch.
        for vision in VISIONS:
            assert max(smallest_difference(mark, [tint], vision) for mark in marks) > 20
        for part in (drawn[55:64, 80:240], drawn[70:110, 90:230]):
            assert all((part == mark).all(axis=-1).any() for mark in marks)


def test_specks_are_not_drawn_and_gaps_are_closed() -> None:
    mask = np.zeros((512, 1024), np.uint8)
    generator = np.random.default_rng(0)
    mask[generator.integers(0, 200, 300), generator.integers(0, 1024, 300)] = 255
    assert drawn_contours(mask) == []
    mask[300:380, 400:600] = 255
    mask[340:342, 400:600] = 0  # a line through the object
    mask[320:324, 500:504] = 0  # a hole of noise
    mask[440:445, 100:106] = 255  # small and far away
    contours = drawn_contours(mask)
    assert len(contours) == 2
    area = drawn_area(contours, 512, 1024)
    assert (area[302:378, 402:598] == 255).all() and area[442, 103] == 255
    assert not area[:290].any() and not area[400:430].any()


def test_a_large_hole_stays_open() -> None:
    mask = cv2.circle(np.zeros((256, 512), np.uint8), (256, 128), 80, 255, 20)
    area = drawn_area(drawn_contours(np.asarray(mask, np.uint8)), 256, 512)
    assert area[128, 256] == 0 and area[128, 256 + 80] == 255


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (33, 47)])
def test_masks_of_any_size_are_drawn(shape: tuple[int, int]) -> None:
    image, full = np.zeros((*shape, 3), np.uint8), np.full(shape, 255, np.uint8)
    assert overlay(image, np.zeros(shape, np.uint8), full, table([(128, 64, 128)])).shape == (*shape, 3)
    assert drawn_contours(np.zeros(shape, np.uint8)) == []
