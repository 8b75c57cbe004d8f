"""COCO's formats (cocodataset.org, "Data format"): panoptic segmentation, and instances as semantic classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anomseg_ros.core.pixel_files import read_picture
from anomseg_ros.core.types import LabelImage
from anomseg_ros.datasets.imports.exported import (
    NOTHING,
    Export,
    Shape,
    Size,
    SourceClass,
    SourceFrame,
    paint,
    picture_at,
    plain_name,
    read_json,
    require_size,
    understood,
)
from anomseg_ros.errors import DatasetError
from anomseg_ros.outliers.coco import CocoObject, read_instances


def read_coco(root: Path) -> Export:
    """Read annotations/instances_*.json, polygons and run lengths. Raises DatasetError.

    Smaller objects cover larger ones. A crowd belongs to its class like a single object; CVAT writes masks as crowds.
    """
    instances = read_instances(root, crowds=True)
    names = list(dict.fromkeys(instances.classes.values()))
    by_picture: dict[Path, list[CocoObject]] = {}
    for each in instances.objects:
        by_picture.setdefault(each.image_path, []).append(each)
    frames = []
    for path, objects in by_picture.items():
        if not path.is_file():
            raise DatasetError(f"the picture {str(path)!r} of COCO's annotations is not there; unpack all pictures")
        largest_first = sorted(objects, key=lambda one: -one.area_px)
        shapes = [Shape(names.index(one.kind), partial(_instance, one)) for one in largest_first]
        frames.append(SourceFrame(plain_name(path.relative_to(root).as_posix()), path, partial(paint, shapes)))
    return Export(tuple(SourceClass(name) for name in names), tuple(frames))


def _instance(each: CocoObject, size_px: Size) -> np.ndarray:
    require_size(each.size_px, size_px, each.title)
    return each.mask()


def read_coco_panoptic(root: Path) -> Export:
    """Read annotations/panoptic_NAME.json, panoptic_NAME/*.png beside it, and NAME/*.jpg. Raises DatasetError."""
    files = sorted((root / "annotations").glob("panoptic_*.json")) or sorted(root.glob("panoptic_*.json"))
    if not files:
        raise DatasetError(f"no annotations/panoptic_*.json in {str(root)!r}; unpack COCO's panoptic annotations there")
    parts = [_read_panoptic(path, root) for path in files]
    if any(part.classes != parts[0].classes for part in parts):
        raise DatasetError(f"the files panoptic_*.json in {str(root)!r} have different categories; keep one of them")
    return Export(parts[0].classes, tuple(frame for part in parts for frame in part.frames))


def _read_panoptic(path: Path, root: Path) -> Export:
    with understood(path, "a file of COCO's panoptic annotations"):
        data = read_json(path)
        rows = data["categories"]
        indices = {int(row["id"]): index for index, row in enumerate(rows)}
        classes = tuple(SourceClass(str(row["name"]), _color(row.get("color"))) for row in rows)
        pictures = {row["id"]: str(row["file_name"]) for row in data["images"]}
        frames = [_frame(row, pictures[row["image_id"]], indices, path, root) for row in data["annotations"]]
    return Export(classes, tuple(frames))


def _frame(row: Mapping[str, Any], picture: str, indices: Mapping[int, int], path: Path, root: Path) -> SourceFrame:
    part = path.stem.removeprefix("panoptic_")
    segments = [(int(one["id"]), indices[int(one["category_id"])]) for one in row["segments_info"]]
    labels = picture_at((path.with_suffix(""), root / path.stem, path.parent), str(row["file_name"]), path)
    file = picture_at((root / part, root / "images" / part, root / "images", root), picture, path)
    return SourceFrame(plain_name(f"{part}/{picture}"), file, partial(_labels, labels, segments))


def _labels(path: Path, segments: Sequence[tuple[int, int]], size_px: Size) -> LabelImage:
    """Return the classes of a picture of segments, whose id is red + 256 green + 65536 blue; 0 is nothing."""
    pixels = read_picture(path)
    require_size(pixels.shape[:2], size_px, f"{str(path)!r}")
    ids, inverse = np.unique(pixels.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32), return_inverse=True)
    known = {0: NOTHING, **dict(segments)}
    unknown = [number for number in ids.tolist() if number not in known]
    if unknown:
        raise DatasetError(f"{str(path)!r} has segments {unknown[:5]} without segments_info; download both again")
    return np.array([known[number] for number in ids.tolist()], np.uint8)[inverse].reshape(size_px)


def _color(value: Any) -> tuple[int, int, int] | None:
    if value is None:
        return None
    red, green, blue = (int(channel) for channel in value)
    return red, green, blue
