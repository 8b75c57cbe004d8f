"""The confusion matrix against scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from anomseg_ros.errors import MetricError
from anomseg_ros.metrics.miou import ConfusionMatrix


def random_pair(seed: int, classes: int = 5) -> Any:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, (30, 40)).astype(np.uint8)
    predicted = np.where(generator.random(truth.shape) < 0.6, truth, generator.integers(0, classes, truth.shape))
    truth[generator.random(truth.shape) < 0.1] = 255
    predicted[generator.random(truth.shape) < 0.1] = 255
    return predicted.astype(np.uint8), truth


def test_figures_equal_scikit_learn() -> None:
    matrix = ConfusionMatrix(5)
    pairs = [random_pair(seed) for seed in range(3)]
    for predicted, truth in pairs:
        matrix.add(predicted, truth)
    predicted, truth = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    labelled = truth != 255
    metrics = matrix.metrics()
    expected = jaccard_score(truth[labelled], predicted[labelled], labels=range(5), average=None)
    assert metrics.iou == pytest.approx(expected, abs=1e-12)
    assert metrics.miou == pytest.approx(expected.mean(), abs=1e-12)
    assert metrics.pixel_accuracy == pytest.approx((truth == predicted)[labelled].mean(), abs=1e-12)


def test_void_predictions_are_wrong_and_absent_classes_ignored() -> None:
    matrix = ConfusionMatrix(4)
    truth = np.array([[0, 0, 1, 1, 255, 255]], np.uint8)
    predicted = np.array([[0, 255, 1, 2, 0, 255]], np.uint8)
    matrix.add(predicted, truth)
    metrics = matrix.metrics()
    assert metrics.iou[:3] == (0.5, 0.5, 0.0)
    assert np.isnan(metrics.iou[3])
    assert metrics.miou == 0.5  # class 2 is predicted but not in the truth
    assert metrics.pixel_accuracy == 0.5


def test_matrices_merge_in_any_order_and_are_saved(tmp_path: Path) -> None:
    parts = []
    for seed in range(3):
        parts.append(ConfusionMatrix(5))
        parts[-1].add(*random_pair(seed))
    a, b, c = parts
    union = a.merge(b).merge(c)
    assert union == a.merge(b.merge(c)) == c.merge(a).merge(b)
    assert union != a
    union.save(tmp_path / "matrix.npz")
    assert ConfusionMatrix.load(tmp_path / "matrix.npz") == union
    with pytest.raises(MetricError, match="5 and 4 classes"):
        a.merge(ConfusionMatrix(4))


@pytest.mark.parametrize(("which", "text"), [(0, r"predicted labels contain \[7\]"), (1, r"true labels contain \[7\]")])
def test_unknown_label_value_is_refused_and_nothing_counted(which: int, text: str) -> None:
    pair = [np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8)]
    pair[which][0, 0] = 7
    matrix = ConfusionMatrix(5)
    with pytest.raises(MetricError, match=text):
        matrix.add(*pair)
    assert matrix == ConfusionMatrix(5)


def test_invalid_shapes_class_counts_and_empty_matrix_are_refused() -> None:
    with pytest.raises(MetricError, match=r"\(2, 3\)"):
        ConfusionMatrix(5).add(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    with pytest.raises(MetricError, match="num_classes is 0"):
        ConfusionMatrix(0)
    with pytest.raises(MetricError, match="0 labelled pixels"):
        ConfusionMatrix(5).metrics()


def test_uncertain_pixels_are_not_counted() -> None:
    matrix = ConfusionMatrix(3)
    matrix.add(np.array([[0, 1, 2]], np.uint8), np.array([[0, 252, 1]], np.uint8))
    assert matrix.counts.sum() == 2
