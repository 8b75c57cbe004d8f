"""Datasets: ordered sets of labelled frames with a name, a split and a published size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.file_pairs import Sample, files_in, pair, with_suffix_removed
from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.pixel_files import read_label, read_picture
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.errors import DatasetError, closest_first

KNOWN, ANOMALY, VOID = 0, 1, 255
"""Values of an anomaly mask: a known class, an anomaly, and pixels that no metric counts."""

_UNKNOWN = 254


@dataclass(frozen=True)
class LabelledFrame:
    """One frame and its ground truth.

    image: uint8 (H, W, 3) RGB. labels: uint8 (H, W) train ids of the dataset's classes, 252 known but class uncertain,
    255 unlabelled, or None where the dataset has no semantic labels. anomaly: uint8 (H, W), 0 known, 1 anomaly, 255
    void, or None likewise.
    """

    id: str
    image: RgbImage
    labels: LabelImage | None
    anomaly: npt.NDArray[np.uint8] | None


class Dataset(Protocol):
    """Labelled frames by index; load() may be called from several threads and processes."""

    name: str
    split: str
    layout: str
    path: str
    label_set: str | None
    classes: tuple[ClassInfo, ...] | None
    has_anomalies: bool
    published_count: int | None
    problems: tuple[FrameProblem, ...]

    def __len__(self) -> int:
        """Return the number of frames."""
        ...

    def frame_id(self, index: int) -> str:
        """Return the name of a frame, unique in the dataset."""
        ...

    def origin(self, index: int) -> str:
        """Return the file of a frame's picture, or how it is drawn: equal for equal pictures in other datasets."""
        ...

    def load(self, index: int) -> LabelledFrame:
        """Read one frame and its ground truth. Raises DatasetError that names the file."""
        ...


def notes_of(dataset: Dataset) -> tuple[str, ...]:
    """Return sentences on how the frames of a dataset were chosen that a person must know; most datasets have none."""
    notes: tuple[str, ...] = getattr(dataset, "notes", ())
    return notes


def licence_of(dataset: Dataset) -> str:
    """Return the terms of the frames as the dataset itself states them; empty for most."""
    licence: str = getattr(dataset, "licence", "")
    return licence


class DatasetType(Protocol):
    """The entries of DATASETS: callables that open a dataset."""

    splits: Mapping[str, int]
    default_split: str
    layouts: tuple[str, ...]

    def __call__(self, path: str, split: str | None = None) -> Dataset:
        """Open the dataset at a path. Raises DatasetError."""
        ...


@dataclass(frozen=True, eq=False)
class LabelCodes:
    """The meaning of a label image's values: value -> train id, and value -> 0, 1 or 255; None for no such meaning."""

    meaning: str
    labels: Mapping[int, int] | None = None
    anomaly: Mapping[int, int] | None = None

    def decode(self, raw: npt.NDArray[np.uint8], path: Path) -> tuple[LabelImage | None, npt.NDArray[np.uint8] | None]:
        """Return (labels, anomaly) of a raw label image. Raises FrameProblem for a value without a meaning."""
        decoded = []
        for codes in (self.labels, self.anomaly):
            mapped = None if codes is None else np.asarray(cv2.LUT(raw, _table(codes)), np.uint8)
            if mapped is not None and codes is not None and bool((mapped == _UNKNOWN).any()):
                counts = np.bincount(raw.reshape(-1), minlength=256)
                unknown = [f"{value} ({counts[value]} px)" for value in np.flatnonzero(counts) if value not in codes]
                raise FrameProblem("unknown label values", path, f"{_few(unknown)}; expected {self.meaning}")
            decoded.append(mapped)
        return decoded[0], decoded[1]


@dataclass(frozen=True)
class Found:
    """The files of a dataset in one layout. problems: files without a partner."""

    layout: str
    samples: tuple[Sample, ...]
    codes: LabelCodes
    problems: tuple[FrameProblem, ...] = ()


def pair_folders(
    images: Path, labels: Path, codes: LabelCodes, *, pattern: str = "*", image_suffix: str = "", label_suffix: str = ""
) -> Found | None:
    """Return the files of two folders in the official layout, None unless both folders exist.

    Args:
        images: folder of the pictures.
        labels: folder of the label images.
        codes: of the label images.
        pattern: of the files in both folders.
        image_suffix: of the pictures' names behind the frame's id, without file ending.
        label_suffix: of the label images' names behind the frame's id, perhaps with file ending.
    """
    if not images.is_dir() or not labels.is_dir():
        return None
    samples, problems = pair(_named(images, pattern, image_suffix), _named(labels, pattern, label_suffix))
    return Found("official", samples, codes, problems)


