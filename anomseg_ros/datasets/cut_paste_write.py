"""Write a cut-paste dataset: fixed, reproducible, resumed where it was killed (section 3.6 of the paper: offline).

Frames are PNG: a lossy format would mark pasted pixels by the traces of being compressed twice, and would smear their
rims over the labels' borders.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import overload

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from anomseg_ros import __version__
from anomseg_ros.core.labels import UNLABELLED
from anomseg_ros.core.schema import to_plain
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.datasets.base import Dataset
from anomseg_ros.datasets.cut_paste import OUTLIER, PasteConfig, paste_objects
from anomseg_ros.datasets.cut_paste_dataset import (
    FORMAT,
    IMAGES,
    LABELS,
    MANIFEST,
    PREVIEW,
    STARTED,
    CutPasteSpec,
    Manifest,
    differences,
)
from anomseg_ros.datasets.outlier_objects import DescribedSource
from anomseg_ros.datasets.pixel_files import read_label, read_picture
from anomseg_ros.errors import ConfigError, DatasetError

_OTHER_FRAMES = 2
"""Frames that the source may take textures from, per frame written."""

_PREVIEW_TILES, _PREVIEW_COLUMNS, _PREVIEW_WIDTH_PX = 12, 3, 480
_OUTLINE_RGB = (255, 0, 255)


@dataclass(frozen=True)
class WriteConfig:
    """What is written. copies: per frame, each with other objects. limit: frames from the first on, None for all."""

    seed: int = 0
    copies: int = 1
    limit: int | None = None
    paste: PasteConfig = field(default_factory=PasteConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be."""
        for name, value, least in (("seed", self.seed, 0), ("copies", self.copies, 1), ("limit", self.limit, 1)):
            if value is not None and value < least:
                raise ConfigError(f"cut-paste: {name} is {value!r}; expected at least {least}")


