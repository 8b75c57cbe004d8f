"""Training samples from synthetic sequences: rendered once into a folder, then augmented at every use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.datasets.synthetic import SyntheticConfig, SyntheticSequence
from anomseg_ros.errors import DatasetError

VOID = 19
"""Class that the anomalies are trained as, after the 19 of Cityscapes."""

IGNORED = 255

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FrameSet:
    """images (N, H, W, 3) uint8 RGB; targets (N, H, W) uint8: 0..18 known, 19 anomaly, 255 ignored."""

    images: Bytes
    targets: Bytes


def render_frames(
    folder: Path,
    config: SyntheticConfig,
    seeds: Sequence[int],
    frames_per_sequence: int,
    height_px: int,
    width_px: int,
    progress: Callable[[int, int], None],
) -> FrameSet:
    """Return frames of the sequences `seeds`, resized to height_px x width_px, kept in `folder` for the next time.

    Frames lie three seconds apart. Each sequence is one file, written beside and renamed, so that an interrupted run
    goes on where it was; the configuration is part of the file's name. Raises DatasetError for a damaged file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = repr((sorted(asdict(config).items()), frames_per_sequence, height_px, width_px))
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:12]
    images, targets = [], []
    for done, seed in enumerate(seeds):
        progress(done, len(seeds))
        path = folder / f"{digest}-{seed:07d}.npz"
        if not path.is_file():
            _render_sequence(path, config, seed, frames_per_sequence, height_px, width_px)
        part = _read_sequence(path, (frames_per_sequence, height_px, width_px))
        images.append(part.images)
        targets.append(part.targets)
    progress(len(seeds), len(seeds))
    return FrameSet(np.concatenate(images), np.concatenate(targets))


def _render_sequence(path: Path, config: SyntheticConfig, seed: int, count: int, height_px: int, width_px: int) -> None:
    sequence = SyntheticSequence(seed, config)
    images = np.empty((count, height_px, width_px, 3), np.uint8)
    targets = np.empty((count, height_px, width_px), np.uint8)
    for i in range(count):
        frame = sequence.frame(round(i * 3.0 * config.rate_hz))
        target = np.where(frame.anomaly == 1, VOID, frame.labels).astype(np.uint8)
        images[i] = cv2.resize(frame.image, (width_px, height_px), interpolation=cv2.INTER_LINEAR)
        targets[i] = cv2.resize(target, (width_px, height_px), interpolation=cv2.INTER_NEAREST)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    with beside.open("wb") as file:
        np.savez(file, images=images, targets=targets)
    os.replace(beside, path)


def _read_sequence(path: Path, shape: tuple[int, int, int]) -> FrameSet:
    try:
        with np.load(path, allow_pickle=False) as data:
            frames = FrameSet(data["images"], data["targets"])
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{path} is not a readable frame file ({error}); delete it to have it made again") from error
    if frames.targets.shape != shape or frames.images.shape != (*shape, 3):
        raise DatasetError(f"{path} holds frames {frames.targets.shape}, expected {shape}; delete it")
    return frames


def draw_batch(frames: FrameSet, batch_size: int, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """Return `batch_size` augmented frames: images (B, H, W, 3) and targets (B, H, W), uint8."""
    chosen = rng.integers(0, len(frames.images), batch_size)
    pairs = [augment(frames.images[i], frames.targets[i], rng) for i in chosen]
    return np.stack([image for image, _ in pairs]), np.stack([target for _, target in pairs])


def augment(image: Bytes, target: Bytes, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """Return a flipped, zoomed and recoloured copy of an image (H, W, 3) and its target (H, W), of the same sizes."""
    height, width = target.shape
    if rng.random() < 0.5:
        image, target = image[:, ::-1], target[:, ::-1]
    zoom = float(rng.uniform(1.0, 1.7)) if rng.random() < 0.6 else 1.0
    crop_h, crop_w = int(height / zoom), int(width / zoom)
    top, left = int(rng.integers(0, height - crop_h + 1)), int(rng.integers(0, width - crop_w + 1))
    image = np.ascontiguousarray(image[top : top + crop_h, left : left + crop_w])
    target = np.ascontiguousarray(target[top : top + crop_h, left : left + crop_w])
    if zoom > 1.0:
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
        target = np.asarray(cv2.resize(target, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
    return _recolour(image, rng), target


def _recolour(image: Bytes, rng: np.random.Generator) -> Bytes:
    """Change exposure, contrast and colour balance, and at times sharpness and noise."""
    level = np.arange(256, dtype=np.float32)[:, None]
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.93, 1.07, 3)
    curve = 255.0 * np.clip(level / 255.0 * gain, 0, 1) ** rng.uniform(0.75, 1.3)
    table = curve.astype(np.uint8)[:, None, :]
    image = np.asarray(cv2.LUT(image, table), np.uint8)
    if rng.random() < 0.25:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 1.0))), np.uint8)
    if rng.random() < 0.25:
        noise = rng.normal(0, rng.uniform(1, 6), image.shape).astype(np.int16)
        image = np.asarray(cv2.add(image, noise, dtype=cv2.CV_8U), np.uint8)
    return image
