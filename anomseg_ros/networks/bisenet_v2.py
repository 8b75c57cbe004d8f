"""BiSeNet V2: Bilateral Network with Guided Aggregation (Yu et al., IJCV 2021, arXiv 2004.02147).

A detail branch (1/8), a light semantic branch (1/32) and a bilateral guided aggregation of both. Layers, channels and
the expansion of 6 come from Table 1 of the paper, the stem, gather-and-expansion and context embedding blocks from
Figures 4 and 5, the aggregation from Figure 6. Sizes that the paper leaves open (1024 channels in the head; the booster
heads) come from github.com/CoinCheung/BiSeNet, lib/models/bisenetv2.py, whose checkpoints load.

Parameters for inference with 19 classes: 3.36 M. Multiply-adds at 512x1024 with 19 classes: 24.6 G, 9.7 G of them
in the head's 1024 channels; the paper counts 21.15 G with a head whose width it does not give.

Images (N, 3, H, W) with H and W multiples of 32 give logits (N, C, H / 8, W / 8). The four auxiliary logits, from the
semantic branch's 1/4, 1/8, 1/16 and 1/32 features, have twice their features' size.

Deviations of the published code from the paper, kept for its weights: a ReLU after the depthwise expansions and after
the aggregation's last convolution, and normalisation with ReLU in the context embedding's last one.
Training needs batches of two or more images, because the global average of one cannot be batch-normalised.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.networks.layers import before_classifier, conv_norm, conv_norm_relu
from anomseg_ros.networks.network import AuxiliarySegmentationNetwork

EXPANSION = 6
DROPOUT = 0.1


def _detail_branch() -> nn.Sequential:
    """(N, 3, H, W) -> (N, 128, H / 8, W / 8), Table 1's left half."""
    layers: list[nn.Module] = []
    in_channels = 3
    for channels, count in ((64, 2), (64, 3), (128, 3)):
        for index in range(count):
            layers.append(conv_norm_relu(in_channels, channels, 3, stride=1 if index else 2))
            in_channels = channels
    return nn.Sequential(*layers)


