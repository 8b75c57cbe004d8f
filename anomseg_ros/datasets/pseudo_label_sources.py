"""Sources of frames to label: a dataset of this package, a folder of pictures, or a video.

Each pixel of a frame has a set of Cityscapes' classes that a teacher may choose from.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.image_files import image_files
from anomseg_ros.core.labels import CITYSCAPES, CITYSCAPES_CLASSES_OF, UNLABELLED, cityscapes_choices
from anomseg_ros.core.pixel_files import read_label, read_picture
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets import DATASETS, open_dataset
from anomseg_ros.datasets.dataset import KNOWN, Dataset
from anomseg_ros.errors import AnomsegError, DatasetError, FrameError, unknown_name

FREE = 254
"""Code of pixels without a label of the source."""

NATURE = ("vegetation", "terrain", "sky")
"""Classes of scenery. A teacher of streets often sees cars and people in near leaves and far rocks with confidence, so
other classes are uncertain there."""

FOLDER, SCENERY, VIDEO = "folder", "scenery", "video"
_ALL = tuple(info.name for info in CITYSCAPES)
IGNORE = "ignore"
"""Folder beside the pictures with masks, not 0 where no teacher may label."""


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """One frame to label.

    image: uint8 (H, W, 3) RGB. codes: uint8 (H, W). choices: bool (256, 19), the possible classes of the pixels of each
    code; none for pixels that stay unlabelled.
    """

    image: RgbImage
    codes: npt.NDArray[np.uint8]
    choices: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SourceSpec:
    """What determines the bytes of a source's frames; see Source.

    sha256: of its frames' names and its first frame's pixels.
    """

    name: str
    kind: str
    split: str
    known: bool
    frames: int
    sha256: str


class Source(ABC):
    """Frames by index. name: unique among sources. known: frames show known classes only."""

    name: str
    kind: str
    split: str = ""
    known: bool = False
    frame_names: Sequence[str]

    @abstractmethod
    def load(self, index: int) -> Unlabelled:
        """Read one frame. Raises AnomsegError that names its file."""

    def __len__(self) -> int:
        """Return the stated number of frames."""
        return len(self.frame_names)

    def describe(self) -> SourceSpec:
        """Return what distinguishes this source from others; its place does not matter."""
        digest = hashlib.sha256("\n".join(self.frame_names).encode())
        try:
            first = self.load(0)
        except AnomsegError:
            pass  # reported when the frame is labelled
        else:
            digest.update(first.image.tobytes())
            digest.update(first.codes.tobytes())
        return SourceSpec(self.name, self.kind, self.split, self.known, len(self), digest.hexdigest())


class DatasetFrames(Source):
    """Frames of a dataset. Its own labels restrict the classes."""

    def __init__(self, name: str, dataset: Dataset) -> None:
        self.name, self.kind, self.split = name, dataset.name, dataset.split
        self.frame_names = [dataset.frame_id(index).replace("/", "_") for index in range(len(dataset))]
        self._dataset = dataset
        labelled = dataset.label_set in CITYSCAPES_CLASSES_OF
        self._own = cityscapes_choices(str(dataset.label_set)) if labelled else None

    def load(self, index: int) -> Unlabelled:
        """Read one frame. Without labels, the known pixels of its anomaly mask are free."""
        frame = self._dataset.load(index)
        if frame.labels is not None and self._own is not None:
            return Unlabelled(frame.image, frame.labels, self._own)
        if frame.anomaly is None:
            return _free(frame.image)
        return _free(frame.image, ignored=frame.anomaly != KNOWN)


class PictureFolder(Source):
    """Picture files of a folder, with optional masks PATH/ignore/STEM.png of pixels that stay unlabelled."""

    def __init__(self, name: str, kind: str, path: Path) -> None:
        self.name, self.kind, self.known = name, kind, kind == SCENERY
        try:
            self._files = image_files(path)
        except FrameError as error:
            raise DatasetError(str(error)) from None
        self._masks = path / IGNORE
        self.frame_names = [file.stem for file in self._files]

    def load(self, index: int) -> Unlabelled:
        """Read one picture."""
        file = self._files[index]
        image = read_picture(file)
        mask = self._masks / f"{file.stem}.png"
        classes = NATURE if self.kind == SCENERY else _ALL
        if not mask.is_file():
            return _free(image, classes)
        ignored = read_label(mask)
        if ignored.shape != image.shape[:2]:
            raise FrameProblem("labels of another size", mask, f"its image {file.name} is {image.shape[:2]}")
        return _free(image, classes, ignored != 0)


class VideoFrames(Source):
    """Every n-th frame of a video. Stated frames that the file lacks fail one by one."""

    def __init__(self, name: str, path: Path, every: int) -> None:
        self.name, self.kind, self.split = name, VIDEO, f"every {every}"
        if not path.is_file():
            raise DatasetError(f"{str(path)!r} is no video file; give video=FILE, for example video=drive.mp4")
        self._path, self._every = path, every
        self._open()
        stated = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if not self._capture.isOpened() or stated < 1:
            raise DatasetError(f"{str(path)!r} cannot be opened as a video: damaged, or of an unsupported codec")
        self._stated = stated
        self.frame_names = [f"{path.stem}_{number:06d}" for number in range(0, stated, every)]

    def load(self, index: int) -> Unlabelled:
        """Read one frame. Reading in order is fast, since a video is decoded from its start."""
        wanted = index * self._every
        if wanted < self._next:
            self._open()
        while self._next < wanted and self._capture.grab():
            self._next += 1
        done, bgr = self._capture.read() if self._next == wanted else (False, None)
        if not done or bgr is None:
            raise DatasetError(
                f"{str(self._path)!r} ends after {self._next} frames where it states {self._stated}: it was cut short; "
                "copy or record it again"
            )
        self._next += 1
        return _free(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8))

    def _open(self) -> None:
        self._capture = cv2.VideoCapture(str(self._path))
        self._next = 0


def open_sources(texts: Sequence[str], every: int = 1, known: Sequence[str] = ()) -> tuple[Source, ...]:
    """Open sources written KIND=PATH or KIND=PATH:SPLIT.

    KIND: a dataset's name, `folder`, `scenery` or `video`. A source has the name of its kind; the second of a kind is
    KIND2. every: step between the frames of a video. known: names of sources that show known classes only, as scenery
    does.

    Raises:
        DatasetError: unknown kind, no such folder or file, no frame in it, or a name in `known` of no source.
    """
    sources: list[Source] = []
    for text in texts:
        kind, equals, path = text.partition("=")
        if not equals:
            raise DatasetError(f"{text!r} is not of the form KIND=PATH, for example folder=/data/pictures")
        count = 1 + sum(source.kind == kind for source in sources)
        source = _open(kind, path, kind if count == 1 else f"{kind}{count}", every)
        _check(source, text)
        sources.append(source)
    for name in known:
        _named(name, sources).known = True
    if not sources:
        raise DatasetError("no frames to label; give at least one source, for example folder=/data/pictures")
    return tuple(sources)


def _open(kind: str, path: str, name: str, every: int) -> Source:
    if kind == VIDEO:
        return VideoFrames(name, Path(path).expanduser(), every)
    if kind in (FOLDER, SCENERY):
        return PictureFolder(name, kind, Path(path).expanduser())
    if kind in DATASETS:
        return DatasetFrames(name, open_dataset(kind, path))
    raise DatasetError(unknown_name("kind of frames", kind, (FOLDER, SCENERY, VIDEO, *DATASETS)))


def _named(name: str, sources: Sequence[Source]) -> Source:
    for source in sources:
        if source.name == name:
            return source
    raise DatasetError(unknown_name("source", name, [source.name for source in sources]))


def _check(source: Source, text: str) -> None:
    if len(source) == 0:
        raise DatasetError(f"{text!r} holds no frame")
    if len(set(source.frame_names)) < len(source):
        raise DatasetError(f"{text!r} has frames whose names differ only by folder or file ending; rename them")


def _free(image: RgbImage, classes: Sequence[str] = _ALL, ignored: npt.NDArray[np.bool_] | None = None) -> Unlabelled:
    """Return a frame without own labels. All pixels but the ignored ones may have these classes."""
    codes = np.full(image.shape[:2], FREE, np.uint8)
    if ignored is not None:
        codes[ignored] = UNLABELLED
    choices = np.zeros((256, len(CITYSCAPES)), np.bool_)
    choices[FREE] = [info.name in classes for info in CITYSCAPES]
    return Unlabelled(image, codes, choices)
