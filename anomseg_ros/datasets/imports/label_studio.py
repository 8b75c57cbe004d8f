"""Label Studio's JSON export with its pictures: brush strokes, polygons and boxes.

Coordinates are percent of the picture (labelstud.io, "Label Studio JSON format"). A brush stroke is the picture's RGBA
values, packed by the run lengths of thi.ng/rle-pack, as label-studio-sdk's converter reads them; alpha is the mask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.image_files import IMAGE_SUFFIXES
from anomseg_ros.core.types import LabelImage
from anomseg_ros.datasets.imports.exported import (
    Export,
    Mask,
    Shape,
    Size,
    SourceClass,
    SourceFrame,
    paint,
    plain_name,
    read_json,
    require_size,
    understood,
)
from anomseg_ros.errors import DatasetError
from anomseg_ros.outliers.coco import polygon_mask

_KINDS = ("brushlabels", "polygonlabels", "rectanglelabels")
_UPLOAD = re.compile(r"[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


def read_label_studio(root: Path) -> Export:
    """Read the only JSON file of a folder, with pictures anywhere below it. Raises DatasetError."""
    files = sorted(root.glob("*.json"))
    if len(files) != 1:
        raise DatasetError(
            f"{str(root)!r} has {len(files)} JSON files; put one export of Label Studio there (format JSON), with the "
            "pictures in images/"
        )
    path, tasks = files[0], read_json(files[0])
    pictures = _pictures(root)
    with understood(path, "an export of Label Studio in its format JSON"):
        labelled = [(task, results) for task in tasks if (results := _results(task))]
        names = list(dict.fromkeys(_name(row) for _, results in labelled for row in results))
        frames = tuple(_frame(task, results, names, pictures, path) for task, results in labelled)
    return Export(tuple(SourceClass(name) for name in names), frames)


def _results(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the labelled regions of the last annotation that was not cancelled."""
    done = [one for one in task["annotations"] if not one.get("was_cancelled")]
    return [row for row in done[-1]["result"] if row.get("type") in _KINDS] if done else []


def _name(row: Mapping[str, Any]) -> str:
    labels = row["value"][row["type"]]
    return str(labels[0])


def _pictures(root: Path) -> dict[str, Path]:
    """Return the picture files below a folder by name."""
    return {path.name: path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES}


def _frame(
    task: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    pictures: Mapping[str, Path],
    path: Path,
) -> SourceFrame:
    files = [_file_of(str(value)) for value in task["data"].values()]
    name = next((file.name for file in files if file.suffix.lower() in IMAGE_SUFFIXES), "")
    picture = pictures.get(name) or pictures.get(_UPLOAD.sub("", name, count=1))
    if not name:
        raise DatasetError(f"a task of {str(path)!r} has no picture; export a project of pictures")
    if picture is None:
        raise DatasetError(f"the picture {name!r} of {str(path)!r} is not below its folder; put the pictures there")
    stated = {(int(row["original_height"]), int(row["original_width"])) for row in results}
    shapes = [Shape(names.index(_name(row)), _MASKS[str(row["type"])](row["value"])) for row in results]
    return SourceFrame(plain_name(picture.name), picture, partial(_labels, shapes, stated, f"a task of {path.name}"))


def _file_of(url: str) -> PurePosixPath:
    """Return the path in an address such as /data/upload/1/a.jpg, s3://bucket/a.jpg or /data/local-files/?d=a.jpg."""
    parts = urlparse(url)
    inner = parse_qs(parts.query).get("d")
    return PurePosixPath(inner[0] if inner else unquote(parts.path))


def _labels(shapes: Sequence[Shape], stated: set[Size], what: str, size_px: Size) -> LabelImage:
    for size in stated:
        require_size(size, size_px, what)
    return paint(shapes, size_px)


def _polygon(value: Mapping[str, Any]) -> Callable[[Size], Mask]:
    return partial(_percent_mask, np.array(value["points"], np.float64).reshape(-1, 2))


def _rectangle(value: Mapping[str, Any]) -> Callable[[Size], Mask]:
    left, top, width, height = (float(value[key]) for key in ("x", "y", "width", "height"))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    return partial(_percent_mask, corners + np.array([left, top]), turned_degrees=float(value.get("rotation", 0)))


def _percent_mask(points: npt.NDArray[np.float64], size_px: Size, turned_degrees: float = 0.0) -> Mask:
    """Return the mask of a polygon in percent, turned clockwise about its first point."""
    pixels = points * (size_px[1] / 100, size_px[0] / 100)
    angle = np.radians(turned_degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return polygon_mask((((pixels - pixels[0]) @ turn + pixels[0]).astype(np.float32),), size_px)


def _brush(value: Mapping[str, Any]) -> Callable[[Size], Mask]:
    if value.get("format") != "rle":
        raise DatasetError(f"a brush stroke has the format {value.get('format')!r}; expected 'rle', which is exported")
    return partial(_unpacked_mask, bytes(value["rle"]))


def _unpacked_mask(packed: bytes, size_px: Size) -> Mask:
    values = unpack_runs(packed, size_px[0] * size_px[1] * 4)
    return values.reshape(*size_px, 4)[:, :, 3] > 0


def unpack_runs(packed: bytes, expected: int) -> npt.NDArray[np.uint8]:
    """Return the values in run lengths of thi.ng/rle-pack, uint8 (expected,).

    The bits are: 32 for the number of values; 5 for the bits of a value, less one; four times 4 for the bits of a
    length, less one. Then, until all values are there: 1 whether one value is repeated, 2 for which of the four sizes
    the length has, the length less one, and the value or the values. Raises DatasetError for other data.
    """
    bits = np.unpackbits(np.frombuffer(packed, np.uint8)).tolist()
    position = 0

    def take(count: int) -> int:
        nonlocal position
        if position + count > len(bits):
            raise DatasetError("a brush stroke ends early; export it again")
        value = 0
        for bit in bits[position : position + count]:
            value = value << 1 | bit
        position += count
        return value

    count, word, sizes = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    if count != expected or word > 8:
        raise DatasetError(
            f"a brush stroke holds {count} values of {word} bits, expected {expected} of up to 8: four a pixel"
        )
    values, done = np.zeros(count, np.uint8), 0
    while done < count:
        repeated = take(1)
        end = done + 1 + take(sizes[take(2)])
        if end > count:
            raise DatasetError(f"a brush stroke holds more than the {count} values it states; export it again")
        values[done:end] = take(word) if repeated else [take(word) for _ in range(end - done)]
        done = end
    return values


_MASKS: dict[str, Callable[[Mapping[str, Any]], Callable[[Size], Mask]]] = {
    "brushlabels": _brush,
    "polygonlabels": _polygon,
    "rectanglelabels": _rectangle,
}
