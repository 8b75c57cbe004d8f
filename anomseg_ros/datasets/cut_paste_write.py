"""Write a cut-paste dataset, reproducibly; a killed run can be resumed (section 3.6 of the paper: offline).

Frames are PNG. A lossy format would compress pasted pixels twice, which leaves traces, and blur their edges across the
labels' borders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from anomseg_ros import __version__
from anomseg_ros.core.labels import KNOWN_UNCERTAIN, UNLABELLED
from anomseg_ros.core.output_files import write_file
from anomseg_ros.core.pixel_files import read_label, read_picture
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.datasets.cut_paste import FORMAT, IMAGES, LABELS, CutPasteSpec, Manifest, written_folder
from anomseg_ros.datasets.dataset import Dataset, LabelledFrame
from anomseg_ros.datasets.written_folder import PREVIEW, png, sheet, spread
from anomseg_ros.errors import ConfigError, DatasetError
from anomseg_ros.outliers.cut_paste import OUTLIER, PasteConfig, paste_objects
from anomseg_ros.outliers.objects import DescribedSource

_OTHER_FRAMES = 2
"""Number of other frames that the source may take textures from, for each written frame."""

_PREVIEW_TILES, _PREVIEW_WIDTH_PX = 12, 480
_OUTLINE_RGB = (255, 0, 255)


@dataclass(frozen=True)
class WriteConfig:
    """What to write. copies: per frame, each with other objects. limit: number of first frames, None for all."""

    seed: int = 0
    copies: int = 1
    limit: int | None = None
    paste: PasteConfig = field(default_factory=PasteConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
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
    progress: Progress = no_progress,
) -> Manifest:
    """Write or resume a cut-paste dataset; return its manifest.

    Frame i of copy c depends on the seed, i and c only. A resumption, `limit`, `copies` and `threads` do not change its
    bytes.

    Args:
        dataset: frames with labels to paste into.
        source: of objects.
        folder: new, or with the unfinished dataset of the same arguments.
        config: what to write.
        overwrite: replace another cut-paste dataset in the folder.
        threads: frames written at a time.
        progress: called after each frame.

    Raises:
        ConfigError: the folder contains a different dataset or other files; a frame is too small for its objects.
        OutputError: the folder cannot be written.
        DatasetError: the dataset has no labels or classes, or a file of it or of an object is damaged.
    """
    spec = _specify(dataset, source, config)
    ids = _frame_ids(dataset, spec)
    written = written_folder(folder)
    written.prepare(spec, overwrite)
    digests = _write_frames(partial(_write_frame, dataset, source, folder, spec, ids), len(ids), threads, progress)
    write_file(folder / PREVIEW, _preview(folder, ids))
    manifest = Manifest(spec, len(ids), hashlib.sha256("".join(digests).encode()).hexdigest())
    written.finish(manifest)
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
    """Return a digest of the names of all frames and the pixels of the first one; the place does not matter."""
    digest = hashlib.sha256("\n".join(dataset.frame_id(index) for index in range(len(dataset))).encode())
    first = dataset.load(0)
    for pixels in (first.image, first.labels):
        digest.update(b"" if pixels is None else np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def _frame_ids(dataset: Dataset, spec: CutPasteSpec) -> list[str]:
    """Return the names of all frames to write: copy 0 of every frame, then copy 1, …"""
    names = [dataset.frame_id(index).replace("/", "_") for index in range(spec.frames)]
    if len(set(names)) < len(names):
        raise DatasetError(f"{dataset.name} in {dataset.path!r} has frames whose names differ only by folder; rename")
    return [f"{name}-{copy}" if spec.copies > 1 else name for copy in range(spec.copies) for name in names]


def _write_frames(write: Callable[[int], str], count: int, threads: int, progress: Progress) -> list[str]:
    digests: list[str] = []
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="cut-paste")
    try:
        for digest in pool.map(write, range(count)):
            digests.append(digest)
            progress("cut-paste", len(digests), count)
    finally:
        pool.shutdown(cancel_futures=True)
    return digests


def _write_frame(
    dataset: Dataset, source: DescribedSource, folder: Path, spec: CutPasteSpec, ids: Sequence[str], number: int
) -> str:
    """Write one frame unless it exists; return the digest of its files."""
    image_path, label_path = (folder / name / f"{ids[number]}.png" for name in (IMAGES, LABELS))
    # A file gets its name when it is complete; labels are last.
    if not (image_path.is_file() and label_path.is_file()):
        image, labels = _paste(dataset, source, spec, number)
        write_file(image_path, png(image))
        write_file(label_path, png(labels))
    return "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in (image_path, label_path))


def _paste(dataset: Dataset, source: DescribedSource, spec: CutPasteSpec, number: int) -> tuple[RgbImage, LabelImage]:
    copy, index = divmod(number, spec.frames)
    rng = np.random.default_rng([spec.seed, index, copy])
    frame = dataset.load(index)
    if frame.labels is None:
        raise DatasetError(f"{dataset.name}: frame {frame.id!r} has no semantic labels to paste into")
    expected = {*(info.train_id for info in spec.classes), KNOWN_UNCERTAIN, UNLABELLED}
    strange = set(np.unique(frame.labels).tolist()) - expected
    if strange:
        raise DatasetError(
            f"{dataset.name}: the labels of frame {frame.id!r} hold {sorted(strange)[:8]}; expected the train ids of "
            f"its {len(spec.classes)} classes and {UNLABELLED}"
        )
    # From the whole dataset, also with a limit: the number of written frames must not change a frame.
    drawn = rng.choice(len(dataset), min(_OTHER_FRAMES + 1, len(dataset)), replace=False)
    chosen = [int(other) for other in drawn if other != index][:_OTHER_FRAMES]
    load = lru_cache(lambda position: dataset.load(chosen[position]))
    images = _LazyFrames(load, lambda other: other.image, len(chosen))
    labels = _LazyFrames(load, _labels_of, len(chosen))
    return paste_objects(frame.image, frame.labels, source, rng, spec.paste, images, spec.classes, other_labels=labels)


def _labels_of(frame: LabelledFrame) -> LabelImage:
    return np.full(frame.image.shape[:2], UNLABELLED, np.uint8) if frame.labels is None else frame.labels


class _LazyFrames(Sequence[Any]):
    """Pictures or labels of frames that are read on access. Cut-outs from files never access them."""

    def __init__(self, load: Callable[[int], LabelledFrame], part: Callable[[LabelledFrame], Any], count: int) -> None:
        self._load, self._part, self._count = load, part, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: Any) -> Any:
        return self._part(self._load(range(self._count)[position]))


def _preview(folder: Path, ids: Sequence[str]) -> bytes:
    """Return a JPEG sheet of frames from the whole dataset with outlines of the pasted objects."""
    return sheet([_preview_tile(folder, ids[number]) for number in spread(len(ids), _PREVIEW_TILES)])


def _preview_tile(folder: Path, id_: str) -> RgbImage:
    image, labels = read_picture(folder / IMAGES / f"{id_}.png"), read_label(folder / LABELS / f"{id_}.png")
    height_px = max(1, round(image.shape[0] * _PREVIEW_WIDTH_PX / image.shape[1]))
    size = (_PREVIEW_WIDTH_PX, height_px)
    tile = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    pasted = cv2.resize((labels == OUTLIER).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(pasted, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(tile, outlines, -1, _OUTLINE_RGB, 1)
    return np.asarray(tile, np.uint8)
