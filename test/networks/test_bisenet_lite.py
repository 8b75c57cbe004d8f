"""BiSeNet v1 on EfficientNet-Lite0: published figures, the auxiliary heads and the width."""

from __future__ import annotations

import pytest
from network_contract import NetworkFigures

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.bisenet_lite import BiSeNetLite


class TestBiSeNetLite(NetworkFigures):
    name = "bisenet_lite"
    num_classes = 20
    parameters = 3.979e6  # not published; EfficientNet-Lite0 without its head has 3.37 M
    multiply_adds = 7.845e9
    logit_stride = 4
    auxiliary_sizes = ((12, 16), (6, 8))  # 1/8 and 1/16


@pytest.mark.parametrize("width", [0, 3, -2])
def test_odd_or_non_positive_width_is_refused(width):
    with pytest.raises(ConfigError, match=f"width is {width}; expected an even number"):
        BiSeNetLite(20, width=width)


def test_options_store_the_width():
    network = BiSeNetLite(20, width=64)
    assert network.options() == {"width": 64, "auxiliary_heads": True}
    assert network.classifier.in_channels == 32
