"""BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation (Yu et al., ECCV 2018), with ResNet-18.

A spatial path of three strided convolutions keeps detail at 1/8. A context path (ResNet-18 to 1/32, attention
refinement at 1/16 and 1/32, a global average) gathers context. A feature fusion module joins both. Source: Figures 2
and 3 of the paper. Layer sizes, the first 7x7 convolution, the channels of the heads and the nearest upsampling in the
context path are those of github.com/CoinCheung/BiSeNet, lib/models/bisenetv1.py and resnet.py, whose checkpoints load.

Parameters for inference with 19 classes: 13.3 M (the paper counts 49.0 M for its own model).
Multiply-adds at 512x1024 with 19 classes: 29.6 G; the paper has no figure for this size.

Images (N, 3, H, W) with H and W multiples of 32 give logits (N, C, H / 8, W / 8). The auxiliary logits of the 1/8 and
1/16 features are (N, C, H / 8, W / 8) and (N, C, H / 16, W / 16).

Deviation of the published code from the paper, kept for its weights: the fusion's attention is one convolution with
normalisation, not two layers with a ReLU between them.
Training needs batches of two or more images, because the global average of one cannot be batch-normalised.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from anomseg_ros.networks.layers import (
    AttentionRefinement,
    FeatureFusion,
    before_classifier,
    conv_norm,
    conv_norm_relu,
    double,
)
from anomseg_ros.networks.network import AuxiliarySegmentationNetwork


class _BasicBlock(nn.Module):
    """ResNet's basic block (He et al., CVPR 2016): (N, C, H, W) -> (N, D, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm_relu(in_channels, out_channels, 3, stride=stride)
        self.second = conv_norm(out_channels, out_channels, 3)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = conv_norm(in_channels, out_channels, 1, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.shortcut(features) + self.second(self.first(features)))


class _ResNet18(nn.Module):
    """(N, 3, H, W) -> features of 256 channels at 1/16 and 512 at 1/32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm_relu(3, 64, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(_BasicBlock(64, 64, 1), _BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(_BasicBlock(64, 128, 2), _BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(_BasicBlock(128, 256, 2), _BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(_BasicBlock(256, 512, 2), _BasicBlock(512, 512, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features16 = self.layer3(self.layer2(self.layer1(self.pool(self.stem(images)))))
        return features16, self.layer4(features16)


def _gate(channels: int) -> nn.Module:
    return conv_norm(channels, channels, 1)


class _ContextPath(nn.Module):
    """(N, 3, H, W) -> (N, 128, H / 8, W / 8) and (N, 128, H / 16, W / 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _ResNet18()
        self.refine16 = AttentionRefinement(256, 128, _gate)
        self.refine32 = AttentionRefinement(512, 128, _gate)
        self.smooth16 = conv_norm_relu(128, 128, 3)
        self.smooth32 = conv_norm_relu(128, 128, 3)
        self.global_context = conv_norm_relu(512, 128, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features16, features32 = self.backbone(images)
        average = self.global_context(features32.mean((2, 3), keepdim=True))
        context16 = self.smooth32(double(self.refine32(features32) + average))
        context8 = self.smooth16(double(self.refine16(features16) + context16))
        return context8, context16


def _head(in_channels: int, inner_channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            smooth=conv_norm_relu(in_channels, inner_channels, 3),
            classifier=nn.Conv2d(inner_channels, num_classes, 1),
        )
    )


class BiSeNetV1(AuxiliarySegmentationNetwork):
    """BiSeNet with a ResNet-18 context path; `auxiliary_heads=False` leaves out the heads for training."""

    name = "bisenet_v1"
    stride = 32
    feature_names = ("context16", "context8", "head")
    auxiliary_features = ("context8", "context16")
    class_parameter = ("head.classifier.weight", 0)

    def __init__(self, num_classes: int, auxiliary_heads: bool = True) -> None:
        super().__init__(num_classes)
        self.spatial_path = nn.Sequential(
            conv_norm_relu(3, 64, 7, stride=2),
            conv_norm_relu(64, 64, 3, stride=2),
            conv_norm_relu(64, 64, 3, stride=2),
            conv_norm_relu(64, 128, 1),
        )
        self.context_path = _ContextPath()
        self.fusion = FeatureFusion(256, 256, _gate)
        self.head = _head(256, 256, num_classes)
        if auxiliary_heads:
            self.auxiliary_heads.extend(_head(128, 64, num_classes) for _ in range(2))

    def options(self) -> dict[str, Any]:
        return {"auxiliary_heads": len(self.auxiliary_heads) > 0}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        context8, context16 = self.context_path(images)
        fused = self.fusion(self.spatial_path(images), context8)
        return {"context16": context16, "context8": context8, "head": before_classifier(self.head, fused)}
