"""Small generated datasets in their official layouts and in the flat layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

SIZE = (6, 8)


def image(seed: int) -> np.ndarray:
    """Return noise, (6, 8, 3) uint8 RGB, which PNG and npz store exactly."""
    return np.random.default_rng(seed).integers(1, 200, (*SIZE, 3), dtype=np.uint8)


def values(*used: int) -> np.ndarray:
    """Return a label image that contains these values in turns."""
    return np.resize(np.array(used, np.uint8), SIZE)


def write(path: Path, rgb_or_labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rgb_or_labels[:, :, ::-1] if rgb_or_labels.ndim == 3 else rgb_or_labels
    assert cv2.imwrite(str(path), pixels)


def flat(root: Path, *used: int) -> None:
    for number in (2, 10):
        write(root / "images" / f"{number}.png", image(number))
        write(root / "labels_masks" / f"{number}.png", values(*used))


def cityscapes(root: Path) -> None:
    for id_, seed in (("ulm_000001_000019", 2), ("ulm_000010_000019", 10)):
        write(root / "leftImg8bit/val/ulm" / f"{id_}_leftImg8bit.png", image(seed))
        write(root / "gtFine/val/ulm" / f"{id_}_gtFine_labelIds.png", values(0, 7, 8, 33, 3, 24))
        write(root / "gtFine/val/ulm" / f"{id_}_gtFine_instanceIds.png", values(0))


def cityscapes_train_ids(root: Path) -> None:
    cityscapes(root)
    for path in list(root.rglob("*_labelIds.png")):
        write(path.with_name(path.name.replace("labelIds", "labelTrainIds")), values(255, 0, 1, 18, 255, 11))
        path.unlink()


def camvid(root: Path) -> None:
    for name, seed in (("0016E5_2", 2), ("0016E5_10", 10)):
        write(root / "val" / f"{name}.png", image(seed))
        write(root / "valannot" / f"{name}.png", values(0, 10, 11))


def fs_lost_found(root: Path) -> None:
    for number, seed in ((2, 2), (10, 10)):
        id_ = f"04_Maurener_Weg_8_000000_{number:06d}"
        write(root / "fishyscapes_lostandfound" / f"{number:04d}_{id_}_labels.png", values(0, 1, 255))
        split = "train" if number == 2 else "test"
        write(root / "lost/leftImg8bit" / split / "04_Maurener_Weg_8" / f"{id_}_leftImg8bit.png", image(seed))


def fs_static(root: Path) -> None:
    for number, seed in ((2, 2), (10, 10)):
        id_ = f"frankfurt_000001_{number:06d}"
        write(root / "fs" / f"{number:04d}_{id_}_labels.png", values(0, 1, 255))
        base = image(seed + 100)
        write(root / "cityscapes/leftImg8bit/val/frankfurt" / f"{id_}_leftImg8bit.png", base)
        np.savez_compressed(root / "fs" / f"{number:04d}_{id_}_rgb.npz", rgb=image(seed).astype(np.int16) - base)


def lost_and_found(root: Path) -> None:
    for number, seed in ((2, 2), (10, 10)):
        scene, id_ = "01_Hanns_Klemm_Str_45", f"01_Hanns_Klemm_Str_45_000000_{number:06d}"
        write(root / "leftImg8bit/test" / scene / f"{id_}_leftImg8bit.png", image(seed))
        write(root / "gtCoarse/test" / scene / f"{id_}_gtCoarse_labelIds.png", values(0, 1, 2, 42, 200))
        write(root / "gtCoarse/test" / scene / f"{id_}_gtCoarse_instanceIds.png", values(0))


def _smiyc(root: Path, names: list[str], labelled: list[str]) -> None:
    for name in names:
        write(root / "images" / f"{name}.png", image(10 if name.endswith("10") else 2))
    for name in labelled:
        write(root / "labels_masks" / f"{name}_labels_semantic.png", values(0, 1, 255))
        write(root / "labels_masks" / f"{name}_labels_semantic_color.png", image(1))


def road_anomaly_21(root: Path) -> None:
    names = ["validation0002", "validation0010"]
    _smiyc(root / "dataset_AnomalyTrack", [*names, "airplane0000"], names)


def road_obstacle_21(root: Path) -> None:
    names = ["validation_2", "validation_10"]
    _smiyc(root / "dataset_ObstacleTrack", [*names, "validation_21", "curvy-street_x_1"], [*names, "validation_21"])


def road_anomaly(root: Path) -> None:
    frames = root / "RoadAnomaly_jpg" / "frames"
    for name, seed in (("animals2", 2), ("animals10", 10), ("unlisted", 3)):
        write(frames / f"{name}.png", image(seed))
        write(frames / f"{name}.labels" / "labels_semantic.png", values(0, 2, 255))
    (root / "RoadAnomaly_jpg" / "frame_list.json").write_text(json.dumps(["animals2.png", "animals10.png"]))


def ade_ood(root: Path) -> None:
    for name, seed in (("x2", 2), ("x10", 10)):
        write(root / "images" / f"{name}.png", image(seed))
        write(root / "annotations" / f"{name}_mask.png", values(0, 1, 255))


def street_hazards(root: Path) -> None:
    for town in ("t5", "t6"):
        write(root / "test/images/test" / town / "10.png", image(2 if town == "t5" else 10))
        write(root / "test/annotations/test" / town / "10.png", values(1, 13, 14, 0))


OWN_CLASSES = """
classes:
- {name: road, id: 1, color: [128, 64, 128]}
- {name: dog, id: 0}
- {name: nobody knows, id: 7, role: unlabelled}
- {name: bonnet, id: 8, role: ignored}
- {name: debris, id: 9, role: outlier}
"""


def own_folder(root: Path, names: list[str], more: str = "", classes: str = OWN_CLASSES) -> Path:
    """Write frames of the dataset `folder`, whose labels have every value of OWN_CLASSES and 255."""
    for number, name in enumerate(names):
        write(root / "images" / f"{name}.png", image(number))
        write(root / "labels" / f"{name}.png", values(0, 1, 7, 8, 9, 255))
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.yaml").write_text(classes + more)
    return root


OFFICIAL: dict[str, Callable[[Path], None]] = {
    "cityscapes": cityscapes,
    "camvid": camvid,
    "fs_lost_found": fs_lost_found,
    "fs_static": fs_static,
    "lost_and_found": lost_and_found,
    "road_anomaly_21": road_anomaly_21,
    "road_obstacle_21": road_obstacle_21,
    "road_anomaly": road_anomaly,
    "ade_ood": ade_ood,
    "street_hazards": street_hazards,
}
INSIDE = {"fs_lost_found": "fishyscapes_lostandfound", "fs_static": "fs"}
"""Dataset -> its folder, if the tree also contains another dataset."""
