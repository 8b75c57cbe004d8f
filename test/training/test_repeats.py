from __future__ import annotations

import numpy as np

from anomseg_ros.core.labels import CAMVID, UNLABELLED
from anomseg_ros.training.data import Plan
from anomseg_ros.training.frame_cache import Frames
from anomseg_ros.training.repeats import repeated_frames

ROAD, CYCLIST = 3, 10


def frames(shown: list[list[int]]) -> Frames:
    """Return frames of 20x100 pixels with one row per class; the other rows are unlabelled."""
    labels = np.full((len(shown), 20, 100), UNLABELLED, np.uint8)
    for frame, classes in zip(labels, shown, strict=True):
        for row, value in enumerate(classes):
            frame[row] = value
    images = np.zeros((*labels.shape, 3), np.uint8)
    return Frames(
        images, labels, tuple(map(str, range(len(shown)))), np.bincount(labels.ravel(), minlength=256), CAMVID
    )


def test_frame_is_repeated_by_its_rarest_class() -> None:
    some = frames([[ROAD]] * 8 + [[ROAD, CYCLIST]])
    assert repeated_frames(some, 1.0).tolist() == [*range(8), 8, 8, 8]  # sqrt(1 / (1 / 9)) = 3
    assert repeated_frames(some, 0.44).tolist() == [*range(8), 8, 8]  # sqrt(0.44 * 9) = 1.99


def test_common_classes_and_threshold_0_repeat_nothing() -> None:
    some = frames([[ROAD], [ROAD, CYCLIST], [ROAD], [CYCLIST]])
    assert repeated_frames(some, 0.5).tolist() == [0, 1, 2, 3]
    assert repeated_frames(frames([[ROAD]] * 8 + [[CYCLIST]]), 0.0).tolist() == list(range(9))


def test_class_with_few_pixels_does_not_count() -> None:
    some = frames([[ROAD]] * 9)
    some.labels[0, 5, 0] = CYCLIST  # 0.0005 of the frame
    assert repeated_frames(some, 1.0).tolist() == list(range(9))
    some.labels[0, 5, :2] = CYCLIST
    assert repeated_frames(some, 1.0).tolist() == [0, 0, 0, *range(1, 9)]


def test_every_epoch_contains_the_repeated_frames() -> None:
    epochs, repeats = 3, repeated_frames(frames([[ROAD]] * 8 + [[CYCLIST]]), 1.0)
    plan = Plan(len(repeats), 0, 1, 1, 1, epochs, repeats)
    taken = [frame for batch in plan.batches(0, 0) for _, frame in batch]
    assert [sorted(taken[i * 11 : i * 11 + 11]) for i in range(epochs)] == [sorted(repeats.tolist())] * epochs
