from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.core.anomaly_marks import EDGE_COLOR, anomaly_color
from anomseg_ros.core.labels import CITYSCAPES, UNLABELLED, VOID, palette
from anomseg_ros.core.overlay import anomaly_mask, label_colors, overlay, panel
from anomseg_ros.core.score_scale import score_scale
from anomseg_ros.core.types import Outputs

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


def test_overlay_marks_anomalies_and_keeps_unlabelled_pixels() -> None:
    image = np.full((240, 360, 3), 90, np.uint8)
    labels = np.zeros((120, 180), np.uint8)
    labels[:, 90:] = UNLABELLED
    mask = np.zeros((120, 180), np.uint8)
    mask[24:60, 30:120] = 255
    before = image.copy(), mask.copy()
    drawn = overlay(image, labels, mask, COLORS)
    assert (image == before[0]).all() and (mask == before[1]).all()
    assert drawn.shape == (240, 360, 3)
    assert (drawn[200, 300] == 90).all()  # unlabelled: the frame itself
    assert drawn[200, 30].astype(int) == pytest.approx(0.55 * 90 + 0.45 * np.array([128, 64, 128]), abs=1)  # road
    inside = drawn[52:112, 66:232].reshape(-1, 3)  # the frame between bright and dark lines
    found = {tuple(color) for color in np.unique(inside, axis=0).tolist()}
    assert found == {(90, 90, 90), anomaly_color(COLORS), EDGE_COLOR}


def test_without_anomalies_the_overlay_shows_the_classes_only() -> None:
    image, labels = np.full((40, 60, 3), 90, np.uint8), np.zeros((40, 60), np.uint8)
    plain = overlay(image, labels, None, COLORS)
    assert (overlay(image, labels, np.zeros_like(labels), COLORS) == plain).all()
    assert len(np.unique(plain.reshape(-1, 3), axis=0)) == 1


def test_panel_has_four_captioned_tiles_and_legends() -> None:
    image = np.full((90, 160, 3), 50, np.uint8)
    outputs = Outputs(np.full((48, 96), 10, np.uint8), {"void": np.zeros((48, 96), np.float32)})
    mask = np.zeros((48, 96), np.uint8)
    scale = score_scale({}, (0.0, 1.0), bounded=True)
    picture = panel(image, outputs, mask, (*CITYSCAPES, VOID), scale, "void", 0.5)
    assert picture.shape[0] > 180 and picture.shape[1:] == (320, 3)
    assert picture[80, 10].tolist() == [50, 50, 50]
    assert picture[80, 200].tolist() == pytest.approx((0.55 * 50 + 0.45 * np.array([70, 130, 180])).tolist(), abs=1)
    assert picture[170, 10].tolist() == scale.colored(np.zeros((1, 1), np.float32))[0, 0].tolist()
    assert picture[170, 200].tolist() == [0, 0, 0]
    wide = panel(np.zeros((300, 2048, 3), np.uint8), outputs, mask, (*CITYSCAPES, VOID), scale, "void")
    assert wide.shape[1] == 2048
