"""A picture of frames held back, before and after the adaptation."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from anomseg_ros.core.labels import UNLABELLED, palette
from anomseg_ros.core.overlay import anomaly_mask, overlay, with_caption
from anomseg_ros.core.preprocess import resized_labels
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.dataset import VOID
from anomseg_ros.evaluation.drive_thresholds import DriveFrame, DriveRequest, drive_frames
from anomseg_ros.evaluation.pictures import jpeg

ROWS, WIDTH_PX, MARGIN_PX = 4, 480, 4
NAME = "adapted.jpg"


def before_and_after(sides: Sequence[tuple[DriveRequest, float]], held_back: Sequence[int]) -> bytes:
    """Return a JPEG of frames held back, spread over them: each row a frame, each column a bundle with its caption.

    sides: request and threshold of the bundle before and of the one after; what is above the threshold is marked.
    """
    step = max(1, len(held_back) // ROWS)
    indices = held_back[step // 2 :: step][:ROWS]
    columns = [
        [_marked(frame, request.scores[0], threshold) for frame in drive_frames(request, indices)]
        for request, threshold in sides
    ]
    for column, caption in zip(columns, ("before", "after"), strict=True):
        column[0] = with_caption(column[0], caption)
    rows = [_joined(pictures, axis=1) for pictures in zip(*columns, strict=True)]
    return jpeg(_joined(rows, axis=0))


def _marked(frame: DriveFrame, score: str, threshold: float) -> RgbImage:
    mask = anomaly_mask(frame.scores(score), threshold)
    mask[frame.counted == VOID] = 0
    height = max(1, round(WIDTH_PX * frame.image.shape[0] / frame.image.shape[1]))
    small = np.asarray(cv2.resize(frame.image, (WIDTH_PX, height), interpolation=cv2.INTER_AREA), np.uint8)
    unlabelled = np.full((height, WIDTH_PX), UNLABELLED, np.uint8)
    return overlay(small, unlabelled, resized_labels(mask, height, WIDTH_PX), palette(()))


def _joined(pictures: Sequence[RgbImage], axis: int) -> RgbImage:
    """Return pictures side by side (axis 1) or one below the other, with white between them."""
    shape = list(pictures[0].shape)
    shape[axis] = MARGIN_PX
    white = np.full(shape, 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, white)][:-1]
    sizes = {part.shape[1 - axis] for part in parts}
    if len(sizes) > 1:  # inputs of several sizes
        parts = [_filled(part, max(sizes), 1 - axis) for part in parts]
    return np.concatenate(parts, axis=axis)


def _filled(picture: RgbImage, size_px: int, axis: int) -> RgbImage:
    missing = [(0, 0)] * 3
    missing[axis] = (0, size_px - picture.shape[axis])
    return np.pad(picture, missing, constant_values=255)
