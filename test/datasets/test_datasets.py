from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_trees import INSIDE, OFFICIAL, cityscapes_train_ids, flat, image, values, write

from anomseg_ros.datasets import open_dataset, open_named
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.errors import DatasetError

# Meaning of the first label values of each tree: (train ids or None, anomaly or None).
MEANING = {
    "cityscapes": ([255, 0, 1, 18, 255, 11], None),
    "camvid": ([0, 10, 255], None),
    "fs_lost_found": (None, [0, 1, 255]),
    "fs_static": (None, [0, 1, 255]),
    "lost_and_found": (None, [255, 0, 1, 1, 1]),
    "road_anomaly_21": (None, [0, 1, 255]),
    "road_obstacle_21": (None, [0, 1, 255]),
    "road_anomaly": (None, [0, 1, 255]),
    "ade_ood": (None, [0, 1, 255]),
    "street_hazards": ([0, 12, 255, 255], [0, 0, 1, 255]),
}
PUBLISHED = {
    "cityscapes": 500,
    "camvid": 101,
    "fs_lost_found": 100,
    "fs_static": 30,
    "lost_and_found": 1203,
    "road_anomaly_21": 10,
    "road_obstacle_21": 30,
    "road_anomaly": 60,
    "ade_ood": 111,
    "street_hazards": 1500,
}


def assert_frames(dataset: Dataset, labels: list[int] | None, anomaly: list[int] | None) -> None:
    assert len(dataset) == 2
    assert dataset.problems == ()
    for index, seed in enumerate((2, 10)):
        frame = dataset.load(index)
        assert frame.id == dataset.frame_id(index)
        assert np.array_equal(frame.image, image(seed))
        for found, expected in ((frame.labels, labels), (frame.anomaly, anomaly)):
            assert (found is None) == (expected is None)
            assert found is None or expected is None or np.array_equal(found, values(*expected))
    assert dataset.has_anomalies == (anomaly is not None)


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_official_layout_is_read(name: str, tmp_path: Path) -> None:
    OFFICIAL[name](tmp_path)
    dataset = open_dataset(name, tmp_path / INSIDE.get(name, ""))
    assert (dataset.layout, dataset.published_count) == ("official", PUBLISHED[name])
    assert_frames(dataset, *MEANING[name])
    assert_frames(pickle.loads(pickle.dumps(dataset)), *MEANING[name])


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_flat_layout_is_read(name: str, tmp_path: Path) -> None:
    semantic = {"cityscapes": ([0, 18, 255],) * 2, "camvid": ([0, 10, 11], [0, 10, 255])}
    given, labels = semantic.get(name, ([0, 1, 255], None))
    flat(tmp_path, *given)
    dataset = open_dataset(name, tmp_path)
    assert [dataset.frame_id(0), dataset.frame_id(1)] == ["2", "10"]
    assert dataset.layout == "flat"
    assert_frames(dataset, labels, None if labels else [0, 1, 255])


def test_flat_road_anomaly_reads_2_as_anomaly(tmp_path: Path) -> None:
    flat(tmp_path, 0, 2, 1, 255)
    assert_frames(open_dataset("road_anomaly", tmp_path), None, [0, 1, 1, 255])


def test_official_road_anomaly_reads_1_as_road(tmp_path: Path) -> None:
    OFFICIAL["road_anomaly"](tmp_path)
    for path in tmp_path.rglob("labels_semantic.png"):
        write(path, values(0, 1, 2))
    assert_frames(open_dataset("road_anomaly", tmp_path), None, [0, 0, 1])


def test_cityscapes_train_id_files_are_read(tmp_path: Path) -> None:
    cityscapes_train_ids(tmp_path)
    assert_frames(open_dataset("cityscapes", tmp_path), *MEANING["cityscapes"])


@pytest.mark.parametrize("label_name", ["gtFine_labelIds", "leftImg8bit"])
def test_cityscapes_frames_without_the_official_folders_are_read(label_name: str, tmp_path: Path) -> None:
    for id_, seed in (("ulm_000001_000019", 2), ("ulm_000010_000019", 10)):
        sequence = "seq1" if label_name == "leftImg8bit" else "."
        write(tmp_path / "images" / sequence / f"{id_}_leftImg8bit.png", image(seed))
        write(tmp_path / "labels" / sequence / f"{id_}_{label_name}.png", values(0, 7, 8, 33, 3, 24))
    dataset = open_dataset("cityscapes", tmp_path)
    assert (dataset.layout, dataset.frame_id(1)) == ("part", "ulm_000010_000019")
    assert_frames(dataset, *MEANING["cityscapes"])


def test_split_is_taken_from_suffix_or_argument(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / split / f"{split}.png", image(1))
        write(tmp_path / f"{split}annot" / f"{split}.png", values(0))
    assert open_named(f"camvid={tmp_path}").frame_id(0) == "val"
    assert open_named(f"camvid={tmp_path}:train").frame_id(0) == "train"
    assert open_dataset("camvid", tmp_path, "train").published_count == 367
    with pytest.raises(DatasetError, match=r"camvid has no split 'tran'; known: train"):
        open_named(f"camvid={tmp_path}:tran")


def test_folder_name_may_contain_a_colon(tmp_path: Path) -> None:
    flat(tmp_path / "odd:name", 0, 1)
    assert len(open_named(f"ade_ood={tmp_path / 'odd:name'}")) == 2


