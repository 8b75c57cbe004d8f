"""BiSeNet v1: the contract and the auxiliary heads."""

from __future__ import annotations

import pytest
import torch
from network_contract import NetworkContract, random_images

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.bisenet_v1 import BiSeNetV1


class TestBiSeNetV1(NetworkContract):
    name = "bisenet_v1"
    num_classes = 19
    parameters = 13.3e6  # the CoinCheung implementation's; the paper's own, wider model has 49.0 M
    multiply_adds = 29.585e9
    logit_stride = 8

    def test_auxiliary_logits_have_their_heads_sizes(self, network):
        images = random_images(65, 97)
        with torch.no_grad():
            outputs = network.forward_with_auxiliary(images)
            sizes = [tuple(logits.shape[-2:]) for logits in outputs]
            # The images, padded to 96x128, at 1/8 and 1/16.
            assert sizes == [(65, 97), (12, 16), (6, 8)]
            assert {logits.shape[:2] for logits in outputs} == {(1, 19)}
            assert torch.equal(outputs[0], network(images))

    def test_inference_does_not_run_the_auxiliary_heads(self, network):
        images = random_images(64, 96)
        with torch.no_grad():
            expected = network(images)
            for parameter in network.auxiliary_heads.parameters():
                parameter.fill_(torch.nan)
            assert torch.equal(network(images), expected)


def test_without_auxiliary_heads_the_error_says_so():
    with pytest.raises(ConfigError, match="no auxiliary heads"):
        BiSeNetV1(19, auxiliary_heads=False).forward_with_auxiliary(random_images(64, 96))
