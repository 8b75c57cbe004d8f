"""The objects of a folder: annotations of COCO or YOLO, pictures with masks, or pictures with an alpha channel."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.file_pairs import files_in, in_order, pair
from anomseg_ros.core.pixel_files import read_label, read_picture
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError, DatasetError, closest_first
from anomseg_ros.outliers.coco import CocoObject, read_instances
from anomseg_ros.outliers.masks import require_object
from anomseg_ros.outliers.yolo import CLASSES, read_yolo

PAPER_OVERLAP_CLASSES = ("person", "car", "truck", "bus", "train", "bicycle", "motorcycle")
OVERLAP_CLASSES = (*PAPER_OVERLAP_CLASSES, "traffic light", "stop sign", "fire hydrant", "parking meter", "bench")
"""COCO classes that are no outliers on a road. The first seven are the paper's C_overlap (section 3.5). Traffic lights
and stop signs are classes of Cityscapes and CamVid, too. Hydrants, parking meters and benches occur in ordinary street
scenes, where they are not labelled as outliers."""

PARTS = ("all", "train", "val")
_HELD_OUT = 5
"""One in this number of pictures belongs to the part `val`."""

_OBJECT_ALPHA = 128
Pixels = tuple[RgbImage, npt.NDArray[np.bool_]]


class Entry(Protocol):
    """One object that can be read from its files."""

    @property
    def kind(self) -> str:
        """Its class."""
        ...

    @property
    def picture(self) -> str:
        """Name of its picture, which decides its part."""
        ...

    @property
    def in_photograph(self) -> bool:
        """Whether the picture is a photograph, whose border may cut the object."""
        ...

    def read(self) -> Pixels:
        """Return the picture, uint8 (H, W, 3) RGB, and the object's mask, bool (H, W), not empty."""
        ...


_E = TypeVar("_E", bound=Entry)


@dataclass(frozen=True)
class FolderFiles:
    """The objects of a folder. sha256: of the annotations, or of the names and sizes of the files."""

    layout: str
    objects: Sequence[Entry]
    kinds: tuple[str, ...]
    excluded: tuple[str, ...]
    min_area_px: int | None
    sha256: str


def find_objects(folder: Path, exclude: tuple[str, ...], min_area_px: int, part: str = "all") -> FolderFiles:
    """Return the objects of a folder. Layouts, arguments and errors are those of FolderObjects."""
    if not folder.is_dir():
        raise DatasetError(f"objects: {str(folder)!r} is not a folder; give one with cut-out objects, or `procedural`")
    files = _find_coco(folder, exclude, min_area_px) if (folder / "annotations").is_dir() else None
    files = files or _find_yolo(folder, exclude, min_area_px) or _find_pixels(folder, exclude)
    objects = [entry for entry in files.objects if part in ("all", part_of(entry.picture))]
    if not objects:
        raise DatasetError(
            f"objects: none of the {len(files.objects)} in {str(folder)!r} is in the part {part!r}; `val` is one "
            f"picture in {_HELD_OUT}, `train` the others; give more objects, or part `all`"
        )
    return replace(files, objects=objects, kinds=_kinds(objects))


def part_of(picture: str) -> str:
    """Return "train" or "val" by the digest of a picture's name, which does not depend on other pictures."""
    digest = int.from_bytes(hashlib.sha256(picture.encode()).digest()[:8], "big")
    return "val" if digest % _HELD_OUT == 0 else "train"


def _find_pixels(folder: Path, exclude: tuple[str, ...]) -> FolderFiles:
    layout, objects = "images and masks", _find_pairs(folder)
    if not objects:
        layout, objects = "cut-outs", _find_cut_outs(folder)
    allowed = _without(objects, {entry.kind for entry in objects}, exclude, str(folder))
    if not allowed:
        raise DatasetError(
            f"objects: none in {str(folder)!r} ({len(objects)} found, excluded: {', '.join(exclude)}); expected "
            "annotations/instances_*.json (COCO), images/ID.* with masks/ID.png, labels/ID.png or labels/ID.txt (YOLO "
            "polygons), or PNG files with an alpha channel"
        )
    digest = _digest_of_names(folder, (path for entry in objects for path in entry.files))
    return FolderFiles(layout, allowed, _kinds(allowed), exclude, None, digest)


@dataclass(frozen=True)
class _Pair:
    image_path: Path
    mask_path: Path
    kind: str = "object"
    in_photograph = True

    @property
    def picture(self) -> str:
        return self.image_path.stem

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.image_path, self.mask_path)

    def read(self) -> Pixels:
        image, mask = read_picture(self.image_path), read_label(self.mask_path) > 0
        if mask.shape != image.shape[:2]:
            raise DatasetError(
                f"mask {str(self.mask_path)!r} is {mask.shape[1]}x{mask.shape[0]}, its picture "
                f"{image.shape[1]}x{image.shape[0]}; both must be of one size"
            )
        return image, require_object(mask, f"mask {str(self.mask_path)!r}")


