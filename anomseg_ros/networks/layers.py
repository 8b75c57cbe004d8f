"""Layers that several networks share."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

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
    """Return a convolution without bias ("conv"), batch normalisation ("norm") and, if given, "activation".

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


class Downsampler(nn.Module):
    """(N, C, H, W) -> (N, D, H / 2, W / 2): a strided convolution beside max-pooling, as in ENet's initial block."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool, norm_epsilon: float = 1e-5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1, bias=bias)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(out_channels, eps=norm_epsilon)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.norm(torch.cat((self.conv(features), self.pool(features)), 1)))


Gate = Callable[[int], nn.Module]
"""Builds the layers of a channel attention from the number of channels."""


class _ChannelAttention(nn.Module):
    """One weight in 0..1 per channel, from the global average: (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self, channels: int, gate: Gate) -> None:
        super().__init__()
        self.layers = gate(channels)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(features.mean((2, 3), keepdim=True)))


class AttentionRefinement(nn.Module):
    """Attention refinement module (BiSeNet, Figure 2b): (N, C, H, W) -> (N, D, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, gate: Gate) -> None:
        super().__init__()
        self.project = conv_norm_relu(in_channels, out_channels, 3)
        self.attention = _ChannelAttention(out_channels, gate)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.project(features)
        weights: Tensor = self.attention(projected)
        return projected * weights


class FeatureFusion(nn.Module):
    """Feature fusion module (BiSeNet, Figure 2c): (N, S, H, W) and (N, C, H, W) -> (N, D, H, W), S + C inputs."""

    def __init__(self, in_channels: int, out_channels: int, gate: Gate) -> None:
        super().__init__()
        self.project = conv_norm_relu(in_channels, out_channels, 1)
        self.attention = _ChannelAttention(out_channels, gate)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        joined: Tensor = self.project(torch.cat((spatial, context), 1))
        weights: Tensor = self.attention(joined)
        return joined * weights + joined


def double(features: Tensor) -> Tensor:
    """Return features at twice their size, each value repeated."""
    return F.interpolate(features, scale_factor=2.0, mode="nearest")


def before_classifier(head: nn.Sequential, features: Tensor) -> Tensor:
    """Return the input of the last layer of a head, which is its classifier."""
    for layer in list(head)[:-1]:
        features = layer(features)
    return features


def adaptive_average_pool(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Return F.adaptive_avg_pool2d's averages of features (N, C, H, W) over `size` windows, rows and columns.

    Exported graphs hold that function as hundreds of gathers if the lengths are not multiples of the windows' number.
    The windows repeat with a period (from the greatest common divisor of both), and one matrix multiplies each period.
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
