"""Standardized max logits compared with the manual steps of the paper."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from anomseg_ros.errors import ConfigError
from anomseg_ros.scores.score import Given
from anomseg_ros.scores.sml import Sml, smoothed, without_boundaries


def test_statistics_are_of_the_maximum_logit_per_predicted_class() -> None:
    generator = np.random.default_rng(0)
    frames = [generator.normal(scale=3, size=(4, 6, 5)) + np.array([0, 1, 0, -50]).reshape(4, 1, 1) for _ in range(3)]
    fit = Sml().start_fit(4)
    for frame in frames:
        fit.add(Given(frame))
    found = fit.tensors()
    best = np.concatenate([frame.max(0).ravel() for frame in frames])
    labels = np.concatenate([frame.argmax(0).ravel() for frame in frames])
    for label in range(3):
        own = best[labels == label]
        assert found["mean"][label] == pytest.approx(own.mean(), rel=1e-5)
        assert found["std"][label] == pytest.approx(own.std(ddof=1), rel=1e-5)
    # The last class is never predicted, so it gets the statistics of all pixels.
    assert found["mean"][3] == pytest.approx(best.mean(), rel=1e-5)
    assert found["std"][3] == pytest.approx(best.std(ddof=1), rel=1e-5)


def test_fit_without_frames_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 pixels to be fitted on; give more frames"):
        Sml().start_fit(4).tensors()


def test_score_away_from_boundaries_is_the_standardized_max_logit() -> None:
    logits = np.zeros((2, 60, 60))
    logits[1] = 7.0
    fitted = {"mean": np.array([1.0, 4.0]), "std": np.array([5.0, 2.0])}
    assert Sml().reference(Given(logits, fitted=fitted)) == pytest.approx(np.full((60, 60), -1.5))


def test_boundary_pixels_get_surrounding_values() -> None:
    """Two flat regions have wrong values along their border, which are replaced ring by ring from outside."""
    labels = np.zeros((30, 40), np.uint8)
    labels[:, 20:] = 1
    values = np.where(labels == 0, 2.0, 6.0)
    values[:, 18:22] = -100.0
    cleaned = without_boundaries(values, labels)
    assert cleaned.min() >= 2.0 and cleaned.max() <= 6.0
    assert (cleaned[:, :16] == 2.0).all() and (cleaned[:, 24:] == 6.0).all()
    # Nothing is replaced without a boundary.
    assert (without_boundaries(values, np.zeros_like(labels)) == values).all()


def test_boundary_suppression_equals_the_steps_of_the_authors() -> None:
    """Compute the steps differently: masks with scipy, means with loops."""
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 3, (5, 6), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
    values = generator.normal(size=labels.shape)
    cross = ndimage.generate_binary_structure(2, 1)
    boundary = ndimage.grey_dilation(labels, footprint=cross) != ndimage.grey_erosion(labels, size=3)
    expected = values.copy()
    for radius in (3, 2, 1, 0):
        masked = ndimage.binary_dilation(boundary, cross, radius) if radius else boundary
        before = expected.copy()
        for row, column in zip(*np.nonzero(masked), strict=True):
            near = [
                (min(max(r, 0), 29), min(max(c, 0), 35))
                for r in range(row - 1, row + 2)
                for c in range(column - 1, column + 2)
            ]
            outside = [before[place] for place in near if not masked[place]]
            if outside:
                expected[row, column] = np.mean(outside)
    assert without_boundaries(values, labels) == pytest.approx(expected)


def test_smoothing_is_a_dilated_gaussian_filter() -> None:
    values = np.zeros((80, 90))
    values[40, 45] = 1.0
    found = smoothed(values)
    places = np.argwhere(found > 0)
    assert len(places) == 49 and set((places[:, 0] - 40) % 6) == set((places[:, 1] - 45) % 6) == {0}
    assert found.sum() == pytest.approx(1.0)
    assert found[40, 51] / found[40, 45] == pytest.approx(np.exp(-0.5))
    assert smoothed(np.full((20, 30), 3.0)) == pytest.approx(np.full((20, 30), 3.0))
