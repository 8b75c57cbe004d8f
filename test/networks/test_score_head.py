"""Scores of masks in a graph: refused for other networks, equal to the reference in ONNX Runtime at odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomseg_ros.backends import open_backend
from anomseg_ros.core.bundle import Provenance
from anomseg_ros.errors import ConfigError
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.networks import build_network
from anomseg_ros.networks.eomt import EoMT
from anomseg_ros.networks.score_head import ScoreHead
from anomseg_ros.scores import SCORES, find_score, reference_score

MASKS = tuple(name for name in SCORES if find_score(name).needs_masks)
PLAIN = ("msp", "max_logit", "max_entropy", "energy", "void")


def test_scores_of_masks_are_refused_for_other_networks():
    for name in MASKS:
        with pytest.raises(ConfigError, match=f"score '{name}' is for networks that predict masks, such as eomt, not"):
            ScoreHead(build_network("mide_net", 4), (name,), 3, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "tiles"), [("cpu", "short_side"), ("gpu", "none")])
def test_exported_scores_equal_the_references_at_odd_sizes(tmp_path, tiles, target):
    torch.manual_seed(0)
    network = EoMT(12, width=64, depth=2, query_blocks=1, queries=9, grid=(4, 4), cosine_scale=30.0, tiles=tiles)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    network.eval()
    scores = (*MASKS, *PLAIN)
    config = ExportConfig("odd", 12, 11, "camvid", height_px=75, width_px=117, scores=scores, target=target)
    bundle, parity = export_network(network, "eomt", config, tmp_path / "odd", Provenance("none", "0" * 64))
    assert parity.frames == 2
    pixels = np.random.default_rng(0).integers(0, 256, (1, 75, 117, 3), np.uint8)
    backend = open_backend("onnxruntime", bundle)
    outputs = dict(zip(scores, backend.run(pixels, list(scores)), strict=True))
    with torch.no_grad():
        prediction = network.predict(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0)
        logits, evidence = prediction.pixel_logits()[0].numpy(), prediction.pixel_evidence()[0].numpy()
    for name in scores:
        expected = reference_score(name, logits, 11, evidence=evidence)
        assert np.ptp(expected) > 0
        assert np.abs(outputs[name][0] - expected).max() <= 1e-4 * np.ptp(expected), name
