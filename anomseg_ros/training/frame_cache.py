"""Decoded training frames of one size, as memory-mapped arrays on disk that all runs and processes share."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros import __version__
from anomseg_ros.core.labels import KNOWN_UNCERTAIN, UNLABELLED, ClassInfo
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.staging import part_ending, remove_leftovers
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.datasets.dataset import ANOMALY, Dataset, LabelledFrame
from anomseg_ros.errors import DatasetError, TrainingError
from anomseg_ros.outliers.cut_paste import OUTLIER


@dataclass(frozen=True, eq=False)
class Frames:
    """Decoded frames and their labels."""

    images: npt.NDArray[np.uint8]  # (N, H, W, 3), RGB
    labels: npt.NDArray[np.uint8]  # (N, H, W): train ids, 252 known without a class, 254 outlier, 255 unlabelled
    ids: tuple[str, ...]
    counts: npt.NDArray[np.int64]  # (256,): pixels per label value
    classes: tuple[ClassInfo, ...]  # the known classes, with train ids 0 to C - 1

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.ids)


def cached_frames(
    dataset: Dataset,
    classes: tuple[ClassInfo, ...],
    size_px: tuple[int, int],
    folder: Path | None,
    allow_partial: bool,
    progress: Progress,
) -> Frames:
    """Return all frames of a dataset at one size; a second call reads what the first decoded.

    Args:
        dataset: frames with class labels.
        classes: the dataset's classes.
        size_px: height and width to resize to.
        folder: place of the decoded frames, in a subfolder named by the source files; None for memory only.
        allow_partial: whether fewer frames than published are accepted.
        progress: called with the stage "decode".

    Raises:
        DatasetError: frames are missing or damaged (all are named), or labels are none of the `classes`.
        TrainingError: the disk is full.
    """
    if len(dataset) == 0 or dataset.problems:
        raise DatasetError(_damage(dataset, list(dataset.problems)))
    published = dataset.published_count
    if published is not None and len(dataset) != published and not allow_partial:
        raise DatasetError(
            f"{dataset.name} {dataset.split} at {dataset.path} has {len(dataset)} frames, {published} are published: "
            "is the download complete? `anomseg datasets check` says what is missing; set data.allow_partial=true to "
            "train on a part"
        )
    if folder is None:
        shape = (len(dataset), *size_px)
        images, labels = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)
        return _fill(dataset, classes, images, labels, progress)
    return _from_disk(dataset, classes, size_px, folder / _key(dataset, size_px), progress)


def _from_disk(
    dataset: Dataset, classes: tuple[ClassInfo, ...], size_px: tuple[int, int], place: Path, progress: Progress
) -> Frames:
    index = place / "index.json"
    if not index.is_file():
        _decode_to_disk(dataset, classes, size_px, place, progress)
    try:
        facts = parse_json(index.read_text())
        images = np.load(place / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(place / "labels.npy", mmap_mode="r", allow_pickle=False)
        frames = Frames(images, labels, tuple(facts["ids"]), np.asarray(facts["counts"], np.int64), classes)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DatasetError(f"the decoded frames in {place} are damaged ({error}); delete that folder") from error
    _check_values(frames.counts, classes, dataset)
    return frames


def _decode_to_disk(
    dataset: Dataset, classes: tuple[ClassInfo, ...], size_px: tuple[int, int], place: Path, progress: Progress
) -> None:
    """Write both arrays under other names, then rename them. The index comes last: it marks them as complete."""
    shape = (len(dataset), *size_px)
    beside = [place / f"{name}{part_ending()}" for name in ("images", "labels", "index")]
    try:
        place.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place, "")
        _require_room(place, int(np.prod(shape)) * 4)
        images, labels = _reserved(beside[0], (*shape, 3)), _reserved(beside[1], shape)
        frames = _fill(dataset, classes, images, labels, progress)
        images.flush()
        labels.flush()
        beside[2].write_text(json.dumps({"ids": frames.ids, "counts": frames.counts.tolist()}))
        for path, name in zip(beside, ("images.npy", "labels.npy", "index.json"), strict=True):
            os.replace(path, place / name)
    except OSError as error:
        raise TrainingError(
            f"cannot keep decoded frames in {place}: {error}; free space, or set data.cache=memory"
        ) from error
    finally:
        for path in beside:
            path.unlink(missing_ok=True)


def _require_room(place: Path, needed: int) -> None:
    """Raise OSError if the disk has no room."""
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise OSError(f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")


def _reserved(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Return a memory-mapped array with allocated blocks; on a full disk, writing to others kills the process."""
    array: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _fill(
    dataset: Dataset,
    classes: tuple[ClassInfo, ...],
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    progress: Progress,
) -> Frames:
    problems: list[FrameProblem] = []
    counts = np.zeros(256, np.int64)
    for index in range(len(dataset)):
        progress("decode", index, len(dataset))
        try:
            frame = dataset.load(index)
        except FrameProblem as problem:
            problems.append(problem)
            continue
        images[index], labels[index] = _resized(frame, labels.shape[1:], dataset)
        counts += np.bincount(labels[index].reshape(-1), minlength=256)
    progress("decode", len(dataset), len(dataset))
    if problems:
        raise DatasetError(_damage(dataset, problems))
    _check_values(counts, classes, dataset)
    return Frames(images, labels, tuple(dataset.frame_id(i) for i in range(len(dataset))), counts, classes)


