"""Small bundles and frames that the tests of compression share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from anomseg_ros.core.bundle import Bundle, Provenance
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.synthetic import SyntheticSequence
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.networks import build_network

HEIGHT_PX, WIDTH_PX = 64, 128


def small_bundle(network_name: str, folder: Path) -> Bundle:
    """Return the bundle of a network with random weights that have lively channels: 64x128, class 19 is void."""
    torch.manual_seed(0)
    network = build_network(network_name, 20).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 3.0)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, torch.nn.PReLU):
            torch.nn.init.uniform_(module.weight, 0.1, 0.9)
    config = ExportConfig(network_name, 20, 19, height_px=HEIGHT_PX, width_px=WIDTH_PX, scores=("void", "max_logit"))
    bundle, _ = export_network(network, network_name, config, folder / network_name, Provenance())
    return bundle


def street_frames(count: int, seed: int = 1_000_001) -> list[RgbImage]:
    """Return generated street scenes at the bundles' size, uint8 (64, 128, 3) RGB."""
    import cv2

    frames = (frame.image for frame in SyntheticSequence(seed).frames(count))
    return [np.asarray(cv2.resize(frame, (WIDTH_PX, HEIGHT_PX)), np.uint8) for frame in frames]


def camvid_frames(data: Path, count: int) -> list[RgbImage]:
    """Return frames of CamVid's val part from all over its drives, uint8 (1, 120, 160, 3) RGB."""
    import cv2

    files = sorted((data / "CamVid" / "val").glob("*.jpg"))
    frames = [cv2.imread(str(file)) for file in files[:: len(files) // count][:count]]
    small = [cv2.resize(frame, (160, 120), interpolation=cv2.INTER_AREA) for frame in frames]
    return [np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)[np.newaxis], np.uint8) for frame in small]
