"""mIoU of the (averaged) weights on the validation frames, at the size of the training frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric

from anomseg_ros.core.labels import KNOWN_UNCERTAIN, UNLABELLED
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.metrics.miou import ConfusionMatrix
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.training.frame_cache import Frames

PICTURES = 3
"""Number of frames whose prediction goes into the log."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One frame with its truth and its prediction (uint8 train ids, 255 unlabelled or void)."""

    image: RgbImage
    truth: LabelImage
    predicted: LabelImage


@dataclass(frozen=True, eq=False)
class Validation:
    """Fractions of metrics.miou, and a few pictures."""

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
    progress: Progress,
) -> Validation:
    """Measure a network on all frames, one at a time. A void prediction counts as wrong.

    Args:
        network: in evaluation mode.
        frames: frames and labels.
        void_class: index of the void class, if there is one.
        fabric: gives device and precision.
        progress: called with the stage "validate".
    """
    known = network.num_classes - (void_class is not None)
    matrix = ConfusionMatrix(known)
    logged = {len(frames) * i // PICTURES for i in range(PICTURES)}
    pictures = []
    for index in range(len(frames)):
        progress("validate", index, len(frames))
        image = np.array(frames.images[index])
        pixels = torch.from_numpy(image).to(fabric.device).permute(2, 0, 1)[None]
        with fabric.autocast():
            logits = network.predict(pixels.to(torch.float32) / 255.0).pixel_logits()
        predicted = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
        if void_class is not None:
            predicted[predicted == void_class] = UNLABELLED
        truth = np.array(frames.labels[index])
        truth[truth >= KNOWN_UNCERTAIN] = UNLABELLED
        matrix.add(predicted, truth)
        if index in logged:
            pictures.append(Picture(image, truth, predicted))
    progress("validate", len(frames), len(frames))
    metrics = matrix.metrics()
    return Validation(metrics.miou, metrics.iou, metrics.pixel_accuracy, tuple(pictures))
