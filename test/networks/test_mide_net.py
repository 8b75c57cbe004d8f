"""MiDE-Net: published figures, the published order of upsampling and classifying, and the published weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from network_contract import NetworkFigures, random_images, randomize

from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.mide_net import MiDENet


class TestMiDENet(NetworkFigures):
    name = "mide_net"
    num_classes = 20
    # The count of the published weights. The report's Table 5 says 0.072 M, which its own code does not have.
    parameters = 63155
    parameters_tolerance = 0.0
    multiply_adds = 0.8288e9
    logit_stride = 8


def published_order(network, images):
    """Return logits as the published code computes them: upsample all features, then classify."""
    features = F.interpolate(network.encode(images)["encoder"], scale_factor=8, mode="bilinear", align_corners=False)
    return network.classifier(features)


def test_classifying_before_upsampling_gives_the_same_logits():
    network = MiDENet(20).eval()
    randomize(network)
    images = random_images(128, 192)
    with torch.no_grad():
        torch.testing.assert_close(network(images), published_order(network, images), atol=1e-4, rtol=0)


def test_published_weights_give_the_published_logits(shared_weights):
    network = load_checkpoint(shared_weights / "midenet_distilled.pth", "mide_net", 20)
    assert network.source_layout == "emariesanna/AnomalySegmentation-AMLProject"
    images = random_images(64, 96)
    with torch.no_grad():
        logits = network(images)
        torch.testing.assert_close(logits, published_order(network, images), atol=1e-4, rtol=0)
    assert logits.std() > 0.1