FLAT_CODES = LabelCodes("0 known, 1 anomaly, 255 void", anomaly={0: KNOWN, 1: ANOMALY, 255: VOID})


class FileDataset(ABC):
    """A dataset of image and label files, in its official layout or the flat one (images/N.ext, labels_masks/N.png).

    Subclasses have names and find their official files.
    """

    name: str
    splits: ClassVar[Mapping[str, int]]
    """Frames published per split."""
    default_split: str
    layouts: tuple[str, ...]
    """The official layout, for help and error messages."""
    label_set: str | None = None
    classes: tuple[ClassInfo, ...] | None = None
    folders: ClassVar[tuple[str, ...]] = ()
    """Folders in the official archives. The path may be such a folder or its parent."""
    flat_codes: ClassVar[LabelCodes] = FLAT_CODES
    notes: tuple[str, ...] = ()
    """Sentences on how the frames were chosen; see notes_of."""
    licence: str = ""
    """Terms of the frames, where the dataset itself states them; see licence_of."""

    def __init__(self, path: str, split: str | None = None) -> None:
        """Find the files of a split (None: the default one). Raises DatasetError if no layout is recognised."""
        self.path = path
        self.split = self._checked_split(split)
        self.published_count: int | None = self.splits[self.split]
        self._use(self._find(Path(path).expanduser()))

    @abstractmethod
    def find_official(self, root: Path) -> Found | None:
        """Return the files of `self.split` in the official layout below `root`, None if it is not that layout."""

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.samples)

    def frame_id(self, index: int) -> str:
        """Return the name of a frame, from its files."""
        return self.samples[index].id

    def origin(self, index: int) -> str:
        """Return the file of a frame's picture; see Dataset.origin."""
        return str(self.samples[index].image_path.resolve())

    def load(self, index: int) -> LabelledFrame:
        """Read one frame and its ground truth. Raises DatasetError that names the file."""
        sample = self.samples[index]
        image = self.read_image(sample)
        raw = read_label(sample.label_path)
        if raw.shape != image.shape[:2]:
            sizes = f"{_size(raw.shape)}, its image {sample.image_path.name} {_size(image.shape)}"
            raise FrameProblem("labels of another size", sample.label_path, sizes)
        labels, anomaly = self._codes.decode(raw, sample.label_path)
        return LabelledFrame(sample.id, image, labels, anomaly)

    def read_image(self, sample: Sample) -> RgbImage:
        """Return the frame's picture."""
        return read_picture(sample.image_path)

    def _use(self, found: Found) -> None:
        self.layout, self.samples, self.problems = found.layout, found.samples, found.problems
        self._codes = found.codes
        self.has_anomalies = found.codes.anomaly is not None

    def _checked_split(self, split: str | None) -> str:
        chosen = split or self.default_split
        if chosen not in self.splits:
            known = ", ".join(closest_first(chosen, self.splits))
            raise DatasetError(f"{self.name} has no split {chosen!r}; known: {known}")
        return chosen

    def _find(self, path: Path) -> Found:
        if not path.is_dir():
            raise DatasetError(f"{self.name}: {str(path)!r} is not a folder; give the folder of the dataset")
        for root in (path, *(path / folder for folder in self.folders)):
            if not root.is_dir():
                continue
            found = self.find_official(root) or self._find_flat(root)
            if found is not None and (found.samples or found.problems):
                return found
        raise DatasetError(
            f"{self.name}: nothing of the split {self.split!r} was found in {str(path)!r}; "
            f"expected {' or '.join(self.layouts)}, or images/N.png with labels_masks/N.png"
        )

    def _find_flat(self, root: Path) -> Found | None:
        images, masks = root / "images", root / "labels_masks"
        if not images.is_dir() or not masks.is_dir():
            return None
        png = [(id_, path) for id_, path in _named(masks, "*", "") if path.suffix.lower() == ".png"]
        samples, problems = pair(_named(images, "*", ""), png)
        return Found("flat", samples, self.flat_codes, problems)


def _named(folder: Path, pattern: str, suffix: str) -> list[tuple[str, Path]]:
    files = files_in(folder, pattern)
    return with_suffix_removed(files, suffix) if suffix else [(path.stem, path) for path in files]


def _table(codes: Mapping[int, int]) -> npt.NDArray[np.uint8]:
    table = np.full(256, _UNKNOWN, np.uint8)
    for value, meaning in codes.items():
        table[value] = meaning
    return table


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _few(values: list[str]) -> str:
    return ", ".join(values[:8]) + (", …" if len(values) > 8 else "")
