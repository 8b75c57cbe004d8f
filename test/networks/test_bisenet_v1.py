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

    def test_auxiliary_logits_have_the_size_of_the_images(self, network):
        images = random_images(65, 97)
        with torch.no_grad():
            outputs = network.forward_with_auxiliary(images)
            assert [tuple(logits.shape) for logits in outputs] == [(1, 19, 65, 97)] * 3
            assert torch.equal(outputs[0], network(images))
        assert not torch.allclose(outputs[1], outputs[2])

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
