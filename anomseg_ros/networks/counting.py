"""Parameters and multiply-adds of a network, counted alike for all networks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from anomseg_ros.networks.network import SegmentationNetwork

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def count_parameters(network: SegmentationNetwork) -> int:
    """Return the number of learnt values that inference uses, without auxiliary heads."""
    whole, heads = (sum(p.numel() for p in module.parameters()) for module in (network, network.auxiliary_heads))
    return whole - heads


def count_multiply_adds(network: SegmentationNetwork, height_px: int, width_px: int) -> int:
    """Return the multiply-adds of `forward` for one image of the given size.

    A convolution uses each weight once per output position; padding counts like pixels. A transposed convolution uses
    each weight once per input position, a linear layer once per row. Biases, normalisation, activations, pooling,
    resizing and elementwise products are not counted. One multiply-add is two floating-point operations; many papers
    call it one.

    fvcore's figures ("FLOPs") are higher: it adds 2 per output value of a batch normalisation and 4 per output value of
    bilinear upsampling.
    """
    # The meta device computes shapes only; the copy leaves the network unchanged.
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

    for module in twin.modules():
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED_CONVOLUTIONS)):
            module.register_forward_hook(count)
    with torch.no_grad():
        twin(torch.empty(1, 3, height_px, width_px, device="meta"))
    return sum(counts)
