"""A small anomaly dataset of noise in the flat layout, with one frame without an anomaly."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_flat_dataset(folder: Path, frames: int = 6, height_px: int = 48, width_px: int = 96) -> str:
    """Write images and labels; frame 1 has no anomaly. Returns the command line's NAME=PATH."""
    generator = np.random.default_rng(5)
    for name in ("images", "labels_masks"):
        (folder / name).mkdir(parents=True)
    for index in range(frames):
        image = generator.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
        labels = np.zeros((height_px, width_px), np.uint8)
        labels[:6] = 255
        if index != 1:
            labels[20 : 30 + index, 10:40] = 1
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
        cv2.imwrite(str(folder / "labels_masks" / f"{index}.png"), labels)
    return f"road_anomaly_21={folder}"
