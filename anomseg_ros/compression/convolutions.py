"""The convolutions of a network that inference uses."""

from __future__ import annotations

from torch import nn

from anomseg_ros.networks.network import SegmentationNetwork


def convolutions_of(network: SegmentationNetwork) -> dict[str, nn.Conv2d | nn.ConvTranspose2d]:
    """Return the convolutions by name, the classifier among them, without those of auxiliary heads."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and not name.startswith("auxiliary_heads.")
    }
