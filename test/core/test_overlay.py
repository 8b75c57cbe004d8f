from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.core.labels import CITYSCAPES, UNLABELLED, VOID, palette
from anomseg_ros.core.overlay import (
    ANOMALY_COLOR,
    anomaly_mask,
    gray_scores,
    heat_map,
    label_colors,
    overlay,
    panel,
)

COLORS = palette((*CITYSCAPES, VOID))


def test_mask_is_strictly_above_the_threshold() -> None:
    scores = np.array([[0.1, 0.5, 0.6]], np.float32)
    assert anomaly_mask(scores, 0.5).tolist() == [[0, 0, 255]]


@pytest.mark.filterwarnings("error")
def test_mask_threshold_may_be_outside_the_range_of_float32() -> None:
    scores = np.array([[-np.inf, -1e30, 1e30, np.inf]], np.float32)
    assert anomaly_mask(scores, 1e300).tolist() == [[0, 0, 0, 255]]
    assert anomaly_mask(scores, -1e300).tolist() == [[0, 255, 255, 255]]


def test_labels_get_the_colors_of_their_classes() -> None:
    labels = np.array([[0, 13, UNLABELLED]], np.uint8)
    assert label_colors(labels, COLORS).tolist() == [[[128, 64, 128], [0, 0, 142], [0, 0, 0]]]


def test_gray_scores_are_clipped_and_scaled() -> None:
    scores = np.array([[-30.0, -20.0, -10.0, 0.0, 5.0]], np.float32)
    assert gray_scores(scores, -20.0, 0.0).tolist() == [[0, 0, 127, 255, 255]]


def test_heat_map_goes_from_blue_to_red() -> None:
    low, high = heat_map(np.array([[0.1, 0.95]], np.float32), 0.0, 1.0)[0].astype(int)
    assert low[2] > low[0] and high[0] > high[2]


def test_overlay_marks_anomalies_and_keeps_unlabelled_pixels() -> None:
    image = np.full((40, 60, 3), 90, np.uint8)
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 15:] = UNLABELLED
    mask = np.zeros((20, 30), np.uint8)
    mask[4:10, 18:28] = 255
    before = image.copy()
    drawn = overlay(image, labels, mask, COLORS).astype(int)
    assert (image == before).all()
    assert drawn.shape == (40, 60, 3)
    assert (drawn[30, 50] == 90).all()  # unlabelled: the frame itself
    assert drawn[30, 5] == pytest.approx(0.55 * 90 + 0.45 * np.array([128, 64, 128]), abs=1)  # road
    assert drawn[14, 46] == pytest.approx(0.35 * 90 + 0.65 * np.array(ANOMALY_COLOR), abs=1)
    assert (drawn[8, 40] == 255).all()  # outline


def test_panel_has_four_tiles_of_the_frame_s_size() -> None:
    image = np.full((90, 160, 3), 50, np.uint8)
    labels = np.full((48, 96), 10, np.uint8)
    scores = np.zeros((48, 96), np.float32)
    mask = np.zeros((48, 96), np.uint8)
    picture = panel(image, labels, scores, mask, (*CITYSCAPES, VOID), (0.0, 1.0), "void")
    assert picture.shape == (180, 320, 3)
    assert picture[80, 10].tolist() == [50, 50, 50]
    assert picture[80, 200].tolist() == [70, 130, 180]
    wide = panel(np.zeros((300, 2048, 3), np.uint8), labels, scores, mask, (*CITYSCAPES, VOID), (0.0, 1.0), "void")
    assert wide.shape == (300, 2048, 3)
