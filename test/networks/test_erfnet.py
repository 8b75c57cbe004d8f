"""ERFNet and its encoder: published figures, and the published weights in float and after FX quantization."""

from __future__ import annotations

import torch
from network_contract import NetworkFigures, random_images

from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import load_checkpoint


class TestERFNet(NetworkFigures):
    name = "erfnet"
    num_classes = 20
    parameters = 2.06e6  # Romera et al., Table I and text, for 19 classes; one more class adds 65
    multiply_adds = 26.613e9
    logit_stride = 1


class TestERFNetEncoder(NetworkFigures):
    name = "erfnet_encoder"
    num_classes = 19
    # Table I's layers, added up by hand: 396 + 7,088 + 5 x 49,664 + 37,184 + 8 x 197,632, and 2,451 of the classifier.
    parameters = 1_876_495
    parameters_tolerance = 0.0
    multiply_adds = 21.532e9  # as many per layer: 0.046, 0.226, 8.053, 0.302, 12.885 and 0.020 G
    logit_stride = 8


def test_encoder_equals_the_encoder_of_erfnet():
    network, encoder = build_network("erfnet", 19), build_network("erfnet_encoder", 19)
    network.encoder.load_state_dict(encoder.encoder.state_dict(), strict=True)
    images = random_images(64, 96)
    with torch.no_grad():
        assert torch.equal(network.eval().encoder(images), encoder.eval().encoder(images))


def test_quantized_checkpoint_equals_the_dequantized_one(shared_weights):
    plain = load_checkpoint(shared_weights / "erfnet_void20_dequantized.safetensors", "erfnet", 20)
    quantized = load_checkpoint(shared_weights / "erfnet_finetuned_quantized_fx.pth", "erfnet", 20)
    assert plain.source_layout == "Eromera/erfnet_pytorch"
    assert quantized.source_layout == "Eromera/erfnet_pytorch, quantized by torch FX"
    images = random_images(64, 96)
    with torch.no_grad():
        logits = plain(images)
        torch.testing.assert_close(quantized(images), logits, atol=1e-5, rtol=0)
    assert logits.isfinite().all()
    assert logits.std() > 0.1
