"""PReLUs with one slope as leaky ReLUs."""

from __future__ import annotations

import torch
from torch import nn

from anomseg_ros.networks.leaky_relus import with_leaky_relus


def test_leaky_returns_an_equal_copy() -> None:
    network = nn.Sequential(nn.PReLU(init=0.1), nn.Sequential(nn.PReLU(3, init=0.2)))
    changed = with_leaky_relus(network)  # type: ignore[arg-type]
    assert [type(module) for module in network.modules()][1:] == [nn.PReLU, nn.Sequential, nn.PReLU]
    assert [type(module) for module in changed.modules()][1:] == [nn.LeakyReLU, nn.Sequential, nn.PReLU]
    values = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(changed(values), network(values))
