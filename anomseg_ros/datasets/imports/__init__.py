"""Readers of the exports of labelling tools and of datasets' own formats, for `anomseg datasets import`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from anomseg_ros.errors import DatasetError, unknown_name

if TYPE_CHECKING:
    from anomseg_ros.datasets.imports.exported import Export

FORMATS: dict[str, str] = {
    "cvat": "anomseg_ros.datasets.imports.cvat:read_cvat",
    "label-studio": "anomseg_ros.datasets.imports.label_studio:read_label_studio",
    "supervisely": "anomseg_ros.datasets.imports.supervisely:read_supervisely",
    "coco": "anomseg_ros.datasets.imports.coco:read_coco",
    "coco-panoptic": "anomseg_ros.datasets.imports.coco:read_coco_panoptic",
    "mapillary": "anomseg_ros.datasets.imports.mapillary:read_mapillary",
    "colors": "anomseg_ros.datasets.imports.color_masks:read_color_masks",
}
"""Format -> module:function that finds its classes and frames below a folder."""


MAX_CLASSES = 255
"""Label images have values 0 to 255, of which one is for pixels that nobody labelled."""


def read_export(name: str, root: Path) -> Export:
    """Return the classes and frames of an export; no picture is read yet. Raises DatasetError."""
    if name not in FORMATS:
        raise DatasetError(unknown_name("format", name, FORMATS))
    if not root.is_dir():
        remedy = "unpack the archive and give its folder" if root.is_file() else "check the path"
        raise DatasetError(f"{str(root)!r} is not a folder with an export of {name}; {remedy}")
    module, _, attribute = FORMATS[name].partition(":")
    reader: Callable[[Path], Export] = getattr(importlib.import_module(module), attribute)
    export = reader(root)
    if not 1 <= len(export.classes) <= MAX_CLASSES:
        raise DatasetError(f"{str(root)!r} lists {len(export.classes)} classes; expected 1 to {MAX_CLASSES}")
    if not export.frames:
        raise DatasetError(f"{str(root)!r} has no labelled frame of the format {name}; label some and export again")
    return export
