"""InternImage (Wang et al., CVPR 2023, arXiv 2211.05778) with UPerNet's head: the segmentor of the training-free paper.

Nayal et al., "Training-free out-of-distribution segmentation with foundation models", use its B and L. A stem and three
downsamplings give four stages, at 1/4 to 1/32. Each block is a transformer block whose attention is DCNv3 (dcnv3.py):
with the normalisation behind (S to XL) or before it (T), scaled per channel. Structure and constants:
segmentation/mmseg_custom/models/backbones/intern_image.py and configs/cityscapes of github.com/OpenGVLab/InternImage at
2071d4c.

Parameters with 150 classes and the auxiliary head, as the authors count: 59.08 M (T), 79.87 M (S), 128.39 M (B),
255.60 M (L), 367.73 M (XL). The default network is a small one of 0.5 M, for tests.

Images (N, 3, H, W) with H and W multiples of 32 give logits (N, C, H / 4, W / 4). `stage3`, at 1/16, is the map that
the paper clusters.

Deviation: no stochastic depth, which is a matter of the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.dcnv3 import EPSILON, ChannelNorm, DCNv3
from anomseg_ros.networks.network import AuxiliarySegmentationNetwork
from anomseg_ros.networks.upernet import UPerHead, auxiliary_head

STAGES = 4
SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "T": {"channels": 64, "depths": (4, 4, 18, 4), "groups": (4, 8, 16, 32), "post_norm": False},
        "S": {"channels": 80, "depths": (4, 4, 21, 4), "groups": (5, 10, 20, 40)},
        "B": {"channels": 112, "depths": (4, 4, 21, 4), "groups": (7, 14, 28, 56)},
        "L": {"channels": 160, "depths": (5, 5, 22, 5), "groups": (10, 20, 40, 80), "offset_scale": 2.0},
        "XL": {"channels": 192, "depths": (5, 5, 24, 5), "groups": (12, 24, 48, 96), "offset_scale": 2.0},
    }
)
"""Arguments of the published sizes; their head has 512 channels, their auxiliary head 256."""
PUBLISHED_HEAD: Mapping[str, Any] = MappingProxyType({"head_width": 512, "auxiliary_width": 256})


class _Stem(nn.Module):
    """(N, 3, H, W) -> (N, C, H / 4, W / 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels // 2, 3, stride=2, padding=1)
        self.norm1 = ChannelNorm(channels // 2)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = ChannelNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        halved = F.gelu(self.norm1(self.conv1(images)))
        quartered: Tensor = self.norm2(self.conv2(halved))
        return quartered


class _Downsample(nn.Module):
    """(N, C, H, W) -> (N, 2 C, H / 2, W / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = ChannelNorm(2 * channels)

    def forward(self, features: Tensor) -> Tensor:
        halved: Tensor = self.norm(self.conv(features))
        return halved


class _Block(nn.Module):
    """(N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, channels: int, groups: int, offset_scale: float, post_norm: bool) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(channels, EPSILON)
        self.dcn = DCNv3(channels, groups, offset_scale)
        self.norm2 = nn.LayerNorm(channels, EPSILON)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.gamma1 = nn.Parameter(torch.ones(channels))
        self.gamma2 = nn.Parameter(torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.gamma1 * self._normalised(self.norm1, self.dcn, features)
        return features + self.gamma2 * self._normalised(self.norm2, self.mlp, features)

    def _normalised(self, norm: nn.Module, layer: nn.Module, features: Tensor) -> Tensor:
        result: Tensor = norm(layer(features)) if self.post_norm else layer(norm(features))
        return result


class _Level(nn.Module):
    """The blocks of one stage: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, depth: int, groups: int, offset_scale: float, post_norm: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(channels, groups, offset_scale, post_norm) for _ in range(depth))
        self.norm = nn.Identity() if post_norm else nn.LayerNorm(channels, EPSILON)

    def forward(self, features: Tensor) -> Tensor:
        features = features.permute(0, 2, 3, 1)
        for block in self.blocks:
            features = block(features)
        normalised: Tensor = self.norm(features)
        return normalised.permute(0, 3, 1, 2)


class InternImage(AuxiliarySegmentationNetwork):
    """See the module."""

    name = "intern_image"
    stride = 32
    feature_names = ("stage3", "head")
    auxiliary_features = ("stage3",)
    class_parameter = ("classifier.weight", 0)

    def __init__(
        self,
        num_classes: int,
        channels: int = 16,
        depths: Sequence[int] = (1, 1, 2, 1),
        groups: Sequence[int] = (1, 2, 4, 8),
        offset_scale: float = 1.0,
        post_norm: bool = True,
        head_width: int = 32,
        auxiliary_width: int = 16,
    ) -> None:
        """Build a fresh network; SIZES and PUBLISHED_HEAD have the arguments of the published ones.

        Args:
            num_classes: number of classes.
            channels: channels of the first stage, an even number; each further stage has twice as many.
            depths: blocks of each stage.
            groups: groups of channels in each stage, divisors of its channels.
            offset_scale: scale of DCNv3's points and offsets.
            post_norm: normalise behind DCNv3 and the perceptron, not before them.
            head_width: channels of UPerNet's head.
            auxiliary_width: channels of the auxiliary head; 0 leaves it out.

        Raises:
            ConfigError: a size is out of range.
        """
        super().__init__(num_classes)
        _check_sizes(channels, depths, groups)
        self._options: dict[str, Any] = {"channels": channels, "depths": list(depths), "groups": list(groups)}
        self._options |= {"offset_scale": offset_scale, "post_norm": post_norm}
        self._options |= {"head_width": head_width, "auxiliary_width": auxiliary_width}
        widths = [channels * 2**stage for stage in range(STAGES)]
        self.stem = _Stem(channels)
        sizes = zip(widths, depths, groups, strict=True)
        self.levels = nn.ModuleList(_Level(*size, offset_scale, post_norm) for size in sizes)
        self.downsamples = nn.ModuleList(_Downsample(width) for width in widths[:-1])
        for name, layer in self.levels.named_modules():
            if ".mlp." in name and isinstance(layer, nn.Linear):  # DCNv3 has initial values of its own
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.head = UPerHead(widths, head_width)
        self.classifier = nn.Conv2d(head_width, num_classes, 1)
        if auxiliary_width:
            self.auxiliary_heads.append(auxiliary_head(widths[2], num_classes, auxiliary_width))

    def options(self) -> dict[str, Any]:
        return self._options if self.auxiliary_heads else {**self._options, "auxiliary_width": 0}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features, stages = self.stem(images), []
        for index, level in enumerate(self.levels):
            stages.append(level(features))
            if index < STAGES - 1:
                features = self.downsamples[index](stages[-1])
        return {"stage3": stages[2], "head": self.head(stages)}


def _check_sizes(channels: int, depths: Sequence[int], groups: Sequence[int]) -> None:
    if channels < 2 or channels % 2:
        raise ConfigError(f"channels is {channels!r}; expected an even number, such as {SIZES['B']['channels']}")
    for name, values in (("depths", depths), ("groups", groups)):
        if len(values) != STAGES or min(values) < 1:
            raise ConfigError(f"{name} is {tuple(values)!r}; expected {STAGES} numbers from 1, one per stage")
    for stage, count in enumerate(groups):
        width = channels * 2**stage
        if width % count:
            raise ConfigError(f"groups is {tuple(groups)!r}; {count} does not divide the {width} channels of its stage")
