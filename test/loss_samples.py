"""Logits and targets for the tests of losses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anomseg_ros.training.losses import IGNORED, OUTLIER

CLASSES = 5
VOID = CLASSES - 1
Array = npt.NDArray[np.float64]


def batch(seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Return float64 logits (2, 5, 6, 7) with a gradient, and targets with classes, outliers and ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, CLASSES, 6, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(0, CLASSES, (2, 6, 7), generator=generator)
    target[:, 0] = IGNORED
    target[:, 2:4, 3:6] = OUTLIER
    return logits.requires_grad_(), target


def rows(logits: Tensor) -> Array:
    """Return (pixels, C) logits, one row per pixel in the order of the target."""
    return logits.detach().double().numpy().transpose(0, 2, 3, 1).reshape(-1, logits.shape[1])


def log_softmax(values: Array) -> Array:
    """Return the log-softmax of (pixels, C) logits."""
    return np.asarray(values - np.log(np.exp(values).sum(1, keepdims=True)))
