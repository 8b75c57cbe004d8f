"""Small unlabelled drives: folders of pictures, videos and bags."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from bag_scenes import Drawn, write_bag
from dataset_trees import write


def noise(number: int, seed: int = 0) -> np.ndarray:
    """Return a frame of noise, uint8 (48, 96, 3); the pixel at the upper left has the value `number`."""
    frame = np.random.default_rng([seed, number]).integers(0, 256, (48, 96, 3), np.uint8)
    frame[0, 0] = number
    return frame


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """Write 0.png, 1.png, …"""
    for number in range(count):
        write(folder / f"{number}.png", noise(number, seed))
    return folder


def write_video(path: Path, count: int, rate_hz: float = 10) -> Path:
    """Write grey frames, frame n of the value 4 n; uint8 (48, 96, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate_hz, (96, 48))
    for number in range(count):
        writer.write(np.full((48, 96, 3), 4 * number, np.uint8))
    writer.release()
    return path


def write_unlabelled_bag(path: Path, count: int) -> Path:
    """Write frames of noise at 10 Hz, the first at 100 s."""
    return write_bag(path, [Drawn(noise(number), None, None) for number in range(count)])
