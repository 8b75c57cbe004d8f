"""Layers that several networks share."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


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
