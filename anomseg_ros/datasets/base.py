"""What a dataset is: an ordered set of labelled frames with a name, a split and a published size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.image_files import IMAGE_SUFFIXES, natural_key
from anomseg_ros.core.labels import ClassInfo
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.datasets.pixel_files import read_label, read_picture
from anomseg_ros.datasets.problems import FrameProblem
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
        """Return what is the same for the same picture in another dataset or folder: its file, or how it is drawn."""
        ...

    def load(self, index: int) -> LabelledFrame:
        """Read one frame and its ground truth. Raises DatasetError that names the file."""
        ...


class DatasetType(Protocol):
    """What DATASETS names: a callable that opens a dataset, and what it can open."""

    splits: Mapping[str, int]
    default_split: str
    layouts: tuple[str, ...]

    def __call__(self, path: str, split: str | None = None) -> Dataset:
        """Open the dataset at a path. Raises DatasetError."""
        ...


@dataclass(frozen=True)
class Sample:
    """The files of one frame. base_path: the picture below an overlay (Fishyscapes Static), None elsewhere."""

    id: str
    image_path: Path
    label_path: Path
    base_path: Path | None = None


@dataclass(frozen=True, eq=False)
class LabelCodes:
    """What the values of a label image mean: value -> train id, and value -> 0/1/255; None where it says nothing."""

    meaning: str
    labels: Mapping[int, int] | None = None
    anomaly: Mapping[int, int] | None = None

    def decode(self, raw: npt.NDArray[np.uint8], path: Path) -> tuple[LabelImage | None, npt.NDArray[np.uint8] | None]:
        """Return (labels, anomaly) of a raw label image. Raises FrameProblem for a value without a meaning."""
        decoded = []
        for codes in (self.labels, self.anomaly):
            mapped = None if codes is None else np.asarray(cv2.LUT(raw, _table(codes)), np.uint8)
            if mapped is not None and codes is not None and bool((mapped == _UNKNOWN).any()):
                unknown = sorted(set(np.unique(raw).tolist()) - set(codes))
                raise FrameProblem("unknown label values", path, f"{_few(unknown)}; expected {self.meaning}")
            decoded.append(mapped)
        return decoded[0], decoded[1]


@dataclass(frozen=True)
class Found:
    """What was found below a path in one layout. problems: files that do not fit together."""

    layout: str
    samples: tuple[Sample, ...]
    codes: LabelCodes
    problems: tuple[FrameProblem, ...] = ()


FLAT_CODES = LabelCodes("0 known, 1 anomaly, 255 void", anomaly={0: KNOWN, 1: ANOMALY, 255: VOID})


class FileDataset(ABC):
    """A dataset of image and label files, in its official layout or the flat one (images/N.ext, labels_masks/N.png).

    Subclasses say what they are called and find their official files; everything else is here.
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
    """Folders that the official archives unpack to: the path may be that folder or the one that holds it."""
    flat_codes: ClassVar[LabelCodes] = FLAT_CODES

    def __init__(self, path: str, split: str | None = None) -> None:
        """Find the files of a split (None: the default one). Raises DatasetError if no layout is recognised."""
        self.path = path
        self.split = self._checked_split(split)
        self.published_count: int | None = self.splits[self.split]
        found = self._find(Path(path).expanduser())
        self.layout = found.layout
        self.samples = found.samples
        self.problems = found.problems
        self._codes = found.codes
        self.has_anomalies = found.codes.anomaly is not None

    @abstractmethod
    def find_official(self, root: Path) -> Found | None:
        """Return the files of `self.split` in the official layout below `root`, None if it is not that layout."""

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.samples)

    def frame_id(self, index: int) -> str:
        """Return the name of a frame: what the dataset's own files call it."""
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
        samples, problems = pair(
            ((path.stem, path) for path in files_in(images)),
            ((path.stem, path) for path in files_in(masks) if path.suffix.lower() == ".png"),
        )
        return Found("flat", samples, self.flat_codes, problems)


def pair(
    images: Iterable[tuple[str, Path]], labels: Iterable[tuple[str, Path]]
) -> tuple[tuple[Sample, ...], tuple[FrameProblem, ...]]:
    """Join images and labels of the same id into samples, in natural order; what has no partner is a problem."""
    problems: list[FrameProblem] = []
    by_id: list[dict[str, Path]] = [{}, {}]
    for files, known in zip((images, labels), by_id, strict=True):
        for id_, path in files:
            if id_ in known:
                problems.append(FrameProblem("same name twice", path, f"{known[id_].name} is there too"))
            known.setdefault(id_, path)
    pictures, masks = by_id
    problems += [FrameProblem("image without labels", pictures[id_]) for id_ in in_order(set(pictures) - set(masks))]
    problems += [FrameProblem("labels without an image", masks[id_]) for id_ in in_order(set(masks) - set(pictures))]
    samples = tuple(Sample(id_, pictures[id_], masks[id_]) for id_ in in_order(set(pictures) & set(masks)))
    return samples, tuple(problems)


def files_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the image files of a folder that match a pattern (`**/` allowed), without the copies that macOS hides."""
    found = (path for path in folder.glob(pattern) if path.suffix.lower() in IMAGE_SUFFIXES)
    return [path for path in found if not path.name.startswith(".") and path.is_file()]


def with_suffix_removed(paths: Iterable[Path], suffix: str) -> list[tuple[str, Path]]:
    """Return (id, path) of the files whose name is an id, the suffix and, if it has none, a file ending."""
    named = ((path.name if "." in suffix else path.stem, path) for path in paths)
    return [(name[: -len(suffix)], path) for name, path in named if name.endswith(suffix)]


def in_order(ids: Iterable[str]) -> list[str]:
    """Return ids in natural order (2 before 10), ties in plain order."""
    return sorted(ids, key=lambda id_: (natural_key(id_), id_))


def _table(codes: Mapping[int, int]) -> npt.NDArray[np.uint8]:
    table = np.full(256, _UNKNOWN, np.uint8)
    for value, meaning in codes.items():
        table[value] = meaning
    return table


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _few(values: list[int]) -> str:
    return ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")
