"""Repetition of frames with rare classes: repeat factor sampling (Gupta et al. 2019, LVIS, section 4.2)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from anomseg_ros.training.frame_cache import Frames

MIN_SHARE = 0.001
"""A frame shows a class that covers at least this share of it: 500 pixels of 512x1024."""


def repeated_frames(frames: Frames, threshold: float) -> npt.NDArray[np.int64]:
    """Return int64 (M,): the frames of one epoch by index, in order; frames with rare classes are repeated.

    A class that the share f of the frames shows has the factor max(1, sqrt(threshold / f)). A frame has the rounded
    factor of its rarest class; LVIS draws the fraction instead. threshold: 0 repeats nothing.
    """
    indices = np.arange(len(frames))
    if not threshold:
        return indices
    shown = np.array([_shown(labels, len(frames.classes)) for labels in frames.labels])
    share = shown.mean(0)
    factor = np.sqrt(np.maximum(1.0, threshold / np.maximum(share, 1 / len(frames))))
    repeats: npt.NDArray[np.int64] = np.repeat(indices, np.rint(np.where(shown, factor, 1.0).max(1)).astype(np.int64))
    return repeats


def _shown(labels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.bool_]:
    counts = np.bincount(labels.ravel(), minlength=256)[:classes]
    return np.asarray(counts >= MIN_SHARE * labels.size)
