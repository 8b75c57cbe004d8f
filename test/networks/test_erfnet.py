"""ERFNet: the contract, and the published weights in float and after FX quantization."""

from __future__ import annotations

import torch
from network_contract import NetworkContract, random_images

from anomseg_ros.networks.checkpoints import load_checkpoint


class TestERFNet(NetworkContract):
    name = "erfnet"
    num_classes = 20
    parameters = 2.06e6  # Romera et al., Table I and text, for 19 classes; one more class adds 65
    multiply_adds = 26.613e9
    logit_stride = 1


def test_quantized_weights_load_as_the_dequantized_ones(shared_weights):
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
