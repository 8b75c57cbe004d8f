"""Component metrics: the official figures, and the definition on random masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import label

from anomseg_ros.errors import MetricError
from anomseg_ros.metrics.smiyc_components import (
    ANOMALY_TRACK,
    OBSTACLE_TRACK,
    TAUS,
    ComponentSizes,
    ComponentSums,
    component_sizes,
    mask_above,
)


@pytest.mark.parametrize(
    ("sizes", "siou", "ppv", "f1"),
    [(ANOMALY_TRACK, 0.283220, 0.974033, 0.424242), (OBSTACLE_TRACK, 0.579033, 0.924839, 0.662338)],
)
def test_metrics_equal_the_official_figures(
    official_frames: Any, sizes: ComponentSizes, siou: float, ppv: float, f1: float
) -> None:
    sums = ComponentSums(sizes)
    for scores, labels in official_frames:
        sums.add(mask_above(scores, 0.70167906), labels)
    metrics = sums.metrics()
    assert (metrics.siou, metrics.ppv, metrics.f1) == pytest.approx((siou, ppv, f1), abs=1e-6)


def by_definition(mask: Any, labels: Any, sizes: ComponentSizes) -> Any:
    """Return sIoU of the true and PPV of the predicted components, computed separately from sets of pixels."""
    eight = np.ones((3, 3))
    counted = labels <= 1
    truth, true_count = label(labels == 1, eight)
    predicted, predicted_count = label((mask > 0) & counted, eight)
    small = [i for i in range(1, true_count + 1) if (truth == i).sum() < sizes.truth_px]
    counted &= ~np.isin(truth, small)
    true = [(truth == i) & counted for i in range(1, true_count + 1) if i not in small]
    found = [predicted == i for i in range(1, predicted_count + 1)]
    found = [p & counted for p in found if p.sum() >= sizes.predicted_px and (p & counted).any()]
    sious = []
    for own in true:
        touching = np.zeros_like(own)
        for p in found:
            if (p & own).any():
                touching |= p
        others = (truth > 0) & counted & ~own
        sious.append((own & touching).sum() / ((own | touching) & ~(others & touching)).sum())
    return sious, [(p & (labels == 1)).sum() / p.sum() for p in found]


@pytest.mark.parametrize("seed", range(12))
def test_metrics_of_random_masks_equal_the_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    blobs = generator.random((2, 12, 15)).repeat(3, axis=1).repeat(3, axis=2)
    noise = generator.random((2, 36, 45)) < 0.03
    labels = ((blobs[0] > 0.7) ^ noise[0]).astype(np.uint8)
    labels[:, :5] = 255
    labels[generator.random(labels.shape) < 0.02] = 255
    mask = np.where((blobs[1] > 0.8) | (labels == 1) & (blobs[0] > 0.8) | noise[1], 255, 0).astype(np.uint8)
    sizes = ComponentSizes(predicted_px=8, truth_px=5)
    sums = ComponentSums(sizes)
    sums.add(mask, labels)
    sious, ppvs = by_definition(mask, labels, sizes)
    metrics = sums.metrics()
    assert (metrics.true_components, metrics.predicted_components) == (len(sious), len(ppvs))
    assert min(len(sious), len(ppvs)) >= 2
    assert metrics.siou == pytest.approx(np.mean(sious), abs=1e-9)
    assert metrics.ppv == pytest.approx(np.mean(ppvs), abs=1e-9)
    for tau, f1 in zip(TAUS, metrics.f1_by_tau, strict=True):
        found = sum(s >= tau for s in sious)
        assert f1 == pytest.approx(2 * found / (found + len(sious) + sum(p < tau for p in ppvs)), abs=1e-12)


def test_one_component_in_two_pieces_and_two_in_one() -> None:
    labels = np.zeros((20, 40), np.uint8)
    labels[5:15, 5:15] = labels[5:15, 20:30] = 1
    mask = np.zeros_like(labels)
    mask[5:15, 5:9] = mask[5:15, 11:15] = 1
    sums = ComponentSums(ComponentSizes(1, 1))
    sums.add(mask, labels)
    assert sums.metrics().siou == pytest.approx((0.8 + 0) / 2)
    assert sums.metrics().ppv == 1
    sums = ComponentSums(ComponentSizes(1, 1))
    mask[5:15, 5:30] = 1
    sums.add(mask, labels)
    assert sums.metrics().siou == pytest.approx(
        100 / 150
    )  # the other component does not count against it, but the gap does
    assert sums.metrics().ppv == pytest.approx(200 / 250)


def test_sums_merge_in_any_order(official_frames: Any) -> None:
    parts = []
    for scores, labels in official_frames:
        parts.append(ComponentSums(OBSTACLE_TRACK))
        parts[-1].add(mask_above(scores, 0.6), labels)
    a, b, c = parts
    assert a.merge(b).merge(c) == a.merge(b.merge(c)) == c.merge(a).merge(b)
    assert a.merge(b) != a
    with pytest.raises(MetricError, match="use the same"):
        a.merge(ComponentSums(ANOMALY_TRACK))


def test_means_are_nan_without_components_and_shapes_are_checked() -> None:
    sums = ComponentSums(ANOMALY_TRACK)
    sums.add(np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8))
    assert np.isnan([sums.metrics().siou, sums.metrics().ppv, sums.metrics().f1]).all()
    with pytest.raises(MetricError, match=r"\(4, 5\), labels"):
        sums.add(np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8))


def test_component_sizes_of_datasets() -> None:
    assert component_sizes("road_obstacle_21") == OBSTACLE_TRACK == ComponentSizes(50, 10)
    assert component_sizes("road_anomaly_21") == ANOMALY_TRACK == ComponentSizes(500, 100)
