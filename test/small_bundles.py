"""Small bundles and frames for the tests of compression."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from once_per_run import copy_of

from anomseg_ros.core.bundle import Bundle, Provenance, load_bundle, save_bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.networks import build_network
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.scenes.sequence import SyntheticSequence

HEIGHT_PX, WIDTH_PX = 64, 128


def small_bundle(network_name: str, folder: Path) -> Bundle:
    """Return a bundle of a network with random weights whose channels differ: 64x128, class 19 is void."""
    return load_bundle(copy_of(network_name, partial(_export, network_name), folder / network_name))


def small_network(network_name: str) -> SegmentationNetwork:
    """Return the network of small_bundle, in evaluation mode."""
    torch.manual_seed(0)
    network = build_network(network_name, 20).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 3.0)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, torch.nn.PReLU):
            torch.nn.init.uniform_(module.weight, 0.1, 0.9)
    return network


def _export(network_name: str, directory: Path) -> None:
    network = small_network(network_name)
    config = ExportConfig(network_name, 20, 19, height_px=HEIGHT_PX, width_px=WIDTH_PX, scores=("void", "max_logit"))
    export_network(network, network_name, config, directory, Provenance())


def street_frames(count: int, seed: int = 1_000_001) -> list[RgbImage]:
    """Return synthetic street scenes at the size of the bundles, uint8 (64, 128, 3) RGB."""
    import cv2

    frames = (frame.image for frame in SyntheticSequence(seed).frames(count))
    return [np.asarray(cv2.resize(frame, (WIDTH_PX, HEIGHT_PX)), np.uint8) for frame in frames]


def camvid_frames(data: Path, count: int) -> list[RgbImage]:
    """Return frames spread over the validation split of CamVid, uint8 (1, 120, 160, 3) RGB."""
    import cv2

    files = sorted((data / "CamVid" / "val").glob("*.jpg"))
    frames = [cv2.imread(str(file)) for file in files[:: len(files) // count][:count]]
    small = [cv2.resize(frame, (160, 120), interpolation=cv2.INTER_AREA) for frame in frames]
    return [np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)[np.newaxis], np.uint8) for frame in small]


def with_program(bundle: Path, output: Path, program: bytes, keep_graph: bool) -> Path:
    """Return a copy of a bundle with this content in model.pt2."""
    contract = load_bundle(bundle).contract
    path = output.with_name("model.pt2")
    path.write_bytes(program)
    files = {"model.onnx": bundle / "model.onnx"} if keep_graph else {}
    save_bundle(contract, {**files, "model.pt2": path}, output)
    return output
