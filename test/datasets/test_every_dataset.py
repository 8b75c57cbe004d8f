"""Every registered dataset fulfils the contract of datasets. A new dataset needs no change here."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from brightness_teacher import ByBrightness
from dataset_trees import INSIDE, OFFICIAL, camvid, flat, own_folder

from anomseg_ros.core.labels import KNOWN_UNCERTAIN, UNLABELLED
from anomseg_ros.datasets import DATASETS, dataset_type, open_dataset, open_named
from anomseg_ros.datasets.cut_paste_write import WriteConfig, write_cut_paste
from anomseg_ros.datasets.dataset import ANOMALY, KNOWN, VOID, Dataset, LabelledFrame
from anomseg_ros.datasets.pseudo_label import LabelConfig
from anomseg_ros.datasets.pseudo_label_sources import open_sources
from anomseg_ros.datasets.pseudo_label_write import WriteConfig as LabelWriteConfig
from anomseg_ros.datasets.pseudo_label_write import write_pseudo_labels
from anomseg_ros.errors import DatasetError
from anomseg_ros.outliers.cut_paste import PasteConfig
from anomseg_ros.outliers.objects import ProceduralObjects


def synthetic_spec(_: Path) -> str:
    return "3:2"


def write_cut_paste_dataset(folder: Path) -> str:
    camvid(folder / "camvid")
    config = WriteConfig(paste=PasteConfig(min_area_px=1, feather_radius_px=0.0))
    write_cut_paste(open_named(f"camvid={folder / 'camvid'}"), ProceduralObjects(), folder / "out", config)
    return str(folder / "out")


def write_pseudo_label_dataset(folder: Path) -> str:
    camvid(folder / "camvid")
    sources = open_sources([f"camvid={folder / 'camvid'}"])
    write_pseudo_labels(sources, [ByBrightness()], folder / "out", LabelWriteConfig(LabelConfig(confidence=0.5)))
    return str(folder / "out")


def write_own_folder(folder: Path) -> str:
    return str(own_folder(folder, ["drive/2", "drive/10"], "splits: {val: {pattern: '*'}}"))


GENERATED: dict[str, Callable[[Path], str]] = {
    "synthetic": synthetic_spec,
    "folder": write_own_folder,
    "cut_paste": write_cut_paste_dataset,
    "pseudo_label": write_pseudo_label_dataset,
}
"""Generated dataset -> function that writes a small one and returns its path. For other datasets, make_dataset writes
the official layout (dataset_trees.py) or the flat layout, which each of them reads."""


def make_dataset(name: str, folder: Path) -> str:
    if name in GENERATED:
        return GENERATED[name](folder)
    if name in OFFICIAL:
        OFFICIAL[name](folder)
        return str(folder / INSIDE.get(name, ""))
    flat(folder, 0, 1)
    return str(folder)


def same(one: LabelledFrame, two: LabelledFrame) -> bool:
    pairs = ((one.image, two.image), (one.labels, two.labels), (one.anomaly, two.anomaly))
    return one.id == two.id and all(a is b is None or np.array_equal(a, b) for a, b in pairs)


def assert_values(dataset: Dataset, frame: LabelledFrame) -> None:
    height_px, width_px, channels = frame.image.shape
    assert frame.image.dtype == np.uint8 and channels == 3
    for truth in (frame.labels, frame.anomaly):
        assert truth is None or (truth.dtype == np.uint8 and truth.shape == (height_px, width_px))
    assert (frame.anomaly is not None) == dataset.has_anomalies
    assert frame.labels is not None or frame.anomaly is not None
    assert frame.anomaly is None or set(np.unique(frame.anomaly)) <= {KNOWN, ANOMALY, VOID}
    if frame.labels is not None and dataset.classes is not None:
        known = {info.train_id for info in dataset.classes}
        assert set(np.unique(frame.labels)) <= {*known, KNOWN_UNCERTAIN, UNLABELLED}


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_frames_agree_with_the_dataset(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(name, make_dataset(name, tmp_path))
    assert dataset.name == name and len(dataset) == 2 and dataset.problems == ()
    assert (dataset.classes is None) == (dataset.label_set is None)
    again: Dataset = pickle.loads(pickle.dumps(dataset))
    frames = [dataset.load(index) for index in range(2)]
    for index, frame in enumerate(frames):
        assert frame.id == dataset.frame_id(index) == again.frame_id(index)
        assert dataset.origin(index) == again.origin(index)
        assert_values(dataset, frame)
        assert same(frame, dataset.load(index)) and same(frame, again.load(index))
    assert frames[0].id != frames[1].id and dataset.origin(0) != dataset.origin(1)


@pytest.mark.parametrize("name", DATASETS)
def test_unknown_splits_and_missing_or_empty_folders_are_refused(name: str, tmp_path: Path) -> None:
    kind = dataset_type(name)
    assert kind.layouts and (kind.default_split in kind.splits or not kind.splits)
    with pytest.raises(DatasetError, match="split"):
        open_dataset(name, make_dataset(name, tmp_path / "dataset"), "no_such_split")
    with pytest.raises(DatasetError, match="nowhere"):
        open_dataset(name, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"empty|expected"):
        open_dataset(name, tmp_path / "empty")