def _resized(
    frame: LabelledFrame, size_px: tuple[int, ...], dataset: Dataset
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    if frame.labels is None:
        raise DatasetError(f"{dataset.name} has no class labels to train on; choose one with, such as camvid")
    height, width = size_px
    labels = frame.labels
    if frame.anomaly is not None:
        labels = np.where(frame.anomaly == ANOMALY, OUTLIER, labels).astype(np.uint8)
    if labels.shape == (height, width):
        return frame.image, labels
    smooth = cv2.INTER_AREA if height < labels.shape[0] else cv2.INTER_LINEAR
    image = cv2.resize(frame.image, (width, height), interpolation=smooth)
    nearest = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(image, np.uint8), np.asarray(nearest, np.uint8)


def _check_values(counts: npt.NDArray[np.int64], classes: tuple[ClassInfo, ...], dataset: Dataset) -> None:
    others = (*range(len(classes)), KNOWN_UNCERTAIN, OUTLIER, UNLABELLED)
    unknown = [int(value) for value in np.flatnonzero(counts) if value not in others]
    if unknown:
        raise DatasetError(
            f"labels of {dataset.name} at {dataset.path} contain {unknown[:8]}; expected train ids 0 to "
            f"{len(classes) - 1}, {KNOWN_UNCERTAIN} known without a class, {OUTLIER} outlier, {UNLABELLED} unlabelled: "
            "is it this dataset?"
        )


def _damage(dataset: Dataset, problems: list[FrameProblem]) -> str:
    named = "; ".join(str(problem) for problem in problems[:3]) + ("; …" if len(problems) > 3 else "")
    return (
        f"{dataset.name} {dataset.split} at {dataset.path}: {len(dataset)} frames, {len(problems)} problems"
        f"{': ' if named else ''}{named}; `anomseg datasets check` lists them all"
    )


def _key(dataset: Dataset, size_px: tuple[int, int]) -> str:
    """Return a folder name that changes with the files' names, sizes and times."""
    digest = hashlib.sha256(repr((1, dataset.name, dataset.split, dataset.layout, size_px)).encode())
    for index in range(len(dataset)):
        digest.update(dataset.frame_id(index).encode())
    root = Path(dataset.path).expanduser()
    if not root.is_dir():  # generated frames change with the code that draws them
        digest.update(f"{dataset.path} {__version__}".encode())
    for path in sorted(root.rglob("*")) if root.is_dir() else ():
        status = path.stat()
        if path.is_file():
            digest.update(f"{path.relative_to(root)} {status.st_size} {status.st_mtime_ns}".encode())
    return f"{dataset.name}-{dataset.split}-{size_px[1]}x{size_px[0]}-{digest.hexdigest()[:16]}"
