"""A small float bundle with its checkpoint, a drive of generated scenes, and adaptations of a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from dataset_trees import write
from once_per_run import copy_of
from small_bundles import HEIGHT_PX, WIDTH_PX, small_network, street_frames

from anomseg_ros.adaptation.norms import NormConfig
from anomseg_ros.adaptation.request import AdaptRequest, Level
from anomseg_ros.adaptation.self_training import TrainingConfig
from anomseg_ros.core.bundle import CHECKPOINT_FILE, Provenance, load_bundle, sha256_of
from anomseg_ros.core.labels import CITYSCAPES
from anomseg_ros.datasets.dataset import LabelledFrame
from anomseg_ros.datasets.unlabelled_drive import open_drive
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.networks.checkpoints import save_checkpoint

SMALL = Level(NormConfig(steps=3, batch_size=2), training=TrainingConfig(steps=4, workers=0), frames=6)
FRAMES = 21


class Halves:
    """Frames whose upper half is class 2 and whose lower half is road; every other one is twice as large."""

    name, split, layout, path, label_set = "halves", "", "made", "", "cityscapes"
    classes, has_anomalies, published_count, problems = CITYSCAPES, False, None, ()

    def __len__(self) -> int:
        return 4

    def frame_id(self, index: int) -> str:
        return str(index)

    def origin(self, index: int) -> str:
        return f"halves {index}"

    def load(self, index: int) -> LabelledFrame:
        labels = np.zeros((64 * (1 + index % 2), 128 * (1 + index % 2)), np.uint8)
        labels[: len(labels) // 2] = 2
        image = np.where(labels[..., None] == 2, (200, 90, 20), (90, 90, 90)).astype(np.uint8)
        return LabelledFrame(str(index), image, labels, None)


def adaptable_bundle(folder: Path) -> Path:
    """Return the folder of MiDE-Net with random weights, 64x128, class 19 is void, and its checkpoint."""
    return copy_of("adaptable", _write_bundle, folder)


def street_drive(folder: Path) -> Path:
    """Return a folder of FRAMES pictures of a drive, 64x128."""
    return copy_of("street-drive", _write_drive, folder)


def small_request(place: Path, **changes: Any) -> AdaptRequest:
    """Return a request whose bundle, drive and output are in a folder."""
    bundle, frames = adaptable_bundle(place / "given"), street_drive(place / "street")
    request = AdaptRequest(
        load_bundle(bundle), open_drive([frames], rate_hz=10), place / "adapted", level=SMALL, min_alarm_px=4, threads=1
    )
    return replace(request, **changes)


def _write_bundle(folder: Path) -> None:
    network, file = small_network("mide_net"), folder.with_name("weights") / CHECKPOINT_FILE
    file.parent.mkdir(exist_ok=True)
    save_checkpoint(file, network, {})
    config = ExportConfig("given", 20, 19, height_px=HEIGHT_PX, width_px=WIDTH_PX, scores=("void", "msp"))
    provenance = Provenance(CHECKPOINT_FILE, sha256_of(file), training_data="noise")
    export_network(network, "mide_net", config, folder, provenance, files={CHECKPOINT_FILE: file})


def _write_drive(folder: Path) -> None:
    for number, frame in enumerate(street_frames(FRAMES)):
        write(folder / f"{number:03d}.png", frame)