class _Stem(nn.Module):
    """(N, 3, H, W) -> (N, 16, H / 4, W / 4) by convolution beside max-pooling (Figure 4a)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_norm_relu(3, 16, 3, stride=2)
        self.left = nn.Sequential(conv_norm_relu(16, 8, 1), conv_norm_relu(8, 16, 3, stride=2))
        self.right = nn.MaxPool2d(3, stride=2, padding=1)
        self.fuse = conv_norm_relu(32, 16, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        fused: Tensor = self.fuse(torch.cat((self.left(features), self.right(features)), 1))
        return fused


class _GatherExpand(nn.Module):
    """Gather-and-expansion layer with stride 1 (Figure 5b): (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        expanded = channels * EXPANSION
        self.gather = conv_norm_relu(channels, channels, 3)
        self.expand = conv_norm_relu(channels, expanded, 3, groups=channels)
        self.project = conv_norm(expanded, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.project(self.expand(self.gather(features))) + features)


class _GatherExpandDown(nn.Module):
    """Gather-and-expansion layer with stride 2 (Figure 5c): (N, C, H, W) -> (N, D, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        expanded = in_channels * EXPANSION
        self.gather = conv_norm_relu(in_channels, in_channels, 3)
        self.expand = conv_norm(in_channels, expanded, 3, stride=2, groups=in_channels)
        self.depthwise = conv_norm_relu(expanded, expanded, 3, groups=expanded)
        self.project = conv_norm(expanded, out_channels, 1)
        self.shortcut_depthwise = conv_norm(in_channels, in_channels, 3, stride=2, groups=in_channels)
        self.shortcut_project = conv_norm(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        residual = self.project(self.depthwise(self.expand(self.gather(features))))
        return torch.relu(residual + self.shortcut_project(self.shortcut_depthwise(features)))


class _ContextEmbedding(nn.Module):
    """Adds the global average (Figure 4b): (N, 128, H, W) -> (N, 128, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.project = conv_norm_relu(channels, channels, 1)
        self.smooth = conv_norm_relu(channels, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        average = self.project(self.norm(features.mean((2, 3), keepdim=True)))
        embedded: Tensor = self.smooth(average + features)
        return embedded


class _SemanticBranch(nn.Module):
    """(N, 3, H, W) -> features of 16, 32, 64, 128 channels at 1/4, 1/8, 1/16, 1/32, and 128 with context at 1/32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Stem()
        self.stage3 = nn.Sequential(_GatherExpandDown(16, 32), _GatherExpand(32))
        self.stage4 = nn.Sequential(_GatherExpandDown(32, 64), _GatherExpand(64))
        self.stage5 = nn.Sequential(_GatherExpandDown(64, 128), *(_GatherExpand(128) for _ in range(3)))
        self.context = _ContextEmbedding(128)

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        features4 = self.stem(images)
        features8 = self.stage3(features4)
        features16 = self.stage4(features8)
        features32 = self.stage5(features16)
        return (features4, features8, features16, features32), self.context(features32)


class _Aggregation(nn.Module):
    """Bilateral guided aggregation (Figure 6): detail at 1/8 and semantics at 1/32 -> (N, 128, H / 8, W / 8)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.detail = self._depthwise_pair(channels)
        self.detail_down = conv_norm(channels, channels, 3, stride=2)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        self.semantic_up = conv_norm(channels, channels, 3)
        self.semantic = self._depthwise_pair(channels)
        self.smooth = conv_norm_relu(channels, channels, 3)

    @staticmethod
    def _depthwise_pair(channels: int) -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                depthwise=conv_norm(channels, channels, 3, groups=channels),
                pointwise=nn.Conv2d(channels, channels, 1, bias=False),
            )
        )

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        fine = self.detail(detail) * torch.sigmoid(self._enlarge(self.semantic_up(semantic)))
        coarse = self.pool(self.detail_down(detail)) * torch.sigmoid(self.semantic(semantic))
        aggregated: Tensor = self.smooth(fine + self._enlarge(coarse))
        return aggregated

    @staticmethod
    def _enlarge(features: Tensor) -> Tensor:
        return F.interpolate(features, scale_factor=4.0, mode="nearest")


def _head(in_channels: int, inner_channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            smooth=conv_norm_relu(in_channels, inner_channels, 3),
            dropout=nn.Dropout(DROPOUT),
            classifier=nn.Conv2d(inner_channels, num_classes, 1),
        )
    )


def _booster_head(in_channels: int, scale: int, num_classes: int) -> nn.Sequential:
    """A head for features at 1/scale; its logits come at 2/scale."""
    return nn.Sequential(
        OrderedDict(
            smooth=conv_norm_relu(in_channels, 128, 3),
            dropout=nn.Dropout(DROPOUT),
            upsample=nn.Upsample(scale_factor=2.0),
            expand=conv_norm_relu(128, scale * scale, 3),
            classifier=nn.Conv2d(scale * scale, num_classes, 1),
        )
    )


class BiSeNetV2(AuxiliarySegmentationNetwork):
    """BiSeNet V2 (not the Large variant); `auxiliary_heads=False` leaves out the heads for training."""

    name = "bisenet_v2"
    stride = 32
    feature_names = ("semantic4", "semantic8", "semantic16", "semantic32", "head")
    auxiliary_features = feature_names[:-1]
    class_parameter = ("head.classifier.weight", 0)

    def __init__(self, num_classes: int, auxiliary_heads: bool = True) -> None:
        super().__init__(num_classes)
        self.detail = _detail_branch()
        self.semantic = _SemanticBranch()
        self.aggregation = _Aggregation(128)
        self.head = _head(128, 1024, num_classes)
        if auxiliary_heads:
            places = ((16, 4), (32, 8), (64, 16), (128, 32))
            self.auxiliary_heads.extend(_booster_head(channels, scale, num_classes) for channels, scale in places)

    def options(self) -> dict[str, Any]:
        return {"auxiliary_heads": len(self.auxiliary_heads) > 0}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features, semantic = self.semantic(images)
        aggregated = self.aggregation(self.detail(images), semantic)
        named = dict(zip(self.auxiliary_features, features, strict=True))
        return {**named, "head": before_classifier(self.head, aggregated)}
