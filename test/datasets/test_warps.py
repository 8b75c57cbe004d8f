from __future__ import annotations

import cv2
import numpy as np
import pytest

from anomseg_ros.datasets.warps import HORIZON, Part, Points, draw_lens, draw_mount, warped_part

PADDING = (124, 116, 104)


def identity(points: Points, height: float) -> Points:
    return points


def move_down(points: Points, height: float) -> Points:
    return np.asarray(points + np.array([0.0, 0.1], np.float32)[:, None, None], np.float32)


def frame(height: int = 80, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    labels = np.add.outer(np.arange(height) // 4 * 8, np.arange(width) // 16).astype(np.uint8)
    image = cv2.GaussianBlur(np.stack([labels, 255 - labels, labels], -1), (0, 0), 2)
    return image, labels


def grid(height: float = 0.5) -> Points:
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 21), np.linspace(-height / 2, height / 2, 11))
    return np.stack([x, y]).astype(np.float32)


@pytest.mark.parametrize("part", [Part(10, 20, 40, 60, False), Part(0, 0, 80, 120, True), Part(8, 4, 64, 112, True)])
def test_part_without_a_warp_is_only_resized(part: Part) -> None:
    image, labels = frame()
    smooth, nearest, horizon = warped_part(image, labels, part, (40, 60), [identity], PADDING, 253)
    cut = (slice(part.top, part.top + part.height), slice(part.left, part.left + part.width))
    way = cv2.INTER_AREA if part.averaged else cv2.INTER_LINEAR
    expected = cv2.resize(np.ascontiguousarray(image[cut]), (60, 40), interpolation=way)
    assert np.abs(smooth.astype(int) - expected).max() <= 2
    exact = cv2.resize(np.ascontiguousarray(labels[cut]), (60, 40), interpolation=cv2.INTER_NEAREST_EXACT)
    assert (nearest != exact).mean() < 0.3  # a position midway between two pixels may be rounded either way
    assert horizon == pytest.approx((HORIZON * 80 - part.top) * 40 / part.height, abs=0.6)


def test_pixels_outside_the_frame_are_padded() -> None:
    image, labels = frame()
    smooth, nearest, horizon = warped_part(
        image, labels, Part(0, 0, 80, 120, False), (80, 120), [move_down], PADDING, 253
    )
    # The view moves down by a tenth of the width, 12 rows.
    assert (nearest[68:] == 253).all() and (nearest[:68] == labels[12:]).all()
    assert (smooth[69:] == PADDING).all() and np.abs(smooth[:67].astype(int) - image[12:79]).max() <= 1
    assert horizon == pytest.approx(HORIZON * 80 - 12, abs=0.6)
    far = Part(500, 500, 20, 30, False)
    smooth, nearest, _ = warped_part(image, labels, far, (20, 30), [identity], PADDING, 253)
    assert (nearest == 253).all() and (smooth == PADDING).all()


def test_single_pixel_frame_is_warped() -> None:
    image, labels = frame(1, 1)
    smooth, nearest, _ = warped_part(
        image, labels, Part(0, 0, 1, 1, False), (1, 1), [draw_lens(np.random.default_rng(0))], PADDING, 253
    )
    assert smooth.shape == (1, 1, 3) and nearest.shape == (1, 1)


def test_lens_distorts_radially_and_keeps_the_middle_of_the_sides() -> None:
    points = grid()
    for seed in range(5):
        bent = draw_lens(np.random.default_rng(seed))(points, 0.5)
        assert np.allclose(bent[:, 5, [0, 10, 20]], points[:, 5, [0, 10, 20]], atol=1e-6)
        cross = bent[0] * points[1] - bent[1] * points[0]
        assert np.allclose(cross, 0, atol=1e-6) and not np.allclose(bent, points)


def test_mount_keeps_lines_straight_and_the_order_of_points() -> None:
    points = grid()
    for seed in range(20):
        turned = draw_mount(np.random.default_rng(seed))(points, 0.5)
        assert (np.diff(turned[1], axis=0) > 0).all() and (np.diff(turned[0], axis=1) > 0).all()
        top = turned[:, 0]
        line = np.polyfit(top[0], top[1], 1)
        assert np.allclose(np.polyval(line, top[0]), top[1], atol=1e-4)


def test_mounts_move_the_horizon_in_both_directions() -> None:
    image, labels = frame()
    part = Part(0, 0, 80, 120, False)
    horizons = [
        warped_part(image, labels, part, (80, 120), [draw_mount(np.random.default_rng(seed))], PADDING, 253)[2]
        for seed in range(20)
    ]
    assert min(horizons) < 0.45 * 80 - 3 and max(horizons) > 0.45 * 80 + 3
