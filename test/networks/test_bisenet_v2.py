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

    def test_auxiliary_logits_have_the_size_of_the_images(self, network):
        images = random_images(65, 97)
        with torch.no_grad():
            outputs = network.forward_with_auxiliary(images)
            assert [tuple(logits.shape) for logits in outputs] == [(1, 19, 65, 97)] * 5
            assert torch.equal(outputs[0], network(images))

    def test_inference_does_not_run_the_auxiliary_heads(self, network):
        images = random_images(64, 96)
        with torch.no_grad():
            expected = network(images)
            for parameter in network.auxiliary_heads.parameters():
                parameter.fill_(torch.nan)
            assert torch.equal(network(images), expected)
