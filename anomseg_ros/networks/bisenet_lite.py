"""BiSeNet v1 on EfficientNet-Lite0, for two processor cores: the accurate detector that ships.

BiSeNet (Yu et al., ECCV 2018, Figures 2 and 3; bisenet_v1.py): a spatial path keeps detail. A context path with
attention refinement at 1/16 and 1/32 and a global average gathers context. A feature fusion module joins both at 1/8.
Differences, and why:

- EfficientNet-Lite0 (efficientnet_lite.py) replaces ResNet-18 in the context path: it needs fewer multiply-adds, its
  ImageNet weights may be shipped, and int8 engines have all of its operators.
- The backbone's own features at 1/8 are the spatial path. STDC-Seg (Fan et al., CVPR 2021, arXiv 2104.13188, section
  3.2) found a separate path redundant.
- A lateral connection from the backbone's features at 1/4 (Lin et al., CVPR 2017, Figure 3) follows the fusion. It
  keeps the outline of things that are a few pixels high, such as distant obstacles.
- The heads are narrow: `width` channels at 1/8, half of them at 1/4.

Parameters for inference with 20 classes: 3.98 M. Multiply-adds at 512x1024 with 20 classes: 7.85 G.

Images (N, 3, H, W) with H and W multiples of 32 give logits (N, C, H / 4, W / 4). The auxiliary logits are
(N, C, H / 8, W / 8) for the fused features and (N, C, H / 16, W / 16) for the context at 1/16.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.efficientnet_lite import CHANNELS, EfficientNetLite0
from anomseg_ros.networks.layers import AttentionRefinement, FeatureFusion, conv_norm, conv_norm_relu, double
from anomseg_ros.networks.network import AuxiliarySegmentationNetwork

WIDTH = 128
"""BiSeNet's width of the context path."""


def _gate(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 1)


class BiSeNetLite(AuxiliarySegmentationNetwork):
    """See the module. width: channels of context path and fusion, an even number; there are half as many at 1/4."""

    name = "bisenet_lite"
    stride = 32
    feature_names = ("context", "fusion", "decoder")
    auxiliary_features = ("fusion", "context")
    class_parameter = ("classifier.weight", 0)

    def __init__(self, num_classes: int, width: int = WIDTH, auxiliary_heads: bool = True) -> None:
        super().__init__(num_classes)
        if width < 2 or width % 2:
            raise ConfigError(f"width is {width!r}; expected an even number of channels, such as {WIDTH}")
        self.width, half = width, width // 2
        self.backbone = EfficientNetLite0()
        self.refine32 = AttentionRefinement(CHANNELS[3], width, _gate)
        self.refine16 = AttentionRefinement(CHANNELS[2], width, _gate)
        # Without a norm: its statistics of one value per image would be those of the batch.
        self.global_context = nn.Conv2d(CHANNELS[3], width, 1)
        self.smooth16 = conv_norm_relu(width, width, 3)
        self.smooth8 = conv_norm_relu(width, width, 3)
        self.fusion = FeatureFusion(CHANNELS[1] + width, width, _gate)
        self.narrow = conv_norm_relu(width, half, 3)
        self.lateral = conv_norm(CHANNELS[0], half, 1)
        self.smooth4 = conv_norm_relu(half, half, 3)
        self.classifier = nn.Conv2d(half, num_classes, 1)
        if auxiliary_heads:
            self.auxiliary_heads.extend(nn.Conv2d(channels, num_classes, 1) for channels in (half, width))

    def options(self) -> dict[str, Any]:
        return {"width": self.width, "auxiliary_heads": len(self.auxiliary_heads) > 0}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        quarter, eighth, sixteenth, thirty_second = self.backbone(images)
        average = self.global_context(thirty_second.mean((2, 3), keepdim=True)).relu()
        context16 = self.smooth16(double(self.refine32(thirty_second) + average))
        context8 = self.smooth8(double(self.refine16(sixteenth) + context16))
        fused = self.narrow(self.fusion(eighth, context8))
        detailed = self.smooth4(F.relu(self.lateral(quarter) + double(fused)))
        return {"context": context16, "fusion": fused, "decoder": detailed}
