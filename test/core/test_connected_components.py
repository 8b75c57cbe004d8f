from __future__ import annotations

import numpy as np

from anomseg_ros.core.connected_components import Component, find_components


def test_components_have_box_area_and_maximum_score() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:5, 3:9] = 255
    mask[10, 10] = mask[11, 11] = 255  # touch only at a corner: one 8-connected component
    scores = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    first, second = find_components(mask, scores)
    assert first == Component(3, 2, 6, 3, 18, float(scores[4, 8]))
    assert second == Component(10, 10, 2, 2, 2, float(scores[11, 11]))


def test_score_excludes_other_components_in_the_same_box() -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[0, :] = mask[:, 0] = 255
    mask[5, 5] = 255
    scores = np.zeros((10, 10), np.float32)
    scores[5, 5] = 9.0
    frame, dot = find_components(mask, scores)
    assert frame.area_px == 19 and frame.score == 0.0
    assert dot.score == 9.0


def test_small_components_are_omitted() -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[1, 1] = mask[5:7, 5:7] = 255
    scores = np.ones((10, 10), np.float32)
    assert [component.area_px for component in find_components(mask, scores, min_area_px=2)] == [4]
    assert find_components(np.zeros_like(mask), scores) == []
