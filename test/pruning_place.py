"""What the tests of `anomseg prune`, `compress` and `tune` work on."""

from __future__ import annotations

from pathlib import Path

import cv2
import torch
from network_contract import randomize
from small_bundles import street_frames
from tiny_runs import write_frames

from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint

CLASSES = 11  # CamVid's


def make_place(folder: Path) -> Path:
    """Return the folder with a bundle, its checkpoint, frames of a street, and a few frames in CamVid's layout."""
    torch.manual_seed(0)
    network = build_network("mide_net", CLASSES)
    randomize(network)
    save_checkpoint(folder / "whole.safetensors", network, {})
    config = ExportConfig("whole", CLASSES, label_set="camvid", height_px=64, width_px=128)
    export_checkpoint("mide_net", folder / "whole.safetensors", config, folder / "whole")
    (folder / "frames").mkdir()
    for index, frame in enumerate(street_frames(12)):
        cv2.imwrite(str(folder / "frames" / f"{index}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    write_frames(folder / "camvid")
    return folder


def arguments(place: Path, output: Path, *more: str) -> list[str]:
    """Return what both commands take, after their own first argument."""
    frames = ["--frames", str(place / "frames"), "--held-out-frames", "2"]
    checkpoint = ["--checkpoint", str(place / "whole.safetensors")]
    return [str(place / "whole"), *checkpoint, *frames, "--output", str(output), "--threads", "1", *more]
