"""Parameters and multiply-adds of a network, counted the same way for every network of the package."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from anomseg_ros.networks.base import SegmentationNetwork

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def count_parameters(network: SegmentationNetwork, *, auxiliary: bool = False) -> int:
    """Return the number of learnt values that inference uses; `auxiliary` adds the heads that only training uses."""
    count = sum(parameter.numel() for parameter in network.parameters())
    if not auxiliary:
        count -= sum(parameter.numel() for parameter in network.auxiliary_heads.parameters())
    return count


def count_multiply_adds(network: SegmentationNetwork, height_px: int, width_px: int) -> int:
    """Return the multiply-adds of `forward` for one image of the given size.

    The convention: a convolution uses each of its weights once per output position (padding counts like pixels, a
    dilated kernel has as many weights as a dense one, a grouped one has fewer), a transposed convolution once per
    input position, a linear layer once per row. Biases, normalisation, activations, pooling, resizing and elementwise
    products are not counted. One multiply-add is two floating-point operations; many papers call it one.

    Figures made with fvcore are higher: it adds 2 per value that a batch normalisation puts out and 4 per value that
    bilinear upsampling puts out, and calls the sum FLOPs.
    """
    # Shapes are all that matters, and the meta device computes nothing else; the copy leaves the network as it is.
    twin = copy.deepcopy(network).to("meta").eval()
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weights = module.get_parameter("weight").numel()
        if isinstance(module, nn.Linear):
            uses = output.numel() // output.shape[-1]
        else:
            features = inputs[0] if isinstance(module, _TRANSPOSED_CONVOLUTIONS) else output
            uses = features.numel() // features.shape[1]
        counts.append(weights * uses)

    counted: tuple[type[Any], ...] = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED_CONVOLUTIONS)
    for module in twin.modules():
        if isinstance(module, counted):
            module.register_forward_hook(count)
    with torch.no_grad():
        twin(torch.empty(1, 3, height_px, width_px, device="meta"))
    return sum(counts)