def test_street_hazards_training_has_no_anomaly_mask(tmp_path: Path) -> None:
    write(tmp_path / "train/images/training/t1/1.png", image(1))
    write(tmp_path / "train/annotations/training/t1/1.png", values(1, 13))
    frame = open_dataset("street_hazards", tmp_path, "train").load(0)
    assert frame.anomaly is None and frame.labels is not None
    assert set(np.unique(frame.labels)) == {0, 12}


def test_palette_labels_are_read_as_indices(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image", reason="Pillow is absent; it comes with the extra `dev`")
    flat(tmp_path, 0)
    for number, bits in ((2, 8), (10, 2)):
        picture = pil.fromarray(values(0, 1))
        picture.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
        picture.save(tmp_path / "labels_masks" / f"{number}.png", bits=bits)
    assert_frames(open_dataset("ade_ood", tmp_path), None, [0, 1])


def test_one_bit_labels_are_read_as_0_and_1(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image", reason="Pillow is absent; it comes with the extra `dev`")
    flat(tmp_path, 0)
    for number in (2, 10):
        pil.fromarray(values(0, 1).astype(bool)).save(tmp_path / "labels_masks" / f"{number}.png")
    assert_frames(open_dataset("ade_ood", tmp_path), None, [0, 1])


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image", reason="Pillow is absent; it comes with the extra `dev`")
    flat(tmp_path, 0, 1)
    exif = pil.Exif()
    exif[0x0112] = 6
    (tmp_path / "images" / "2.png").unlink()
    path = tmp_path / "images" / "2.jpg"
    pil.fromarray(image(2)).save(path, exif=exif)
    frame = open_dataset("ade_ood", tmp_path).load(0)
    assert np.array_equal(frame.image, np.asarray(pil.open(path)))
    assert cv2.imread(str(path)).shape[:2] == frame.image.shape[1::-1]


def test_fishyscapes_static_overlay_sum_is_clipped(tmp_path: Path) -> None:
    OFFICIAL["fs_static"](tmp_path)
    for path in (tmp_path / "fs").glob("*.npz"):
        np.savez(path, rgb=np.full((6, 8, 3), 240, np.int16))
    frame = open_dataset("fs_static", tmp_path / "fs").load(0)
    assert np.array_equal(frame.image, np.minimum(image(102).astype(int) + 240, 255))


def test_fishyscapes_static_with_complete_pictures_needs_no_cityscapes(tmp_path: Path) -> None:
    OFFICIAL["fs_static"](tmp_path)
    for path, seed in zip(sorted((tmp_path / "fs").glob("*.npz")), (2, 10), strict=True):
        np.savez(path, rgb=image(seed))
    (tmp_path / "cityscapes").rename(tmp_path / "fs" / "elsewhere")
    assert_frames(open_dataset("fs_static", tmp_path / "fs"), None, [0, 1, 255])


@pytest.mark.slow
def test_synthetic_frames_are_reproducible() -> None:
    dataset = open_named("synthetic=3:2")
    frame = dataset.load(1)
    assert (len(dataset), frame.id, dataset.published_count) == (2, "3_000001", None)
    assert frame.labels is not None and frame.anomaly is not None
    assert frame.image.shape == (*frame.labels.shape, 3) == (*frame.anomaly.shape, 3)
    again = pickle.loads(pickle.dumps(dataset)).load(1)
    assert np.array_equal(frame.image, again.image) and np.array_equal(frame.anomaly, again.anomaly)
    assert len(open_dataset("synthetic", "")) == 100


@pytest.mark.slow
def test_synthetic_training_frames_come_from_many_drives() -> None:
    dataset = open_named("synthetic=3:2x3")
    assert [dataset.frame_id(i) for i in range(len(dataset))] == [
        f"{seed}_{number:06d}" for seed in (3, 4) for number in (0, 30, 60)
    ]
    frames = [dataset.load(index) for index in range(6)]
    frame, again = frames[4], open_named("synthetic=4:1x3").load(1)
    assert np.array_equal(frame.image, again.image) and np.array_equal(frame.anomaly, again.anomaly)
    assert not np.array_equal(frame.image, frames[1].image)
    # Training frames have anomalies more often than the frames of a drive.
    assert sum(bool((frame.anomaly == 1).any()) for frame in frames) >= 3


def test_synthetic_opens_a_folder(tmp_path: Path) -> None:
    flat(tmp_path, 0, 1)
    dataset = open_dataset("synthetic", tmp_path)
    assert dataset.published_count is None
    assert_frames(dataset, None, [0, 1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("camvdi=/x", "unknown dataset 'camvdi'; known: camvid"),
        ("/data/CamVid", "is not of the form NAME=PATH"),
        ("camvid=/no/such/folder", "'/no/such/folder' is not a folder"),
        ("synthetic=7:0", "has no frames"),
        ("synthetic=7:2x0", "has no frames"),
        ("synthetic=7:x3", "is neither SEED:FRAMES"),
        ("synthetic=/no/such/folder", "is neither SEED:FRAMES"),
    ],
)
def test_invalid_specifications_are_refused(spec: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_named(spec)


def test_empty_folder_error_names_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected images/X\.jpg with annotations/X_mask\.png, or images/N\.png"):
        open_dataset("ade_ood", tmp_path)
