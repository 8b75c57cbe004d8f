"""Write a dataset that teachers label, reproducibly. A killed run can be resumed; frames that fail are left out."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros import __version__
from anomseg_ros.core.labels import CITYSCAPES, KNOWN_UNCERTAIN, UNLABELLED, palette
from anomseg_ros.core.output_files import write_file
from anomseg_ros.core.pixel_files import read_label, read_picture
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
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
from anomseg_ros.datasets.written_folder import PREVIEW, png, sheet, spread
from anomseg_ros.errors import AnomsegError, ConfigError, DatasetError, OutputError, closest_first

UNCERTAIN_NAME, UNLABELLED_NAME = "known, class uncertain", "unlabelled"
"""The manifest's names for the shares of 252 and 255."""

_PREVIEW_ROWS, _PREVIEW_WIDTH_PX = 40, 420
_UNCERTAIN_RGB = (255, 255, 255)


@dataclass(frozen=True)
class WriteConfig:
    """What to write.

    validation: patterns (`*`, `?`) of the ids of frames to hold out. share: of each source without a matching frame,
    this share is held out. These are the last frames, so that a drive is cut in one place.
    """

    labels: LabelConfig = field(default_factory=LabelConfig)
    validation: tuple[str, ...] = ()
    share: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        if not 0 <= self.share < 1:
            raise ConfigError(f"validation share is {self.share!r}; expected 0 to below 1")


@dataclass
class _Tally:
    """Sums over the frames of one source: confidence and agreement, 0 to 255, over `asked` pixels."""

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
    progress: Progress = no_progress,
) -> Manifest:
    """Write or resume a dataset of labelled frames; return its manifest.

    A frame that fails is left out and named in the manifest. Another run tries it again.

    Args:
        sources: of frames.
        teachers: at least one.
        folder: new, or with the unfinished dataset of the same arguments.
        config: what to write.
        overwrite: replace another pseudo-labelled dataset in the folder.
        progress: called after each frame.

    Raises:
        ConfigError: there is no teacher; the folder contains a different dataset or other files; a pattern matches no
            frame.
        OutputError: the folder cannot be written.
        DatasetError: no frame could be labelled.
    """
    if not teachers:
        raise ConfigError("no teacher; give at least one, a bundle or NETWORK=CHECKPOINT")
    spec = _specify(sources, teachers, config)
    written = written_folder(folder)
    written.prepare(spec, overwrite)
    run = _Run(folder, spec, tuple(teachers))
    total = sum(map(len, sources))
    for source in sources:
        for index in range(len(source)):
            run.frame(source, index)
            progress("pseudo-label", run.done, total)
    manifest = run.manifest()
    write_file(folder / PREVIEW, _preview(folder, run.ids))
    written.finish(manifest)
    return manifest


class _Run:
    """The frames of one run and their sums."""

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
        """Write one frame unless it exists, and count it."""
        id_ = frame_id(source, index)
        paths = {name: self._folder / name / f"{id_}.png" for name in (IMAGES, CONFIDENCE, AGREEMENT, LABELS)}
        self.done += 1
        try:
            # A file gets its name when it is complete; labels are last.
            if not all(path.is_file() for path in paths.values()):
                _write_frame(paths, source, index, self._teachers, self._spec.labels)
            self._count(source.name, id_, paths)
        except OutputError:  # no other frame can be written either
            raise
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
        """Return the manifest. Raises DatasetError if no frame was written."""
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
    """Return the name of a frame in the dataset: SOURCE-FRAME."""
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
    pictures = {IMAGES: done.image, CONFIDENCE: done.confidence, AGREEMENT: done.agreement, LABELS: done.labels}
    for name, pixels in pictures.items():
        write_file(paths[name], png(pixels))


def _result(tally: _Tally, stated: int) -> SourceResult:
    whole = 255 * max(1, tally.asked)
    confidence, agreement = round(tally.confidence / whole, 4), round(tally.agreement / whole, 4)
    return SourceResult(stated, tally.written, tally.validation, confidence, agreement)


def _preview(folder: Path, ids: Sequence[str]) -> bytes:
    """Return a JPEG sheet of frames from the whole dataset, each beside its labels and its confidence."""
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
