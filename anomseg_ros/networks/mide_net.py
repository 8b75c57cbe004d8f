"""MiDE-Net: a minimal encoder distilled from ENet (report and code of emariesanna/AnomalySegmentation-AMLProject).

A downsampler (1/2), three bottlenecks at 1/4, three at 1/8, a linear classifier, and no decoder. Layers, channels and
dilations: models/midenet.py of github.com/emariesanna/AnomalySegmentation-AMLProject.

Parameters with 20 classes: 0.063 M, which is what the published code and the published weights have; the report's
Table 5 says 0.072 M, which neither has. Multiply-adds at 512x1024 with 20 classes: 0.83 G; Table 5's 2.45 G is the
published order below (1.32 G more), plus 2 operations per value that a batch normalisation puts out and 4 per value
that the upsampling puts out.

Images (N, 3, H, W) with H and W multiples of 8 give logits (N, C, H / 8, W / 8).

Deviation: the published code upsamples the 128 feature channels eightfold and classifies every pixel. The classifier
is a 1x1 convolution with bias, and bilinear weights sum to 1, so classifying first and upsampling the logits is the
same function, at a 64th of the classifier's cost and a small fraction of the memory. `classify_after_upsampling`
keeps the published order for comparisons.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.layers import conv_norm, conv_norm_relu


class _Downsampler(nn.Module):
    """(N, 3, H, W) -> (N, 16, H / 2, W / 2): a strided convolution beside max-pooling, as in ENet's initial block."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.norm(torch.cat((self.conv(images), self.pool(images)), 1)))


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
    class_parameter = ("classifier.weight", 0)

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.initial = _Downsampler(3, 16)
        self.stage1 = nn.Sequential(_Bottleneck(16, 64, stride=2), _Bottleneck(64, 64), _Bottleneck(64, 64))
        self.stage2 = nn.Sequential(
            _Bottleneck(64, 128, stride=2), _Bottleneck(128, 128, dilation=2), _Bottleneck(128, 128, dilation=4)
        )
        self.classifier = nn.Conv2d(128, num_classes, 1)

    def classify(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self._encode(images))
        return logits

    def classify_after_upsampling(self, images: Tensor) -> Tensor:
        """Return logits (N, C, H, W) of normalised images (N, 3, H, W) in the published order: upsample, classify.

        H and W are multiples of 8. Equal to `forward` up to rounding; here to measure what `classify` saves.
        """
        features = F.interpolate(self._encode(images), scale_factor=8, mode="bilinear", align_corners=False)
        logits: Tensor = self.classifier(features)
        return logits

    def _encode(self, images: Tensor) -> Tensor:
        features: Tensor = self.stage2(self.stage1(self.initial(images)))
        return features
