"""Networks with scores fitted on noise, which is sufficient for tests of formulas, files and graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomseg_ros.core.bundle import Provenance
from anomseg_ros.datasets.dataset import LabelledFrame
from anomseg_ros.deploy import fit_scores
from anomseg_ros.export import DetectorGraph, ExportConfig, contract_of, export_network
from anomseg_ros.networks import build_network
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.networks.torch_program import program_of, save_program
from anomseg_ros.scores import SCORES, find_score, fitted_names, start_fits

PIXEL_SCORES = tuple(name for name in SCORES if not find_score(name).needs_masks)
BUNDLE_SCORES = tuple(name for name in PIXEL_SCORES if not find_score(name).jumps)
"""Scores of the bundle of write_fitted_bundle."""
"""The scores that every network can have."""


class Noise:
    """Two frames of noise, one coarse and one fine."""

    name, split = "noise", "train"

    def __len__(self) -> int:
        return 2

    def load(self, index: int) -> LabelledFrame:
        grain = 16 >> 2 * index
        noise = np.random.default_rng(index).integers(0, 256, (128 // grain, 256 // grain, 3), dtype=np.uint8)
        return LabelledFrame(str(index), noise.repeat(grain, 0).repeat(grain, 1), None, None)


def fit_on_noise(network: SegmentationNetwork, config: ExportConfig) -> None:
    """Fit all scores of the table that can be fitted, in place."""
    contract, noise = contract_of(network.name, config, Provenance()), Noise()
    fits: Any = start_fits(fitted_names(), contract.known_count)
    fitted = fit_scores(network, contract, fits, noise, range(len(noise)), lambda what, done, total: None)  # type: ignore[arg-type]
    network.fitted_scores.update(fitted)


def fitted_network(config: ExportConfig) -> SegmentationNetwork:
    """Return MiDE-Net with seeded random weights, its scores fitted on noise."""
    torch.manual_seed(0)
    network = build_network("mide_net", config.num_classes).eval()
    fit_on_noise(network, config)
    return network


def write_fitted_bundle(directory: Path) -> None:
    """Write fitted_network as a bundle with every pixel score that does not jump: 64x128, class 19 is void.

    Scores of clusters are tested by themselves: on noise they are nearly constant, and each process would export them.
    """
    scores = tuple(sorted(BUNDLE_SCORES, key=lambda name: not find_score(name).needs_void))
    config = ExportConfig("tiny", 20, 19, height_px=64, width_px=128, scores=scores, temperature=1.5)
    export_network(fitted_network(config), "mide_net", config, directory, Provenance())


def float_program(config: ExportConfig, path: Path) -> Path:
    """Write fitted_network(config) as a float torch program; return the path."""
    graph = DetectorGraph(fitted_network(config), config).eval()
    image = torch.zeros((1, config.height_px, config.width_px, 3), dtype=torch.uint8)
    return save_program(program_of(graph, image), path)
