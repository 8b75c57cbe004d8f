"""Mapillary Vistas (Neuhold et al., ICCV 2017): config*.json, {training,validation}/images and labels.

Version 1.2 has labels/ or v1.2/labels/, version 2.0 v2.0/labels/ beside images/, and its config names its folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from anomseg_ros.core.class_table import SplitRule
from anomseg_ros.core.file_pairs import files_in, pair
from anomseg_ros.core.pixel_files import read_label
from anomseg_ros.core.types import LabelImage
from anomseg_ros.datasets.imports.exported import (
    Export,
    Size,
    SourceClass,
    SourceFrame,
    read_json,
    require_size,
    understood,
)
from anomseg_ros.errors import DatasetError

SPLITS = {"training": "train", "validation": "val"}


def read_mapillary(root: Path) -> Export:
    """Read the newest version in a folder; its splits are kept. Raises DatasetError."""
    configs = sorted(root.glob("config*.json"))
    if not configs:
        raise DatasetError(f"{str(root)!r} has no config*.json; give the unpacked folder of Mapillary Vistas")
    config = configs[-1]
    version = config.stem.removeprefix("config").removeprefix("_")
    with understood(config, "a config of Mapillary Vistas"):
        rows = read_json(config)["labels"]
        readable = [str(row["readable"]) for row in rows]
        # Version 2.0 has "Lane Marking" classes of one readable name.
        names = [own if readable.count(own) == 1 else str(row["name"]) for own, row in zip(readable, rows, strict=True)]
        colors = [tuple(int(channel) for channel in row["color"]) for row in rows]
        classes = tuple(SourceClass(name, (r, g, b)) for name, (r, g, b) in zip(names, colors, strict=True))
    frames = [frame for folder in SPLITS for frame in _frames(root / folder, version, len(classes))]
    present = {frame.name.partition("/")[0] for frame in frames}
    splits = {split: SplitRule(drives=(folder,)) for folder, split in SPLITS.items() if folder in present}
    return Export(classes, tuple(frames), splits if len(splits) > 1 else {})


def _frames(folder: Path, version: str, classes: int) -> list[SourceFrame]:
    places = [place for place in (folder / version / "labels", folder / "labels") if place.is_dir()]
    if not (folder / "images").is_dir() or not places:
        return []
    named = [[(path.stem, path) for path in files_in(place)] for place in (folder / "images", places[0])]
    samples, problems = pair(*named)
    for problem in problems:
        raise problem
    return [
        SourceFrame(f"{folder.name}/{one.id}", one.image_path, partial(_labels, one.label_path, classes))
        for one in samples
    ]


def _labels(path: Path, classes: int, size_px: Size) -> LabelImage:
    labels = read_label(path)
    require_size(labels.shape, size_px, f"{str(path)!r}")
    if int(labels.max(initial=0)) >= classes:
        raise DatasetError(
            f"{str(path)!r} has labels up to {labels.max()}, the config lists {classes}; use its own config"
        )
    return np.asarray(labels, np.uint8)
