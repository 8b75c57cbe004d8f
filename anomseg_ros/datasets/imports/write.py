"""Write an export as a dataset `folder`: pictures linked or copied, labels as values, classes.yaml and a preview.

Everything is written beside its place and renamed in the end, so a killed import leaves the old folder or none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from anomseg_ros.core.class_table import (
    CLASSES_FILE,
    IGNORED_ROLE,
    KNOWN_ROLE,
    OUTLIER_ROLE,
    ClassTable,
    OwnClass,
    check_class_table,
    write_class_table,
)
from anomseg_ros.core.image_files import IMAGE_SUFFIXES
from anomseg_ros.core.labels import UNLABELLED
from anomseg_ros.core.output_files import write_file
from anomseg_ros.core.pixel_files import read_label, read_picture
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.staging import put_in_place, remove, staging_folder
from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.datasets.folder import IMAGES, LABELS
from anomseg_ros.datasets.imports.exported import Export, Size, SourceFrame
from anomseg_ros.datasets.written_folder import PREVIEW, png, sheet, spread
from anomseg_ros.errors import DatasetError, OutputError, closest_first, describe_os_error, reason_of

UNLABELLED_NAMES = ("background", "unlabelled", "unlabeled", "void", "nothing")
"""Names of classes, in any case, whose pixels nobody labelled."""

_PREVIEW_TILES, _PREVIEW_WIDTH_PX = 12, 320
_ORIENTATION = 0x0112
_UPRIGHT = (None, 0, 1)


@dataclass(frozen=True)
class Roles:
    """What becomes of the classes. renamed: old name -> new name, perhaps one for several; the others: new names."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    outliers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Imported:
    """What was written. pixels, frames: of each class of the table, in its order; unlabelled_px: of none of them."""

    table: ClassTable
    count: int
    pixels: tuple[int, ...]
    frames: tuple[int, ...]
    unlabelled_px: int


