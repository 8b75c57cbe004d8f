"""BiSeNet V2: the contract and the auxiliary heads."""

from __future__ import annotations

import torch
from network_contract import NetworkContract, random_images


class TestBiSeNetV2(NetworkContract):
    name = "bisenet_v2"
    num_classes = 19
    parameters = 3.4e6  # the CoinCheung implementation's inference part; the paper gives no number
    multiply_adds = 24.603e9
    logit_stride = 8

    def test_auxiliary_logits_have_their_heads_sizes(self, network):
        images = random_images(65, 97)
        with torch.no_grad():
            outputs = network.forward_with_auxiliary(images)
            sizes = [tuple(logits.shape[-2:]) for logits in outputs]
            # The images, padded to 96x128, at twice the features' 1/4, 1/8, 1/16 and 1/32.
            assert sizes == [(65, 97), (48, 64), (24, 32), (12, 16), (6, 8)]
            assert {logits.shape[:2] for logits in outputs} == {(1, 19)}
            assert torch.equal(outputs[0], network(images))

    def test_inference_does_not_run_the_auxiliary_heads(self, network):
        images = random_images(64, 96)
        with torch.no_grad():
            expected = network(images)
            for parameter in network.auxiliary_heads.parameters():
                parameter.fill_(torch.nan)
            assert torch.equal(network(images), expected)
