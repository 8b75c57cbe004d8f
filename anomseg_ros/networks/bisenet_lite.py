"""BiSeNet v1 on EfficientNet-Lite0, for two processor cores: the accurate detector that ships.

BiSeNet (Yu et al., ECCV 2018): a spatial path keeps detail, a context path with attention refinement at 1/16 and 1/32
and a global average gathers context, a feature fusion module joins them at 1/8 (Figures 2 and 3 there, and
bisenet_v1.py here). What differs, and why:

- EfficientNet-Lite0 (efficientnet_lite.py) is the context path's backbone in place of ResNet-18: fewer multiply-adds,
  weights of ImageNet that may ship, and no operator that int8 engines lack.
- The backbone's own features at 1/8 are the spatial path, as in STDC-Seg (Fan et al., CVPR 2021, arXiv 2104.13188,
  section 3.2), which found a path of its own redundant.
- A lateral connection from the backbone's features at 1/4 (Lin et al., CVPR 2017, Figure 3) follows the fusion, so
  that things a few pixels high, which an obstacle far away is, keep their outline.
- The heads are as narrow as they may be: `width` channels at 1/8, half of them at 1/4.

Parameters for inference with 20 classes: 3.98 M. Multiply-adds at 512x1024 with 20 classes: 7.85 G.

Images (N, 3, H, W) with H and W multiples of 32 give logits (N, C, H / 4, W / 4); the auxiliary ones of the fused
features (N, C, H / 8, W / 8) and of the context at 1/16 (N, C, H / 16, W / 16).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.base import AuxiliarySegmentationNetwork
from anomseg_ros.networks.efficientnet_lite import CHANNELS, EfficientNetLite0
from anomseg_ros.networks.layers import conv_norm, conv_norm_relu

WIDTH = 128
"""BiSeNet's width of the context path."""


class _ChannelAttention(nn.Module):
    """One weight in 0..1 per channel, from the global average: (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(features.mean((2, 3), keepdim=True)))


class _Refinement(nn.Module):
    """Attention refinement module (BiSeNet, Figure 2b): (N, C, H, W) -> (N, D, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = conv_norm_relu(in_channels, out_channels, 3)
        self.attention = _ChannelAttention(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.project(features)
        weights: Tensor = self.attention(projected)
        return projected * weights


class _Fusion(nn.Module):
    """Feature fusion module (BiSeNet, Figure 2c): (N, S, H, W) and (N, D, H, W) -> (N, D, H, W)."""

    def __init__(self, spatial_channels: int, width: int) -> None:
        super().__init__()
        self.project = conv_norm_relu(spatial_channels + width, width, 1)
        self.attention = _ChannelAttention(width)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        joined: Tensor = self.project(torch.cat((spatial, context), 1))
        weights: Tensor = self.attention(joined)
        return joined * weights + joined


class BiSeNetLite(AuxiliarySegmentationNetwork):
    """See the module. width: channels of context path and fusion, an even number; half of them are left at 1/4."""

    name = "bisenet_lite"
    stride = 32
    class_parameter = ("classifier.weight", 0)

    def __init__(self, num_classes: int, width: int = WIDTH, auxiliary_heads: bool = True) -> None:
        super().__init__(num_classes)
        if width < 2 or width % 2:
            raise ConfigError(f"width is {width!r}; expected an even number of channels, such as {WIDTH}")
        self.width, half = width, width // 2
        self.backbone = EfficientNetLite0()
        self.refine32 = _Refinement(CHANNELS[3], width)
        self.refine16 = _Refinement(CHANNELS[2], width)
        # No norm here: its statistics over one value per image would be those of the batch.
        self.global_context = nn.Conv2d(CHANNELS[3], width, 1)
        self.smooth16 = conv_norm_relu(width, width, 3)
        self.smooth8 = conv_norm_relu(width, width, 3)
        self.fusion = _Fusion(CHANNELS[1], width)
        self.narrow = conv_norm_relu(width, half, 3)
        self.lateral = conv_norm(CHANNELS[0], half, 1)
        self.smooth4 = conv_norm_relu(half, half, 3)
        self.classifier = nn.Conv2d(half, num_classes, 1)
        if auxiliary_heads:
            self.auxiliary_heads.extend(nn.Conv2d(channels, num_classes, 1) for channels in (half, width))

    def options(self) -> dict[str, Any]:
        return {"width": self.width, "auxiliary_heads": len(self.auxiliary_heads) > 0}

    def classify(self, images: Tensor) -> Tensor:
        return self._classify(images)[0]

    def classify_with_auxiliary(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, inner = self._classify(images)
        return (logits, *(head(features) for head, features in zip(self.auxiliary_heads, inner, strict=True)))

    def _classify(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        quarter, eighth, sixteenth, thirty_second = self.backbone(images)
        average = self.global_context(thirty_second.mean((2, 3), keepdim=True)).relu()
        context16 = self.smooth16(_double(self.refine32(thirty_second) + average))
        context8 = self.smooth8(_double(self.refine16(sixteenth) + context16))
        fused = self.narrow(self.fusion(eighth, context8))
        detailed = self.smooth4(F.relu(self.lateral(quarter) + _double(fused)))
        logits: Tensor = self.classifier(detailed)
        return logits, (fused, context16)


def _double(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="nearest")
