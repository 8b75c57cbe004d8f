"""Sources of labelled frames: `open_dataset("camvid", "/data/CamVid")`, or the command line's `camvid=/data/CamVid`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from anomseg_ros.errors import DatasetError, unknown_name

if TYPE_CHECKING:
    from anomseg_ros.datasets.dataset import Dataset, DatasetType

DATASETS: dict[str, str] = {
    "cityscapes": "anomseg_ros.datasets.cityscapes:Cityscapes",
    "camvid": "anomseg_ros.datasets.camvid:CamVid",
    "fs_lost_found": "anomseg_ros.datasets.fishyscapes:FishyscapesLostFound",
    "fs_static": "anomseg_ros.datasets.fishyscapes:FishyscapesStatic",
    "lost_and_found": "anomseg_ros.datasets.lost_and_found:LostAndFound",
    "road_anomaly_21": "anomseg_ros.datasets.smiyc:RoadAnomaly21",
    "road_obstacle_21": "anomseg_ros.datasets.smiyc:RoadObstacle21",
    "road_anomaly": "anomseg_ros.datasets.road_anomaly:RoadAnomaly",
    "ade_ood": "anomseg_ros.datasets.ade_ood:AdeOod",
    "street_hazards": "anomseg_ros.datasets.street_hazards:StreetHazards",
    "folder": "anomseg_ros.datasets.folder:Folder",
    "cut_paste": "anomseg_ros.datasets.cut_paste:CutPaste",
    "pseudo_label": "anomseg_ros.datasets.pseudo_label_dataset:PseudoLabel",
    "synthetic": "anomseg_ros.datasets.synthetic:Synthetic",
}


def dataset_type(name: str) -> DatasetType:
    """Return the class of a dataset's name. Raises DatasetError that lists the names."""
    if name not in DATASETS:
        raise DatasetError(unknown_name("dataset", name, DATASETS))
    module, _, attribute = DATASETS[name].partition(":")
    loaded: DatasetType = getattr(importlib.import_module(module), attribute)
    return loaded


def open_dataset(name: str, path: str | Path, split: str | None = None) -> Dataset:
    """Find the files of a dataset; none is read yet.

    path: its folder, in the official or the flat layout; `PATH:SPLIT` names a split where none is given, and without
    either the default one is taken.

    Raises:
        DatasetError: unknown name or split, no such folder, or no layout recognised in it.
    """
    opener = dataset_type(name)
    text = str(path)
    head, colon, tail = text.rpartition(":")
    # A folder whose own name has a colon stays a folder.
    if split is None and colon and opener.splits and not Path(text).expanduser().is_dir():
        text, split = head, tail
    return opener(text, split)


def open_named(text: str) -> Dataset:
    """Open `NAME=PATH` or `NAME=PATH:SPLIT`, the form of the command line. Raises DatasetError."""
    name, equals, path = text.partition("=")
    if not equals:
        raise DatasetError(f"{text!r} is not of the form NAME=PATH, for example road_anomaly_21=/data/RoadAnomaly21")
    return open_dataset(name.strip(), path)
