"""BiSeNet v1: published figures and the auxiliary heads."""

from __future__ import annotations

from network_contract import NetworkFigures


class TestBiSeNetV1(NetworkFigures):
    name = "bisenet_v1"
    num_classes = 19
    parameters = 13.3e6  # the CoinCheung implementation's; the paper's own, wider model has 49.0 M
    multiply_adds = 29.585e9
    logit_stride = 8
    auxiliary_sizes = ((12, 16), (6, 8))  # 1/8 and 1/16
