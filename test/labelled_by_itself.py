"""Frames labelled by a network with every fifth pixel wrong, so that a temperature of minimal NLL exists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from dataset_trees import write
from small_bundles import street_frames

from anomseg_ros.networks.network import SegmentationNetwork, pixels_to_input


def write_own_labels(network: SegmentationNetwork, root: Path, frames: int = 2) -> str:
    """Write validation frames in CamVid's layout, 64x128; return the command line's NAME=PATH."""
    generator = np.random.default_rng(3)
    for number, image in enumerate(street_frames(frames)):
        with torch.inference_mode():
            labels = network(pixels_to_input(torch.from_numpy(image[None].copy())))[0].argmax(0).numpy()
        wrong = generator.random(labels.shape) < 0.2
        labels = np.where(wrong, generator.integers(0, network.num_classes, labels.shape), labels)
        write(root / "val" / f"{number}.png", image)
        write(root / "valannot" / f"{number}.png", labels.astype(np.uint8))
    return f"camvid={root}:val"