def write_cut_paste(
    dataset: Dataset,
    source: DescribedSource,
    folder: Path,
    config: WriteConfig,
    *,
    overwrite: bool = False,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write, or finish, a cut-paste dataset; return its manifest.

    Frame i of copy c depends on the seed, i and c alone, so that neither a resumption nor `limit`, `copies` or
    `threads` changes any byte of it. progress: called with (done, total) after each frame.

    Raises:
        ConfigError: the folder holds a dataset made otherwise, or something else, or cannot be written; a frame is too
            small for its objects.
        DatasetError: the dataset has no labels or classes, or a file of it or of an object is damaged.
    """
    spec = _specify(dataset, source, config)
    ids = _frame_ids(dataset, spec)
    try:
        _prepare(folder, spec, overwrite)
        digests = _write_frames(partial(_write_frame, dataset, source, folder, spec, ids), len(ids), threads, progress)
        _write_beside(folder / PREVIEW, _preview(folder, ids))
        manifest = Manifest(spec, len(ids), hashlib.sha256("".join(digests).encode()).hexdigest())
        _write_beside(folder / MANIFEST, _as_yaml(manifest))
        (folder / STARTED).unlink(missing_ok=True)
        for left_by_a_kill in folder.rglob("*.part"):
            left_by_a_kill.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write {error.filename or str(folder)!r}: {error.strerror}; make room, or give another folder"
        ) from error
    return manifest


def _specify(dataset: Dataset, source: DescribedSource, config: WriteConfig) -> CutPasteSpec:
    if dataset.classes is None:
        raise DatasetError(f"{dataset.name} has no semantic labels to paste into; give cityscapes, camvid or synthetic")
    if len(dataset) == 0:
        raise DatasetError(f"{dataset.name} in {dataset.path!r} holds no frame")
    return CutPasteSpec(
        format=FORMAT,
        made_with=f"anomseg {__version__}, OpenCV {cv2.__version__}, numpy {np.__version__}",
        source=dataset.name,
        split=dataset.split,
        source_sha256=_digest_of(dataset),
        label_set=dataset.label_set,
        classes=dataset.classes,
        seed=config.seed,
        frames=min(len(dataset), config.limit or len(dataset)),
        copies=config.copies,
        paste=config.paste,
        objects=source.describe(),
    )


def _digest_of(dataset: Dataset) -> str:
    """Return what tells datasets apart wherever they lie: the names of all frames, and the pixels of the first."""
    digest = hashlib.sha256("\n".join(dataset.frame_id(index) for index in range(len(dataset))).encode())
    first = dataset.load(0)
    for pixels in (first.image, first.labels):
        digest.update(b"" if pixels is None else np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def _frame_ids(dataset: Dataset, spec: CutPasteSpec) -> list[str]:
    """Return the names of all frames to write: copy 0 of every frame, then copy 1, and so on."""
    names = [dataset.frame_id(index).replace("/", "_") for index in range(spec.frames)]
    if len(set(names)) < len(names):
        raise DatasetError(f"{dataset.name} in {dataset.path!r} has frames whose names differ only by folder; rename")
    return [f"{name}-{copy}" if spec.copies > 1 else name for copy in range(spec.copies) for name in names]


def _prepare(folder: Path, spec: CutPasteSpec, overwrite: bool) -> None:
    """Make the folder ready for this dataset; refuse one that holds anything else."""
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite and any((folder / name).is_file() for name in (MANIFEST, STARTED)):
        _remove(folder)
    there = _spec_in(folder)
    if there is None and any(folder.iterdir()):
        raise ConfigError(f"{str(folder)!r} holds other files; give a new folder for the dataset")
    if there is not None and there != to_plain(spec):
        found = "; ".join(differences(there, to_plain(spec)))
        raise ConfigError(
            f"{str(folder)!r} holds a cut-paste dataset made otherwise ({found}); give another folder, or --overwrite"
        )
    for name in (IMAGES, LABELS):
        (folder / name).mkdir(exist_ok=True)
    if there is None:
        _write_beside(folder / STARTED, _as_yaml(spec))


def _remove(folder: Path) -> None:
    """Delete a dataset that was written here; what says so goes last, so that a killed removal can be repeated."""
    for name in (IMAGES, LABELS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (PREVIEW, STARTED, MANIFEST):
        (folder / name).unlink(missing_ok=True)


def _spec_in(folder: Path) -> object | None:
    """Return the spec of the dataset in a folder, as plain data, or None without one."""
    for name in (MANIFEST, STARTED):
        if (folder / name).is_file():
            try:
                data = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                data = None
            spec = data.get("made_of") if name == MANIFEST and isinstance(data, dict) else data
            if not isinstance(spec, dict):
                raise ConfigError(f"{str(folder / name)!r} is damaged; give another folder, or --overwrite")
            return spec
    return None


def _write_frames(
    write: Callable[[int], str], count: int, threads: int, progress: Callable[[int, int], None] | None
) -> list[str]:
    digests: list[str] = []
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="cut-paste")
    try:
        for digest in pool.map(write, range(count)):
            digests.append(digest)
            if progress is not None:
                progress(len(digests), count)
    finally:
        pool.shutdown(cancel_futures=True)
    return digests


def _write_frame(
    dataset: Dataset, source: DescribedSource, folder: Path, spec: CutPasteSpec, ids: Sequence[str], number: int
) -> str:
    """Write one frame unless it is there; return the digest of its files."""
    image_path, label_path = (folder / name / f"{ids[number]}.png" for name in (IMAGES, LABELS))
    # Files are renamed when they are whole, the labels last.
    if not (image_path.is_file() and label_path.is_file()):
        image, labels = _paste(dataset, source, spec, number)
        _write_beside(image_path, _png(image[:, :, ::-1]))
        _write_beside(label_path, _png(labels))
    return "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in (image_path, label_path))


def _paste(dataset: Dataset, source: DescribedSource, spec: CutPasteSpec, number: int) -> tuple[RgbImage, LabelImage]:
    copy, index = divmod(number, spec.frames)
    rng = np.random.default_rng([spec.seed, index, copy])
    frame = dataset.load(index)
    if frame.labels is None:
        raise DatasetError(f"{dataset.name}: frame {frame.id!r} has no semantic labels to paste into")
    strange = set(np.unique(frame.labels).tolist()) - {info.train_id for info in spec.classes} - {UNLABELLED}
    if strange:
        raise DatasetError(
            f"{dataset.name}: the labels of frame {frame.id!r} hold {sorted(strange)[:8]}; expected the train ids of "
            f"its {len(spec.classes)} classes and {UNLABELLED}"
        )
    # From the whole dataset, also under a limit: a frame does not depend on how many are written.
    drawn = rng.choice(len(dataset), min(_OTHER_FRAMES + 1, len(dataset)), replace=False)
    chosen = [int(other) for other in drawn if other != index][:_OTHER_FRAMES]
    others = _LazyFrames(dataset, chosen)
    return paste_objects(frame.image, frame.labels, source, rng, spec.paste, others, spec.classes)


class _LazyFrames(Sequence[RgbImage]):
    """Frames of a dataset that are read when they are looked at: cut-outs from files never do."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self._dataset, self._indices = dataset, indices
        self._read: dict[int, RgbImage] = {}

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, position: int) -> RgbImage: ...
    @overload
    def __getitem__(self, position: slice) -> list[RgbImage]: ...
    def __getitem__(self, position: int | slice) -> RgbImage | list[RgbImage]:
        if isinstance(position, slice):
            return [self[number] for number in range(len(self))[position]]
        index = self._indices[position]
        if index not in self._read:
            self._read[index] = self._dataset.load(index).image
        return self._read[index]


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise DatasetError(f"a frame of shape {pixels.shape} cannot be stored as PNG")
    return bytes(data)


def _write_beside(path: Path, content: bytes) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _as_yaml(value: CutPasteSpec | Manifest) -> bytes:
    text: str = yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True, width=120)
    return text.encode()


def _preview(folder: Path, ids: Sequence[str]) -> bytes:
    """Return a JPEG sheet of frames from all over the dataset with the pasted objects outlined."""
    chosen = np.unique(np.linspace(0, len(ids) - 1, min(_PREVIEW_TILES, len(ids))).round().astype(int))
    tiles = [_preview_tile(folder, ids[number]) for number in chosen]
    height = max(len(tile) for tile in tiles)
    tiles = [np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0))) for tile in tiles]
    columns = min(_PREVIEW_COLUMNS, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    if not done:
        raise DatasetError(f"the preview of {len(tiles)} frames cannot be stored as JPEG")
    return bytes(data)


def _preview_tile(folder: Path, id_: str) -> RgbImage:
    image, labels = read_picture(folder / IMAGES / f"{id_}.png"), read_label(folder / LABELS / f"{id_}.png")
    height_px = max(1, round(image.shape[0] * _PREVIEW_WIDTH_PX / image.shape[1]))
    size = (_PREVIEW_WIDTH_PX, height_px)
    tile = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    pasted = cv2.resize((labels == OUTLIER).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(pasted, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(tile, outlines, -1, _OUTLINE_RGB, 1)
    return np.asarray(tile, np.uint8)
