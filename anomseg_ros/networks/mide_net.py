"""MiDE-Net: a minimal encoder distilled from ENet (report and code of emariesanna/AnomalySegmentation-AMLProject).

A downsampler (1/2), three bottlenecks at 1/4, three at 1/8, a linear classifier, and no decoder. Layers, channels and
dilations: models/midenet.py of github.com/emariesanna/AnomalySegmentation-AMLProject.

Parameters with 20 classes: 0.063 M, as in the published code and weights; the report's Table 5 says 0.072 M.
Multiply-adds at 512x1024 with 20 classes: 0.83 G. Table 5 says 2.45 G: it counts the published order below (1.32 G
more), 2 operations per output value of a batch normalisation and 4 per output value of the upsampling.

Images (N, 3, H, W) with H and W multiples of 8 give logits (N, C, H / 8, W / 8).

Deviation: the published code upsamples the 128 feature channels eightfold and classifies every pixel. The classifier
is a 1x1 convolution with bias, and bilinear weights sum to 1. So classifying first and upsampling the logits computes
the same, with a 64th of the classifier's cost and a small fraction of the memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomseg_ros.networks.layers import Downsampler, conv_norm, conv_norm_relu
from anomseg_ros.networks.network import SegmentationNetwork


class _Bottleneck(nn.Module):
    """(N, C, H, W) -> (N, D, H / stride, W / stride), through C / 4 channels."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        inner = in_channels // 4
        self.reduce = conv_norm_relu(in_channels, inner, 1)
        self.spatial = conv_norm(inner, inner, 3, stride=stride, dilation=dilation, activation=nn.ReLU())
        self.expand = conv_norm(inner, out_channels, 1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        residual = self.expand(self.spatial(self.reduce(features)))
        return torch.relu(residual + self.shortcut(features))


class MiDENet(SegmentationNetwork):
    """MiDE-Net."""

    name = "mide_net"
    stride = 8
    feature_names = ("encoder",)
    class_parameter = ("classifier.weight", 0)

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.initial = Downsampler(3, 16, bias=False)
        self.stage1 = nn.Sequential(_Bottleneck(16, 64, stride=2), _Bottleneck(64, 64), _Bottleneck(64, 64))
        self.stage2 = nn.Sequential(
            _Bottleneck(64, 128, stride=2), _Bottleneck(128, 128, dilation=2), _Bottleneck(128, 128, dilation=4)
        )
        self.classifier = nn.Conv2d(128, num_classes, 1)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"encoder": self.stage2(self.stage1(self.initial(images)))}
