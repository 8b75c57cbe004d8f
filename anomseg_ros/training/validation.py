"""mIoU of the weights that will be kept, on the validation frames at the training frames' size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric

from anomseg_ros.core.labels import KNOWN_UNCERTAIN, UNLABELLED
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.metrics.miou import ConfusionMatrix
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.training.frame_cache import Frames

PICTURES = 3
"""Frames whose prediction is kept to be looked at."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One frame, its truth and its prediction (uint8 train ids, 255 unlabelled or void), for a panel."""

    image: RgbImage
    truth: LabelImage
    predicted: LabelImage


@dataclass(frozen=True, eq=False)
class Validation:
    """Fractions, as metrics.miou gives them, and a few pictures."""

    miou: float
    iou: tuple[float, ...]
    pixel_accuracy: float
    pictures: tuple[Picture, ...]


@torch.inference_mode()
def validate(
    network: SegmentationNetwork,
    frames: Frames,
    void_class: int | None,
    fabric: Fabric,
    progress: Callable[[int, int], None],
) -> Validation:
    """Measure a network in evaluation mode on all frames, one at a time; void predictions count as wrong."""
    known = network.num_classes - (void_class is not None)
    matrix = ConfusionMatrix(known)
    shown = {len(frames) * i // PICTURES for i in range(PICTURES)}
    pictures = []
    for index in range(len(frames)):
        progress(index, len(frames))
        image = np.array(frames.images[index])
        pixels = torch.from_numpy(image).to(fabric.device).permute(2, 0, 1)[None]
        with fabric.autocast():
            logits = network(pixels.to(torch.float32) / 255.0)
        predicted = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
        if void_class is not None:
            predicted[predicted == void_class] = UNLABELLED
        truth = np.array(frames.labels[index])
        truth[truth >= KNOWN_UNCERTAIN] = UNLABELLED
        matrix.add(predicted, truth)
        if index in shown:
            pictures.append(Picture(image, truth, predicted))
    progress(len(frames), len(frames))
    found = matrix.metrics()
    return Validation(found.miou, found.iou, found.pixel_accuracy, tuple(pictures))
