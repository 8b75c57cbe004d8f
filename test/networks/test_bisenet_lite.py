"""BiSeNet v1 on EfficientNet-Lite0: the contract, the auxiliary heads and the width."""

from __future__ import annotations

import pytest
import torch
from network_contract import NetworkContract, random_images

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.bisenet_lite import BiSeNetLite


class TestBiSeNetLite(NetworkContract):
    name = "bisenet_lite"
    num_classes = 20
    parameters = 3.979e6  # nothing is published of this network; EfficientNet-Lite0 without its head has 3.37 M
    multiply_adds = 7.845e9
    logit_stride = 4

    def test_auxiliary_logits_have_their_heads_sizes(self, network):
        images = random_images(65, 97)
        with torch.no_grad():
            outputs = network.forward_with_auxiliary(images)
            sizes = [tuple(logits.shape[-2:]) for logits in outputs]
            # The images, padded to 96x128, at 1/8 and 1/16.
            assert sizes == [(65, 97), (12, 16), (6, 8)]
            assert torch.equal(outputs[0], network(images))


@pytest.mark.parametrize("width", [0, 3, -2])
def test_a_width_that_has_no_half_is_refused(width):
    with pytest.raises(ConfigError, match=f"width is {width}; expected an even number"):
        BiSeNetLite(20, width=width)


def test_narrower_networks_keep_their_width_in_their_options():
    network = BiSeNetLite(20, width=64)
    assert network.options() == {"width": 64, "auxiliary_heads": True}
    assert network.classifier.in_channels == 32