def write_folder(
    export: Export,
    target: Path,
    roles: Roles,
    *,
    made_from: str = "",
    copy: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Imported:
    """Write a dataset `folder` of an export and return what it has.

    Args:
        export: classes and frames.
        target: the new folder.
        roles: of the classes.
        made_from: for classes.yaml.
        copy: copy pictures that could be linked. A hard link takes no room; a change of one file changes both.
        overwrite: replace a folder that an import wrote.
        progress: called after each frame.

    Raises:
        DatasetError: a class is unknown, frames have one name, or a file is damaged. Nothing is changed then.
        OutputError: the folder must not or cannot be written.
    """
    _require_replaceable(target, overwrite)
    table, values = table_of(export, roles, target.resolve().name, made_from)
    check_class_table(table, CLASSES_FILE)
    _refuse_doubles([frame.name for frame in export.frames])
    try:
        staging = staging_folder(target)
        try:
            tally = np.zeros((2, 256), np.int64)
            for number, frame in enumerate(export.frames, start=1):
                counts = _write_frame(frame, values, staging, copy)
                tally += np.stack([counts, counts > 0])
                progress("importing", number, len(export.frames))
            write_file(staging / PREVIEW, _preview(staging, table, [frame.name for frame in export.frames]))
            write_class_table(table, staging / CLASSES_FILE)
            put_in_place(staging, target)
        finally:
            remove(staging)
    except OSError as error:
        raise OutputError(f"cannot write {describe_os_error(error, target)}") from error
    pixels, frames = (tuple(int(row[own.id]) for own in table.classes) for row in tally)
    return Imported(table, len(export.frames), pixels, frames, int(tally[0, UNLABELLED]))


def table_of(export: Export, roles: Roles, name: str, made_from: str) -> tuple[ClassTable, npt.NDArray[np.uint8]]:
    """Return the classes to write and uint8 (256,): index in the export -> value in label images.

    Classes whose names say that nobody labelled them become 255. Raises DatasetError for unknown names.
    """
    sources = [one.name for one in export.classes]
    _require_known("--map", roles.renamed, sources)
    targets = [roles.renamed.get(source, source) for source in sources]
    _require_known("--ignore", roles.ignored, targets)
    _require_known("--outliers", roles.outliers, targets)
    values = np.full(256, UNLABELLED, np.uint8)
    rows: dict[str, OwnClass] = {}
    for index, (target, source) in enumerate(zip(targets, export.classes, strict=True)):
        role = IGNORED_ROLE if target in roles.ignored else OUTLIER_ROLE if target in roles.outliers else KNOWN_ROLE
        if role == KNOWN_ROLE and target.strip().lower() in UNLABELLED_NAMES:
            continue
        if target not in rows:
            taken = any(own.color == source.color for own in rows.values())
            rows[target] = OwnClass(target, len(rows), None if taken else source.color, role)
        values[index] = rows[target].id
    if len(rows) >= UNLABELLED:
        raise DatasetError(f"{len(rows)} classes are more than label images can hold; merge some with --map")
    return ClassTable(tuple(rows.values()), name, splits=export.splits, made_from=made_from), values


def _require_known(option: str, given: Collection[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            closest = ", ".join(closest_first(name, set(known))[:10])
            raise DatasetError(f"{option} names {name!r}, which is no class here; the classes are {closest}")


def _refuse_doubles(names: Sequence[str]) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if doubled:
        raise DatasetError(f"{len(doubled)} names are given to several frames, the first {doubled[0]!r}; rename them")


def _require_replaceable(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise OutputError(f"{str(target)!r} exists; choose another folder, or --overwrite to replace an imported one")
    if not (target / CLASSES_FILE).is_file() or not (target / LABELS).is_dir():
        raise OutputError(f"{str(target)!r} is no imported dataset; it is not overwritten")


def _write_frame(frame: SourceFrame, values: npt.NDArray[np.uint8], folder: Path, copy: bool) -> npt.NDArray[np.int64]:
    """Write picture and labels of a frame; return the pixels of each value, int64 (256,)."""
    suffix = frame.picture.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise DatasetError(
            f"{str(frame.picture)!r} is no picture; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
        )
    stored, upright = _sizes(frame.picture)
    labels, turned = _labels_of(frame, stored, upright)
    target = folder / IMAGES / f"{frame.name}{'.png' if turned else suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if turned:
        with Image.open(frame.picture) as picture:
            pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), np.uint8)
        write_file(target, png(pixels))
    else:
        _put(frame.picture, target, copy)
    written: LabelImage = np.asarray(cv2.LUT(labels, values), np.uint8)
    write_file(folder / LABELS / f"{frame.name}.png", png(written))
    return np.bincount(written.reshape(-1), minlength=256)


def _sizes(path: Path) -> tuple[Size, Size | None]:
    """Return the size of a picture as stored, and as viewers turn it by its EXIF orientation, None if they do not."""
    try:
        with Image.open(path) as picture:
            (width, height), turn = picture.size, picture.getexif().get(_ORIENTATION)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"the picture {str(path)!r} cannot be read: {reason_of(error)}") from None
    if turn in _UPRIGHT:
        return (height, width), None
    return (height, width), (width, height) if turn in (5, 6, 7, 8) else (height, width)


def _labels_of(frame: SourceFrame, stored: Size, upright: Size | None) -> tuple[LabelImage, bool]:
    """Return the labels, and whether they are of the upright picture: tools show pictures upright, readers do not."""
    if upright is not None:
        try:
            return frame.labels(upright), True
        except DatasetError:
            if upright == stored:
                raise
    return frame.labels(stored), False


def _put(source: Path, target: Path, copy: bool) -> None:
    if not copy:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)


def _preview(folder: Path, table: ClassTable, names: Sequence[str]) -> bytes:
    """Return a JPEG sheet of frames from the whole dataset, each beside its labels."""
    colors = np.zeros((256, 3), np.uint8)
    own_colors = {info.name: info.color for info in table.known()}
    for own in table.classes:
        colors[own.id] = own_colors.get(own.name) or own.color or (255, 255, 255)
    tiles = [_tile(folder, names[number], colors) for number in spread(len(names), _PREVIEW_TILES)]
    return sheet(tiles, columns=2)


def _tile(folder: Path, name: str, colors: npt.NDArray[np.uint8]) -> RgbImage:
    labels = colors[read_label(folder / LABELS / f"{name}.png")]
    place = folder / IMAGES / name
    image = read_picture(next(path for path in place.parent.iterdir() if path.stem == place.name))
    size = (_PREVIEW_WIDTH_PX, max(1, round(image.shape[0] * _PREVIEW_WIDTH_PX / image.shape[1])))
    shrunk = [cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) for pixels in (image, labels)]
    return np.asarray(np.concatenate(shrunk, axis=1), np.uint8)
