"""Write a dataset that teachers label: reproducible, resumed where it was killed, complete but for frames that fail."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros import __version__
from anomseg_ros.core.labels import CITYSCAPES, KNOWN_UNCERTAIN, UNLABELLED, palette
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.pixel_files import read_label, read_picture
from anomseg_ros.datasets.pseudo_label import LabelConfig, Teacher, label_frame
from anomseg_ros.datasets.pseudo_label_dataset import (
    AGREEMENT,
    CONFIDENCE,
    FORMAT,
    IMAGES,
    LABELS,
    Manifest,
    PseudoLabelSpec,
    SourceResult,
    written_folder,
)
from anomseg_ros.datasets.pseudo_label_sources import Source
from anomseg_ros.datasets.written_folder import PREVIEW, png, sheet, spread, write_beside
from anomseg_ros.errors import AnomsegError, ConfigError, DatasetError, closest_first

UNCERTAIN_NAME, UNLABELLED_NAME = "known, class uncertain", "unlabelled"
"""What the manifest calls the shares of 252 and 255."""

_PREVIEW_ROWS, _PREVIEW_WIDTH_PX = 40, 420
_UNCERTAIN_RGB = (255, 255, 255)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class WriteConfig:
    """What is written.

    validation: patterns (`*`, `?`) of the ids of frames to hold out. share: of the frames of every source that no
    pattern matches, so many are held out, the last ones, so that a drive is cut in one place.
    """

    labels: LabelConfig = field(default_factory=LabelConfig)
    validation: tuple[str, ...] = ()
    share: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be."""
        if not 0 <= self.share < 1:
            raise ConfigError(f"validation share is {self.share!r}; expected 0 to below 1")


@dataclass
class _Tally:
    """Counts over the frames of one source: sums of confidence and agreement, 0 to 255, over `asked` pixels."""

    written: int = 0
    validation: int = 0
    asked: int = 0
    confidence: int = 0
    agreement: int = 0


