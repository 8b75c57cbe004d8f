"""Label images in which every class has a colour, with a table of the colours.

The table is one of the files that tools and datasets ship: labelmap.txt of CVAT and Datumaro (`name:r,g,b::`),
class_dict.csv (`name,r,g,b`), or label_colors.txt of CamVid (`r g b name`).
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.file_pairs import Sample, files_in, pair
from anomseg_ros.core.pixel_files import PNG_SIGNATURE, read_picture
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.core.types import LabelImage
from anomseg_ros.datasets.imports.exported import Export, Size, SourceClass, SourceFrame, require_size
from anomseg_ros.errors import DatasetError, reason_of

LABEL_MAP = "labelmap.txt"
_NUMBERS = r"(?P<r>\d{1,3})[,\s]+(?P<g>\d{1,3})[,\s]+(?P<b>\d{1,3})"
TABLES: dict[str, re.Pattern[str]] = {
    LABEL_MAP: re.compile(rf"(?P<name>[^:#]+):{_NUMBERS}(:.*)?"),
    "class_dict.csv": re.compile(rf"(?P<name>[^,]+),\s*{_NUMBERS}\s*"),
    "label_colors.txt": re.compile(rf"{_NUMBERS}[,\s]+(?P<name>\S.*)"),
}
"""File of the table -> a line of it."""
PICTURES, MASKS = ("images", "img", "JPEGImages"), ("masks", "labels", "annotations", "SegmentationClass")
MASK_ENDINGS = ("", "_L", "_mask", "_gt", "_color")
"""What follows a picture's name in the name of its mask."""


def read_color_masks(root: Path) -> Export:
    """Read a folder with a table, pictures and masks. Raises DatasetError."""
    table = next((root / name for name in TABLES if (root / name).is_file()), None)
    pictures, masks = (_first_folder(root, names) for names in (PICTURES, MASKS))
    if table is None or pictures is None or masks is None:
        raise DatasetError(
            f"{str(root)!r} lacks a part; expected a table of colours ({', '.join(TABLES)}), pictures in one of "
            f"{', '.join(PICTURES)} and masks in one of {', '.join(MASKS)}"
        )
    return _export(table, pictures, masks)


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def read_voc_masks(root: Path) -> Export:
    """Read JPEGImages/ with SegmentationClass/ and labelmap.txt, as CVAT exports them. Raises DatasetError."""
    for name in ("JPEGImages", "SegmentationClass"):
        if not (root / name).is_dir():
            raise DatasetError(f"{str(root)!r} has no {name}/; export again, with `Save images`")
    return _export(root / LABEL_MAP, root / "JPEGImages", root / "SegmentationClass")


def _export(table: Path, pictures: Path, masks: Path) -> Export:
    classes = read_colors(table)
    found = _pairs(pictures, masks)
    codes = {_code(np.array(one.color, np.uint32)): index for index, one in enumerate(classes)}
    frames = [SourceFrame(one.id, one.image_path, partial(_labels, one.label_path, codes, table)) for one in found]
    return Export(classes, tuple(frames))


def read_colors(path: Path) -> tuple[SourceClass, ...]:
    """Return the classes of a table of colours. Raises DatasetError for lines of another form and doubled colours."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {str(path)!r}: {reason_of(error)}") from None
    classes: list[SourceClass] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#") or line.replace(" ", "").lower().startswith("name,r"):
            continue
        row = TABLES[path.name].fullmatch(line.strip())
        if row is None or max(int(row[key]) for key in "rgb") > 255:
            raise DatasetError(f"line {number} of {str(path)!r}, {line!r}, gives no class with red, green and blue")
        classes.append(SourceClass(row["name"].strip(), (int(row["r"]), int(row["g"]), int(row["b"]))))
    colors = [one.color for one in classes]
    for one in classes:
        if colors.count(one.color) > 1:
            raise DatasetError(f"{str(path)!r} gives the color {one.color} to several classes; give each its own")
    return tuple(classes)


def _pairs(pictures: Path, masks: Path) -> tuple[Sample, ...]:
    """Return pictures with masks; pictures without one are not labelled yet. Raises DatasetError for lost masks."""
    named = [(path.relative_to(pictures).with_suffix("").as_posix(), path) for path in files_in(pictures, "**/*")]
    known = {id_ for id_, _ in named}
    labelled = []
    for path in files_in(masks, "**/*"):
        name = path.relative_to(masks).with_suffix("").as_posix()
        ids = [name.removesuffix(ending) for ending in MASK_ENDINGS if name.endswith(ending)]
        labelled.append((next((id_ for id_ in ids if id_ in known), name), path))
    samples, problems = pair(named, labelled)
    for problem in problems:
        if problem.kind != "image without labels":
            raise problem
    return samples


def _labels(path: Path, codes: dict[int, int], table: Path, size_px: Size) -> LabelImage:
    with path.open("rb") as file:
        if not file.read(8).startswith(PNG_SIGNATURE):
            raise FrameProblem("unreadable", path, "not a PNG file; colours of other formats are not exact")
    pixels = read_picture(path)
    require_size(pixels.shape[:2], size_px, f"the mask {str(path)!r}")
    values, inverse, counts = np.unique(_packed(pixels), return_inverse=True, return_counts=True)
    unknown = [
        f"{(value >> 16, value >> 8 & 255, value & 255)} ({count} px)"
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        if value not in codes
    ]
    if unknown:
        more = ", …" if len(unknown) > 5 else ""
        raise DatasetError(
            f"{len(unknown)} colours of {str(path)!r} are not in {table.name}: {', '.join(unknown[:5])}{more}; add "
            "them to the table, or export without smoothing"
        )
    indices = np.array([codes[value] for value in values.tolist()], np.uint8)
    return indices[inverse].reshape(size_px)


def _packed(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return the colour of each pixel as one number."""
    red, green, blue = (pixels[:, :, channel].astype(np.uint32) for channel in range(3))
    return np.asarray(red << 16 | green << 8 | blue, np.uint32)


def _code(color: npt.NDArray[np.uint32]) -> int:
    return int(color[0]) << 16 | int(color[1]) << 8 | int(color[2])
