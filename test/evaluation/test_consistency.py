from __future__ import annotations

import cv2
import numpy as np
import pytest

from anomseg_ros.core.types import Outputs
from anomseg_ros.evaluation.consistency import ConsistencyObserver, pooled_consistency
from anomseg_ros.evaluation.drive import DriveSpec
from anomseg_ros.evaluation.measures import TimedOutputs
from anomseg_ros.evaluation.observers import SeenFrame
from anomseg_ros.evaluation.views import View

SHAPE = (64, 128)
SPEC = DriveSpec("void", 0.5, "by hand")
TENTH_S = 100_000_000
Box = tuple[int, int, int, int]
"""row, column, height, width"""


def mask_of(*boxes: Box, value: int = 1) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    for row, column, height, width in boxes:
        mask[row : row + height, column : column + width] = value
    return mask


def texture(shift_px: int = 0) -> np.ndarray:
    """Return a blurred pattern, uint8 (H, W, 3), that is shifted to the right by shift_px."""
    noise = np.random.default_rng(0).integers(0, 256, (SHAPE[0], SHAPE[1] + 64), dtype=np.uint8)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    return cv2.cvtColor(smooth[:, 32 - shift_px : 32 - shift_px + SHAPE[1]], cv2.COLOR_GRAY2RGB)


def seen(index: int, image: np.ndarray, mask: np.ndarray | None, anomaly: np.ndarray | None = None) -> SeenFrame:
    view = View(None, image, None, mask_of() if anomaly is None else anomaly)
    if mask is None:
        return SeenFrame(index, str(index), (view,))
    outputs = Outputs(None, {"void": mask.astype(np.float32)})
    return SeenFrame(index, str(index), (view,), ((view, TimedOutputs(outputs, 0.0)),))


def observer(*frames: SeenFrame, every_ns: int = TENTH_S) -> ConsistencyObserver:
    watching = ConsistencyObserver(SPEC, [index * every_ns for index in range(10)])
    for frame in frames:
        watching.add(frame)
    return watching


def test_iou_of_a_static_scene_equals_the_manual_result() -> None:
    """The flow is 0. Masks of 10x20 overlap by 10x15, then by 10x20."""
    masks = [mask_of((10, 40, 10, 20)), mask_of((10, 45, 10, 20)), mask_of((10, 45, 10, 20))]
    told = observer(*(seen(index, texture(), mask) for index, mask in enumerate(masks))).counts.result()
    assert told is not None and (told.pairs, told.threshold, told.truth_iou) == (2, 0.5, None)
    assert told.iou == (150 + 200) / (250 + 200)
    others = 2 * SHAPE[0] * SHAPE[1]
    assert told.miou == pytest.approx((350 / 450 + (others - 450) / (others - 350)) / 2)


def test_only_masks_moving_with_the_scene_are_consistent() -> None:
    with_scene = [(20, 30 + 8 * index, 20, 24) for index in range(4)]
    moving = [seen(index, texture(8 * index), mask_of(box), mask_of(box)) for index, box in enumerate(with_scene)]
    told = observer(*moving).counts.result()
    assert told is not None and told.iou is not None and told.iou > 0.9 and told.truth_iou == told.iou
    standing = [seen(index, texture(8 * index), mask_of((20, 30, 20, 24))) for index in range(4)]
    still = observer(*standing).counts.result()
    assert still is not None and still.iou == pytest.approx(16 / 32, abs=0.08)  # 24 px wide, moved by 8
    flicker = [
        seen(index, texture(8 * index), mask_of(*with_scene[index : index + 1 - index % 2])) for index in range(4)
    ]
    blinking = observer(*flicker).counts.result()
    assert blinking is not None and blinking.iou == 0.0


def test_new_and_ignored_pixels_are_not_counted() -> None:
    left = mask_of((10, 0, 10, 8))
    came = observer(seen(0, texture(0), mask_of()), seen(1, texture(12), left)).counts.predicted
    assert came.second_px == 0 and came.neither_px < SHAPE[0] * SHAPE[1]
    ignored = mask_of((0, 0, 32, 128), value=255)
    told = observer(seen(0, texture(), left), seen(1, texture(), mask_of(), ignored)).counts.predicted
    assert told.first_px == 0 and told.neither_px == 32 * 128


def test_answers_are_compared_across_missing_frames_but_not_gaps() -> None:
    there = mask_of((10, 40, 10, 20))
    frames = [seen(0, texture(), there), seen(1, texture(), None), seen(2, texture(), there)]
    assert observer(*frames).counts.predicted.pairs == 1
    gap = observer(*frames, every_ns=6 * TENTH_S)
    assert gap.counts.predicted.pairs == 0 and gap.counts.result() is None


def test_consistency_of_bags_is_pooled() -> None:
    there, apart = mask_of((10, 40, 10, 20)), mask_of((40, 40, 10, 20))
    same = observer(seen(0, texture(), there), seen(1, texture(), there)).counts
    other = observer(seen(0, texture(), there), seen(1, texture(), apart)).counts
    pooled = pooled_consistency([same, None, other])
    assert pooled is not None and (pooled.pairs, pooled.iou) == (2, 200 / 600)
    assert pooled_consistency([None]) is None
