"""BiSeNet V2: published figures and the auxiliary heads."""

from __future__ import annotations

from network_contract import NetworkFigures


class TestBiSeNetV2(NetworkFigures):
    name = "bisenet_v2"
    num_classes = 19
    parameters = 3.4e6  # the CoinCheung implementation's inference part; the paper gives no number
    multiply_adds = 24.603e9
    logit_stride = 8
    auxiliary_sizes = ((48, 64), (24, 32), (12, 16), (6, 8))  # twice the features' 1/4, 1/8, 1/16 and 1/32
