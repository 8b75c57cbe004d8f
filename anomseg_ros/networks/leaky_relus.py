"""PReLUs with one slope as leaky ReLUs, which engines for processors fuse with the preceding convolution."""

from __future__ import annotations

import copy

from torch import nn

from anomseg_ros.networks.network import SegmentationNetwork


def with_leaky_relus(network: SegmentationNetwork) -> SegmentationNetwork:
    """Return a copy of the network with PReLUs of one slope replaced by leaky ReLUs of that slope."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.PReLU) and child.num_parameters == 1:
                setattr(module, name, nn.LeakyReLU(float(child.weight.detach())))
    return network
