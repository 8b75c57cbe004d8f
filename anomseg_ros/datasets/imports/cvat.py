"""CVAT's exports: "CVAT for images 1.1" (annotations.xml with images/) and "Segmentation mask 1.1" (labelmap.txt).

The XML is as docs.cvat.ai, "CVAT for image", describes it: polygons, boxes and ellipses in pixels from the picture's
corner; masks as run lengths along the rows of their box, which begin with background; larger z_order covers smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from anomseg_ros.core.types import LabelImage
from anomseg_ros.datasets.imports.color_masks import LABEL_MAP, read_voc_masks
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
    require_size,
    understood,
)
from anomseg_ros.errors import DatasetError, reason_of
from anomseg_ros.outliers.coco import polygon_mask

ANNOTATIONS = "annotations.xml"
_ELLIPSE_POINTS = 64
_IGNORED = ("tag", "points", "polyline", "skeleton", "cuboid")
"""Shapes without an area."""


def read_cvat(root: Path) -> Export:
    """Read either export. Raises DatasetError."""
    if (root / ANNOTATIONS).is_file():
        return _read_xml(root)
    if (root / LABEL_MAP).is_file():
        return read_voc_masks(root)
    raise DatasetError(
        f"{str(root)!r} has neither {ANNOTATIONS} nor {LABEL_MAP}; export from CVAT as `CVAT for images 1.1` or "
        "`Segmentation mask 1.1`, with `Save images`, and unpack it"
    )


def _read_xml(root: Path) -> Export:
    path = root / ANNOTATIONS
    tree = _parse(path)
    with understood(path, "an export of CVAT for images 1.1"):
        classes = tuple(
            SourceClass(str(label.findtext("name")), hex_color(label.findtext("color") or ""))
            for label in tree.findall("./meta//labels/label")
            if not label.findtext("parent")
        )
        if tree.find("track") is not None:
            raise DatasetError(f"{str(path)!r} is of a video; export the task as `CVAT for images 1.1`")
        names = [one.name for one in classes]
        return Export(classes, tuple(_frame(image, names, root) for image in tree.findall("image") if len(image)))


def _parse(path: Path) -> ElementTree.Element:
    try:
        content = path.read_bytes()
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # entities can name files, and grow without bounds
            raise DatasetError(f"{str(path)!r} defines entities, which CVAT does not; export it again")
        return ElementTree.fromstring(content)
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise DatasetError(f"{str(path)!r} is not XML: {reason_of(error)}; export it again") from None


def _frame(image: ElementTree.Element, names: list[str], root: Path) -> SourceFrame:
    name = image.attrib["name"]
    stated = int(image.attrib["height"]), int(image.attrib["width"])
    rows = sorted(image, key=lambda row: int(row.get("z_order", "0")))
    shapes = [shape for shape in (_shape(row, names, root / ANNOTATIONS) for row in rows) if shape is not None]
    picture = picture_at((root / "images", root), name, root / ANNOTATIONS)
    return SourceFrame(plain_name(name), picture, partial(_labels, shapes, stated, f"image {name!r} of {ANNOTATIONS}"))


def _labels(shapes: list[Shape], stated: Size, what: str, size_px: Size) -> LabelImage:
    require_size(stated, size_px, what)
    return paint(shapes, size_px)


def _shape(row: ElementTree.Element, names: list[str], path: Path) -> Shape | None:
    if row.tag in _IGNORED:
        return None
    if row.tag not in _MASKS:
        raise DatasetError(f"{str(path)!r} has shapes {row.tag!r}; expected {', '.join(_MASKS)}")
    return Shape(index_of(row.attrib["label"], names, path), _MASKS[row.tag](dict(row.attrib)))


def _polygon(row: Mapping[str, str]) -> Callable[[Size], Mask]:
    points = [[float(number) for number in point.split(",")] for point in row["points"].split(";")]
    return partial(polygon_mask, (np.array(points, np.float32).reshape(-1, 2),))


def _box(row: Mapping[str, str]) -> Callable[[Size], Mask]:
    left, top, right, bottom = (float(row[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    return partial(polygon_mask, (_turned(corners, row).astype(np.float32),))


def _ellipse(row: Mapping[str, str]) -> Callable[[Size], Mask]:
    x, y, radius_x, radius_y = (float(row[key]) for key in ("cx", "cy", "rx", "ry"))
    angles = np.linspace(0, 2 * math.pi, _ELLIPSE_POINTS, endpoint=False)
    points = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)
    return partial(polygon_mask, (_turned(points, row).astype(np.float32),))


def _turned(points: np.ndarray, row: Mapping[str, str]) -> np.ndarray:
    """Turn points clockwise about their centre by the row's rotation, in degrees."""
    angle, centre = math.radians(float(row.get("rotation", "0"))), points.mean(axis=0)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.asarray((points - centre) @ turn + centre)


def _mask(row: Mapping[str, str]) -> Callable[[Size], Mask]:
    runs = [int(run) for run in row["rle"].split(",")]
    left, top, width, height = (int(row[key]) for key in ("left", "top", "width", "height"))

    def mask(size_px: Size) -> Mask:
        inside = min(left, top) >= 0 and top + height <= size_px[0] and left + width <= size_px[1]
        if not inside or min(runs) < 0 or sum(runs) != width * height:
            raise DatasetError(
                f"a mask of {row['label']!r}, {width}x{height} at {left}, {top}, does not fit its {sum(runs)} pixels "
                f"or the picture of {size_px[1]}x{size_px[0]}; export it again"
            )
        whole = np.zeros(size_px, np.bool_)
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        whole[top : top + height, left : left + width] = flat.reshape(height, width)
        return whole

    return mask


_MASKS: dict[str, Callable[[Mapping[str, str]], Callable[[Size], Mask]]] = {
    "polygon": _polygon,
    "mask": _mask,
    "box": _box,
    "ellipse": _ellipse,
}