def write_pseudo_labels(
    sources: Sequence[Source],
    teachers: Sequence[Teacher],
    folder: Path,
    config: WriteConfig,
    *,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """Write, or finish, a dataset of labelled frames; return its manifest.

    A frame that fails is left out and named in the manifest; another run tries it again. progress: called with (done,
    total) after each frame.

    Raises:
        ConfigError: no teacher; the folder holds a dataset made otherwise, or something else, or cannot be written; a
            pattern matches no frame.
        DatasetError: no frame could be labelled.
    """
    if not teachers:
        raise ConfigError("no teacher; give at least one, a bundle or NETWORK=CHECKPOINT")
    spec = _specify(sources, teachers, config)
    written = written_folder(folder)
    try:
        written.prepare(spec, overwrite)
        run = _Run(folder, spec, tuple(teachers))
        total = sum(map(len, sources))
        for source in sources:
            for index in range(len(source)):
                run.frame(source, index)
                progress(run.done, total)
        manifest = run.manifest()
        write_beside(folder / PREVIEW, _preview(folder, run.ids))
        written.finish(manifest)
    except OSError as error:
        raise ConfigError(
            f"cannot write {error.filename or str(folder)!r}: {error.strerror}; make room, or give another folder"
        ) from error
    return manifest


class _Run:
    """The frames of one run, counted as they are written or found."""

    def __init__(self, folder: Path, spec: PseudoLabelSpec, teachers: tuple[Teacher, ...]) -> None:
        self._folder, self._spec, self._teachers = folder, spec, teachers
        self._held_out = set(spec.validation)
        self._tallies = {source.name: _Tally() for source in spec.sources}
        self._values = np.zeros(256, np.int64)
        self._digest = hashlib.sha256()
        self._failures: list[str] = []
        self.ids: list[str] = []
        self.done = 0

    def frame(self, source: Source, index: int) -> None:
        """Write one frame unless it is there, and count it."""
        id_ = frame_id(source, index)
        paths = {name: self._folder / name / f"{id_}.png" for name in (IMAGES, CONFIDENCE, AGREEMENT, LABELS)}
        self.done += 1
        try:
            # Files are renamed when they are whole, the labels last.
            if not all(path.is_file() for path in paths.values()):
                _write_frame(paths, source, index, self._teachers, self._spec.labels)
            self._count(source.name, id_, paths)
        except AnomsegError as error:
            self._failures.append(f"{id_}: {error}")

    def _count(self, source: str, id_: str, paths: Mapping[str, Path]) -> None:
        labels, confidence, agreement = (read_label(paths[name]) for name in (LABELS, CONFIDENCE, AGREEMENT))
        for name in (IMAGES, LABELS, CONFIDENCE, AGREEMENT):
            self._digest.update(hashlib.sha256(paths[name].read_bytes()).digest())
        self._values += np.bincount(labels.reshape(-1), minlength=256)
        tally = self._tallies[source]
        tally.written += 1
        tally.validation += id_ in self._held_out
        tally.asked += int(np.count_nonzero(confidence | agreement))
        tally.confidence += int(confidence.sum(dtype=np.int64))
        tally.agreement += int(agreement.sum(dtype=np.int64))
        self.ids.append(id_)

    def manifest(self) -> Manifest:
        """Return what was written. Raises DatasetError where nothing was."""
        if not self.ids:
            first = self._failures[0] if self._failures else "there was none"
            raise DatasetError(f"no frame could be labelled; the first: {first}")
        stated = {source.name: source.frames for source in self._spec.sources}
        results = {name: _result(tally, stated[name]) for name, tally in self._tallies.items()}
        names = {info.train_id: info.name for info in CITYSCAPES}
        names |= {KNOWN_UNCERTAIN: UNCERTAIN_NAME, UNLABELLED: UNLABELLED_NAME}
        shares = self._values / self._values.sum()
        return Manifest(
            self._spec,
            len(self.ids),
            self._digest.hexdigest(),
            results,
            {name: round(float(shares[value]), 6) for value, name in names.items()},
            tuple(self._failures),
        )


def frame_id(source: Source, index: int) -> str:
    """Return what a frame is called in the dataset: SOURCE-FRAME."""
    return f"{source.name}-{source.frame_names[index]}"


def _specify(sources: Sequence[Source], teachers: Sequence[Teacher], config: WriteConfig) -> PseudoLabelSpec:
    return PseudoLabelSpec(
        format=FORMAT,
        made_with=f"anomseg {__version__}, OpenCV {cv2.__version__}, numpy {np.__version__}",
        teachers=tuple(teacher.info for teacher in teachers),
        sources=tuple(source.describe() for source in sources),
        labels=config.labels,
        validation=tuple(_held_out(sources, config)),
    )


def _held_out(sources: Sequence[Source], config: WriteConfig) -> list[str]:
    ids = {source.name: [frame_id(source, index) for index in range(len(source))] for source in sources}
    for pattern in config.validation:
        if not any(fnmatch.filter(of_source, pattern) for of_source in ids.values()):
            known = ", ".join(closest_first(pattern, [id_ for of_source in ids.values() for id_ in of_source])[:3])
            raise ConfigError(f"validation pattern {pattern!r} matches no frame; frames are called {known}, …")
    chosen: list[str] = []
    for of_source in ids.values():
        matched = [id_ for id_ in of_source if any(fnmatch.fnmatchcase(id_, one) for one in config.validation)]
        last = round(config.share * len(of_source))
        chosen += matched or of_source[len(of_source) - last :]
    return chosen


def _write_frame(
    paths: Mapping[str, Path], source: Source, index: int, teachers: tuple[Teacher, ...], config: LabelConfig
) -> None:
    done = label_frame(source.load(index), teachers, config, known=source.known)
    for name, pixels in (
        (IMAGES, done.image),
        (CONFIDENCE, done.confidence),
        (AGREEMENT, done.agreement),
        (LABELS, done.labels),
    ):
        write_beside(paths[name], png(pixels))


def _result(tally: _Tally, stated: int) -> SourceResult:
    whole = 255 * max(1, tally.asked)
    confidence, agreement = round(tally.confidence / whole, 4), round(tally.agreement / whole, 4)
    return SourceResult(stated, tally.written, tally.validation, confidence, agreement)


def _preview(folder: Path, ids: Sequence[str]) -> bytes:
    """Return a JPEG sheet: frames from all over the dataset, each beside its labels and its confidence."""
    return sheet([_preview_tile(folder, ids[number]) for number in spread(len(ids), _PREVIEW_ROWS)], columns=2)


def _preview_tile(folder: Path, id_: str) -> RgbImage:
    image = read_picture(folder / IMAGES / f"{id_}.png")
    labels, confidence = (read_label(folder / name / f"{id_}.png") for name in (LABELS, CONFIDENCE))
    colors = palette(CITYSCAPES)
    colors[KNOWN_UNCERTAIN] = _UNCERTAIN_RGB
    size = (_PREVIEW_WIDTH_PX, max(1, round(image.shape[0] * _PREVIEW_WIDTH_PX / image.shape[1])))
    pictures: list[npt.NDArray[np.uint8]] = [image, colors[labels], np.repeat(confidence[:, :, np.newaxis], 3, axis=2)]
    shrunk = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
    return np.asarray(np.concatenate(shrunk, axis=1), np.uint8)
