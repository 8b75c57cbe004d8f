"""Supervisely's export: meta.json and DATASET/img/FILE with DATASET/ann/FILE.json (docs.supervisely.com, "Supervisely
JSON Format"). A bitmap is a PNG, deflated and in base64, at its origin; polygons contain the pixels on their edges.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from anomseg_ros.core.image_files import IMAGE_SUFFIXES
from anomseg_ros.core.types import LabelImage
from anomseg_ros.datasets.imports.exported import (
    Export,
    Mask,
    Shape,
    Size,
    SourceClass,
    SourceFrame,
    hex_color,
    index_of,
    paint,
    picture_at,
    plain_name,
    read_json,
    require_size,
    understood,
)
from anomseg_ros.errors import DatasetError

META = "meta.json"


def read_supervisely(root: Path) -> Export:
    """Read the datasets of a project. Raises DatasetError."""
    meta = root / META
    if not meta.is_file():
        raise DatasetError(f"{str(root)!r} has no {META}; download the project from Supervisely as JSON with pictures")
    with understood(meta, "Supervisely's meta.json"):
        rows = read_json(meta)["classes"]
        classes = tuple(SourceClass(str(row["title"]), hex_color(row.get("color", ""))) for row in rows)
    names = [one.name for one in classes]
    files = sorted(path for path in root.rglob("ann/*.json"))
    found = (_frame(path, names, root) for path in files)
    return Export(classes, tuple(frame for frame in found if frame is not None))


def _frame(path: Path, names: Sequence[str], root: Path) -> SourceFrame | None:
    """Return a picture with its objects, None where nothing is labelled."""
    with understood(path, "an annotation of Supervisely"):
        data = read_json(path)
        stated = int(data["size"]["height"]), int(data["size"]["width"])
        shapes = [_shape(row, names, path) for row in data["objects"] if row["geometryType"] in _MASKS]
    if not shapes:
        return None
    picture = picture_at((path.parent.parent / "img",), _picture_name(path), path)
    name = (path.parent.parent.relative_to(root) / plain_name(picture.name)).as_posix()
    return SourceFrame(name, picture, partial(_labels, shapes, stated, path))


def _picture_name(path: Path) -> str:
    """Return FILE of ann/FILE.json; older projects leave its ending out."""
    name = path.name.removesuffix(".json")
    if Path(name).suffix.lower() in IMAGE_SUFFIXES:
        return name
    folder = path.parent.parent / "img"
    return next((f"{name}{end}" for end in IMAGE_SUFFIXES if (folder / f"{name}{end}").is_file()), name)


def _shape(row: Mapping[str, Any], names: Sequence[str], path: Path) -> Shape:
    return Shape(index_of(str(row["classTitle"]), names, path), _MASKS[row["geometryType"]](row))


def _labels(shapes: Sequence[Shape], stated: Size, path: Path, size_px: Size) -> LabelImage:
    require_size(stated, size_px, repr(str(path)))
    with understood(path, "an annotation of Supervisely"):
        return paint(shapes, size_px)


def _polygon(row: Mapping[str, Any]) -> Callable[[Size], Mask]:
    points = row["points"]
    outlines = [np.array(one, np.float64).reshape(-1, 2) for one in (points["exterior"], *points.get("interior", ()))]
    return partial(_filled, outlines)


def _rectangle(row: Mapping[str, Any]) -> Callable[[Size], Mask]:
    (left, top), (right, bottom) = row["points"]["exterior"]
    return partial(_filled, [np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)])


def _filled(outlines: Sequence[np.ndarray], size_px: Size) -> Mask:
    """Fill an outline with its edges, as Supervisely's SDK does, and leave its holes out."""
    mask = np.zeros(size_px, np.uint8)
    for number, points in enumerate(outlines):
        whole = np.clip(points.round(), -(2**15), 2**15).astype(np.int32)
        cv2.fillPoly(mask, [whole], 1 if number == 0 else 0)
    return mask.astype(np.bool_)


def _bitmap(row: Mapping[str, Any]) -> Callable[[Size], Mask]:
    left, top = (int(number) for number in row["bitmap"]["origin"])
    return partial(_placed, str(row["bitmap"]["data"]), left, top)


def _placed(text: str, left: int, top: int, size_px: Size) -> Mask:
    pixels = _inflated(text, size_px)
    part = (pixels if pixels.ndim == 2 else pixels[:, :, -1]) > 0
    height, width = part.shape
    if min(left, top) < 0 or top + height > size_px[0] or left + width > size_px[1]:
        raise DatasetError(
            f"a bitmap of {width}x{height} at {left}, {top} leaves the picture of {size_px[1]}x{size_px[0]}; export it "
            "again"
        )
    mask = np.zeros(size_px, np.bool_)
    mask[top : top + height, left : left + width] = part
    return mask


def _inflated(text: str, size_px: Size) -> np.ndarray:
    """Return the pixels of a bitmap. Its PNG is not decoded where it is larger than the picture."""
    most_bytes = size_px[0] * size_px[1] * 4 + 2**16
    try:
        png = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), most_bytes)
    except (zlib.error, binascii.Error, ValueError) as error:
        raise DatasetError(f"a bitmap cannot be unpacked: {error}; export it again") from None
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    if not png.startswith(b"\x89PNG") or height > size_px[0] or width > size_px[1]:
        raise DatasetError(f"a bitmap is no PNG of at most {size_px[1]}x{size_px[0]}; export it again")
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DatasetError("a bitmap is a damaged PNG; export it again")
    return np.asarray(pixels)


_MASKS: dict[str, Callable[[Mapping[str, Any]], Callable[[Size], Mask]]] = {
    "bitmap": _bitmap,
    "polygon": _polygon,
    "rectangle": _rectangle,
}
