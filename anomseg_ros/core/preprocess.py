"""From a camera frame of any size to the uint8 tensor that a bundle's graph takes, and back to the frame's size.

All arithmetic on pixel values (cast, normalisation) is in the graph; only geometry and channel order happen here.
"""

from __future__ import annotations

import cv2
import numpy as np

from anomseg_ros.core.bundle import InputSpec
from anomseg_ros.core.types import LabelImage, RgbImage, ScoreMap
from anomseg_ros.errors import FrameError

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "nearest": cv2.INTER_NEAREST}


def check_frame(frame: RgbImage) -> None:
    """Raise FrameError unless `frame` is a non-empty uint8 (H, W, 3) array."""
    if not isinstance(frame, np.ndarray):
        raise FrameError(
            f"a frame must be a uint8 (H, W, 3) RGB array, got {type(frame).__name__}; `read_frames(path)` reads files"
        )
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise FrameError(f"a frame must be a non-empty uint8 (H, W, 3) RGB array, got {frame.dtype} {frame.shape}")


def tensor_from_frame(frame: RgbImage, spec: InputSpec) -> RgbImage:
    """Return the contiguous uint8 (1, height_px, width_px, 3) tensor of a uint8 (H, W, 3) RGB frame.

    A frame that already has the graph's size and order is passed through without a copy. The aspect ratio is not kept
    ("stretch"), as the papers' evaluation code does.
    """
    check_frame(frame)
    if frame.shape[:2] != (spec.height_px, spec.width_px):
        size = (spec.width_px, spec.height_px)
        frame = np.asarray(cv2.resize(frame, size, interpolation=INTERPOLATIONS[spec.resize]), np.uint8)
    if spec.channel_order == "bgr":
        frame = frame[:, :, ::-1]
    return np.ascontiguousarray(frame)[np.newaxis]


def resized_labels(labels: LabelImage, height_px: int, width_px: int) -> LabelImage:
    """Return the label image at another size, by nearest neighbour: labels cannot be averaged."""
    if labels.shape == (height_px, width_px):
        return labels
    return np.asarray(cv2.resize(labels, (width_px, height_px), interpolation=cv2.INTER_NEAREST), np.uint8)


def resized_scores(scores: ScoreMap, height_px: int, width_px: int) -> ScoreMap:
    """Return the score map at another size, bilinear."""
    if scores.shape == (height_px, width_px):
        return scores
    return np.asarray(cv2.resize(scores, (width_px, height_px), interpolation=cv2.INTER_LINEAR), np.float32)


def noise_frames(height_px: int, width_px: int) -> list[RgbImage]:
    """Return two uint8 (height_px, width_px, 3) frames for comparing programs: noise and smooth noise, always equal."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    blurred = np.asarray(cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 8.0))
    smooth = (blurred - blurred.min()) * (255.0 / np.ptp(blurred))
    return [noise, smooth.astype(np.uint8)]
