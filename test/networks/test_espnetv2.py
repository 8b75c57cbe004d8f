"""ESPNetv2: the contract, its scales and the published weights."""

from __future__ import annotations

from network_contract import NetworkContract


class TestESPNetv2(NetworkContract):
    name = "espnetv2"
    num_classes = 20
    parameters = 0.79e6  # model zoo of EdgeNets, as are the multiply-adds
    parameters_tolerance = 0.005
    multiply_adds = 2.699e9
    logit_stride = 2
