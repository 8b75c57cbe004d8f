"""A small EoMT learns two frames by heart, with and without ArcFace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="the extra `heavy` is not installed")

import cv2
import numpy as np
from dataset_trees import write
from tiny_runs import run, tiny_plain, write_config, write_frames

from anomseg_ros.networks.network import IMAGENET_MEAN, IMAGENET_STD
from anomseg_ros.training.config import load_config

SIZE_PX, LEAST_SHARE, CAMVID_VOID = 96, 0.04, 11
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CAMVID = Path(os.environ.get("ANOMSEG_DATA", SHARED)) / "CamVid"
LINEAR: dict[str, Any] = {"options": {"grid": [6, 6]}}
COSINES: dict[str, Any] = {"options": {"grid": [6, 6], "cosine_scale": 30.0}}
STREAMS: dict[str, Any] = {"name": "dual_stream_adapter", "options": {"grid": [6, 6]}, "frozen": ["encoder"]}


def two_frames(root: Path, camvid: Path | None) -> Path:
    """Write the same two frames for training and validation, of CamVid where it is at hand."""
    if camvid is None:
        sources = sorted((write_frames(root / "drawn", 2, 0, (SIZE_PX, SIZE_PX)) / "train").glob("*.png"))
    else:
        sources = sorted((camvid / "train").glob("*.jpg"))[:200:199]
    for path in sources:
        name = f"{path.stem}.png"
        labels = path.parent.parent / "trainannot" / name
        for split in ("train", "val"):
            small = cv2.resize(cv2.imread(str(path)), (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
            small[0, 0] = 0 if split == "val" else small[0, 0]  # equal frames in both splits are refused
            write(root / split / name, small[..., ::-1])
            plain = without_thin_classes(cv2.imread(str(labels), cv2.IMREAD_UNCHANGED))
            write(
                root / f"{split}annot" / name,
                cv2.resize(plain, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_NEAREST),
            )
    return root


def without_thin_classes(labels: np.ndarray) -> np.ndarray:
    """Return CamVid's labels with classes that cover less than 4 % of a frame as void: a mask has one value per 4x4."""
    shares = np.bincount(labels.ravel(), minlength=256) / labels.size
    return np.where(shares[labels] < LEAST_SHARE, CAMVID_VOID, labels).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "class_loss"), [(LINEAR, "cross_entropy"), (COSINES, "arcface")])
def test_two_frames_are_learnt_by_heart(network: dict[str, Any], class_loss: str, tmp_path: Path) -> None:
    data = two_frames(tmp_path / "data", CAMVID if CAMVID.is_dir() else None)
    plain = tiny_plain(
        data,
        objective="masks",
        network={"name": "eomt", "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), **network},
        data={"height_px": SIZE_PX, "width_px": SIZE_PX},
        loss={"class_loss": class_loss, "points": 1024, "annealing": [[0.0, 0.35], [0.35, 0.7]]},
        optimizer={"kind": "adamw", "learning_rate": 1e-3},
        schedule={"kind": "poly"},
        run={"epochs": 200, "validate_every": 200, "checkpoint_every": 1000, "threads": 1},
    )
    plain["augment"] = {"crop_height_px": SIZE_PX, "crop_width_px": SIZE_PX, "flip": 0.0}
    result = run(load_config(write_config(tmp_path / "overfit.yaml", data, **plain)), tmp_path / "out")
    assert result.miou is not None and result.miou >= 0.9


@pytest.mark.slow
def test_two_frames_are_learnt_by_heart_on_a_frozen_encoder(tmp_path: Path) -> None:
    """The encoder is random: the adapter and the decoder learn all."""
    data = two_frames(tmp_path / "data", CAMVID if CAMVID.is_dir() else None)
    plain = tiny_plain(
        data,
        objective="dual_stream",
        network={"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), **STREAMS},
        data={"height_px": SIZE_PX, "width_px": SIZE_PX},
        loss={"points": 1024},
        optimizer={"kind": "adamw", "learning_rate": 1e-3},
        schedule={"kind": "poly"},
        run={"epochs": 200, "validate_every": 200, "checkpoint_every": 1000, "threads": 1},
    )
    plain["augment"] = {"crop_height_px": SIZE_PX, "crop_width_px": SIZE_PX, "flip": 0.0}
    result = run(load_config(write_config(tmp_path / "overfit.yaml", data, **plain)), tmp_path / "out")
    assert result.miou is not None and result.miou >= 0.8
