"""Bundles and frames for the tests of `anomseg prune`, `compress` and `tune`."""

from __future__ import annotations

from pathlib import Path

import cv2
import torch
from network_contract import randomize
from once_per_run import copy_of
from small_bundles import street_frames
from tiny_runs import write_frames

from anomseg_ros.compression.convolutions import convolutions_of
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork

CLASSES = 11  # CamVid's


def make_place(folder: Path) -> Path:
    """Write a bundle, its checkpoint, street frames, and a few frames in the layout of CamVid; return the folder."""
    return copy_of("pruning-place", _write_place, folder)


def _write_place(folder: Path) -> None:
    folder.mkdir()
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


def arguments(place: Path, output: Path, *more: str) -> list[str]:
    """Return the arguments of both commands after the first one."""
    frames = ["--frames", str(place / "frames"), "--held-out-frames", "2"]
    checkpoint = ["--checkpoint", str(place / "whole.safetensors")]
    return [str(place / "whole"), *checkpoint, *frames, "--output", str(output), "--threads", "1", *more]


def zero_share(network: SegmentationNetwork) -> float:
    """Return the share of zero weights in the convolutions used by inference."""
    layers = convolutions_of(network).values()
    weights = [layer.weight for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
