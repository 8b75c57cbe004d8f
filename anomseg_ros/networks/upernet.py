"""UPerNet's head for semantic segmentation (Xiao et al., ECCV 2018, arXiv 1807.10221, Figure 4).

Pyramid pooling (windows 1, 2, 3, 6; Zhao et al., CVPR 2017) on the last of four stages, a top-down path that adds each
stage to the next finer one, and a fusion of all four at the size of the first. Layers, bilinear resizing and the order
of concatenation are those of mmsegmentation, mmseg/models/decode_heads/uper_head.py and psp_head.py. Its FCN head
(fcn_head.py) is the auxiliary one, for training only.

Deviation: no dropout before the classifier's input, which is a matter of the training.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.networks.layers import adaptive_average_pool, conv_norm_relu

WIDTH, AUXILIARY_WIDTH = 512, 256
WINDOWS = (1, 2, 3, 6)


class UPerHead(nn.Module):
    """Four stages (N, C_i, H_i, W_i), the finest first -> the classifier's input, (N, width, H_1, W_1)."""

    def __init__(self, channels: Sequence[int], width: int = WIDTH) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(conv_norm_relu(channels[-1], width, 1) for _ in WINDOWS)
        self.context = conv_norm_relu(channels[-1] + len(WINDOWS) * width, width, 3)
        self.laterals = nn.ModuleList(conv_norm_relu(count, width, 1) for count in channels[:-1])
        self.smooth = nn.ModuleList(conv_norm_relu(width, width, 3) for _ in channels[:-1])
        self.fusion = conv_norm_relu(len(channels) * width, width, 3)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        levels = [lateral(stage) for lateral, stage in zip(self.laterals, stages[:-1], strict=True)]
        levels.append(self._with_context(stages[-1]))
        for index in range(len(levels) - 1, 0, -1):
            levels[index - 1] = levels[index - 1] + _resized(levels[index], levels[index - 1])
        smoothed = [layer(level) for layer, level in zip(self.smooth, levels[:-1], strict=True)]
        fused: Tensor = self.fusion(torch.cat([_resized(level, levels[0]) for level in (*smoothed, levels[-1])], 1))
        return fused

    def _with_context(self, stage: Tensor) -> Tensor:
        averages = (
            layer(adaptive_average_pool(stage, (window, window)))
            for window, layer in zip(WINDOWS, self.pooled, strict=True)
        )
        joined: Tensor = self.context(torch.cat([stage, *(_resized(average, stage) for average in averages)], 1))
        return joined


def auxiliary_head(channels: int, num_classes: int, width: int = AUXILIARY_WIDTH) -> nn.Sequential:
    """Return mmsegmentation's FCN head of one convolution."""
    return nn.Sequential(
        OrderedDict(smooth=conv_norm_relu(channels, width, 3), classifier=nn.Conv2d(width, num_classes, 1))
    )


def _resized(features: Tensor, like: Tensor) -> Tensor:
    if features.shape[2:] == like.shape[2:]:
        return features
    return F.interpolate(features, size=like.shape[2:], mode="bilinear", align_corners=False)