@dataclass(frozen=True)
class _CutOut:
    path: Path
    kind: str
    in_photograph = False

    @property
    def picture(self) -> str:
        return self.path.stem

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def read(self) -> Pixels:
        image = read_picture(self.path)  # refuses damaged files, but drops the alpha channel
        whole = cv2.imdecode(np.fromfile(self.path, np.uint8), cv2.IMREAD_UNCHANGED)
        if whole is None or whole.ndim != 3 or whole.shape[2] != 4:
            raise DatasetError(
                f"object {str(self.path)!r} has no alpha channel; cut it out, or give images/ and masks/"
            )
        alpha = whole[:, :, 3]
        opaque = alpha >= (_OBJECT_ALPHA if alpha.dtype == np.uint8 else _OBJECT_ALPHA << 8)
        return image, require_object(np.asarray(opaque), f"object {str(self.path)!r}")


def _find_pairs(folder: Path) -> list[_Pair | _CutOut]:
    images = folder / "images"
    masks = next((folder / name for name in ("masks", "labels") if (folder / name).is_dir()), None)
    if not images.is_dir() or masks is None:
        return []
    samples, problems = pair(
        ((path.stem, path) for path in files_in(images)), ((path.stem, path) for path in files_in(masks, "*.png"))
    )
    if problems:
        raise problems[0]
    return [_Pair(sample.image_path, sample.label_path) for sample in samples]


def _find_cut_outs(folder: Path) -> list[_Pair | _CutOut]:
    by_name = {path.relative_to(folder).as_posix(): path for path in files_in(folder, "**/*.png")}
    named = [(by_name[name], name.split("/")) for name in in_order(by_name)]
    return [_CutOut(path, words[0] if len(words) > 1 else "object") for path, words in named]


def _find_coco(folder: Path, exclude: tuple[str, ...], min_area_px: int) -> FolderFiles:
    instances = read_instances(folder)
    allowed = _without(instances.objects, instances.classes.values(), exclude, str(folder))
    large = [entry for entry in allowed if entry.area_px >= min_area_px]
    if not large:
        raise _none_left(folder, f"{len(instances.objects)} annotations", exclude, min_area_px)
    _require_pictures(large)
    return FolderFiles("coco", large, _kinds(large), exclude, min_area_px, instances.sha256)


def _find_yolo(folder: Path, exclude: tuple[str, ...], min_area_px: int) -> FolderFiles | None:
    objects = read_yolo(folder)
    if not objects:
        return None
    allowed = _without(objects, CLASSES, exclude, str(folder))
    large = [entry for entry in allowed if entry.usual_area_px >= min_area_px]
    if not large:
        raise _none_left(folder, f"{len(objects)} polygons", exclude, min_area_px)
    digest = _digest_of_names(folder, {entry.label_path for entry in objects})
    return FolderFiles("yolo", large, _kinds(large), exclude, min_area_px, digest)


def _none_left(folder: Path, objects: str, exclude: tuple[str, ...], min_area_px: int) -> DatasetError:
    return DatasetError(
        f"objects: none in {str(folder)!r} is left of {objects}, without {', '.join(exclude)} and objects below "
        f"{min_area_px} px; exclude fewer classes, or give a smaller area"
    )


def _kinds(objects: Iterable[Entry]) -> tuple[str, ...]:
    return tuple(sorted({entry.kind for entry in objects}))


def _without(objects: Sequence[_E], known: Iterable[str], exclude: tuple[str, ...], where: str) -> list[_E]:
    names = {*known, *OVERLAP_CLASSES}  # a folder need not hold the classes of the default
    for name in exclude:
        if name not in names:
            options = ", ".join(closest_first(name, names)[:8])
            raise ConfigError(f"exclude names {name!r}, which is no class of {where!r}; the closest: {options}")
    return [entry for entry in objects if entry.kind not in exclude]


def _require_pictures(entries: Sequence[CocoObject]) -> None:
    """Raise DatasetError unless all pictures are there. Listing folders is quicker than asking for each file."""
    wanted = {entry.image_path for entry in entries}
    there = {folder: {path.name for path in folder.iterdir()} for folder in {path.parent for path in wanted}}
    missing = sorted(str(path) for path in wanted if path.name not in there[path.parent])
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(wanted)} pictures that annotations name are missing, the first {missing[0]!r}; "
            "unpack the pictures again"
        )


def _digest_of_names(folder: Path, files: Iterable[Path]) -> str:
    rows = sorted(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n" for path in files)
    return hashlib.sha256("".join(rows).encode()).hexdigest()
