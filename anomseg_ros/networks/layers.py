"""Layers that several networks share."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Return convolution without bias ("conv"), batch normalisation ("norm") and, where given, "activation".

    Odd kernels are padded to keep the size (stride 1) or halve it (stride 2); even kernels are not padded.
    """
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(dilation * (size // 2) if size % 2 else 0 for size in sizes)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(
        in_channels, out_channels, sizes, stride, (padding[0], padding[1]), dilation, groups, bias=False
    )
    layers["norm"] = nn.BatchNorm2d(out_channels)
    if activation is not None:
        layers["activation"] = activation
    return nn.Sequential(layers)


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return `conv_norm` followed by a ReLU."""
    return conv_norm(in_channels, out_channels, kernel, stride=stride, groups=groups, activation=nn.ReLU())


def adaptive_average_pool(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Return F.adaptive_avg_pool2d's averages of features (N, C, H, W) over `size` windows, rows and columns.

    Where a size is no multiple, exported graphs hold that function as hundreds of gathers. Its windows repeat as often
    as the greatest common divisor of the two lengths says: here, each period is multiplied by one matrix.
    """
    height, width = features.shape[-2:]
    if height % size[0] == 0 and width % size[1] == 0:
        return F.adaptive_avg_pool2d(features, size)
    periods = math.gcd(height, size[0])
    down = _window_weights(height // periods, size[0] // periods, features)
    batch, channels = features.shape[:2]
    rows = (down @ features.reshape(batch, channels, periods, -1, width)).flatten(-3, -2)
    periods = math.gcd(width, size[1])
    across = _window_weights(width // periods, size[1] // periods, features)
    columns: Tensor = rows.reshape(batch, channels, size[0], periods, -1) @ across.T
    return columns.flatten(-2)


def _window_weights(length: int, count: int, like: Tensor) -> Tensor:
    """Return (count, length): the share of each value in each of `count` windows, of the type and device of `like`."""
    index = torch.arange(count, device=like.device).unsqueeze(1)
    begin, end = index * length // count, ((index + 1) * length + count - 1) // count
    place = torch.arange(length, device=like.device)
    inside = (place >= begin) & (place < end)
    return inside.to(like.dtype) / (end - begin)
