"""ESPNetv2: A Light-weight, Power Efficient, and General Purpose Convolutional Neural Network (Mehta et al., CVPR
2019, arXiv 1811.11431), for semantic segmentation.

An encoder of EESP units goes down to 1/16. A unit (Figure 1 of the paper) has a grouped 1x1 convolution, four depthwise
3x3 ones of growing dilation whose results are added up step by step, and a grouped 1x1 one. The averaged image is added
wherever the size halves (Figure 2). The decoder pools at five sizes and doubles the size three times, to 1/2.

Channels, units per level and dilations: Table 1 of the paper, and github.com/sacmehta/EdgeNets,
model/classification/espnetv2_config.py (scales, four branches, limits of the receptive field 13, 11, 9 and 7, which
nn_layers/eesp.py turns into dilations). The paper describes no decoder. This one is that of the checkpoints in the same
repository: model/segmentation/espnetv2.py with nn_layers/efficient_pyramid_pool.py and efficient_pt.py.

Parameters with 20 classes: 0.789 M at scale 2 and 0.234 M at scale 1; published (EdgeNets,
model/segmentation/model_zoo/README.md): 0.79 M and 0.23 M. Multiply-adds at 512x1024: 2.698 G and 1.085 G; published:
2.699 G and 1.087 G ("FLOPs").

Images (N, 3, H, W) with H and W multiples of 16 give logits (N, C, H / 2, W / 2).

Deviations:
- The published code enlarges the logits with aligned corners, which cannot be done in strips. Here corners are not
  aligned, as for every network of this package; the logits themselves are the same. With the published weights of scale
  2, mIoU on 26 frames of CamVid changes from 63.72 to 63.70 %, and AuPRC / FPR95 of max_logit on RoadAnomaly21
  (protocol seeds) from 25.43 / 61.22 to 25.46 / 61.23.
- The published decoder has min(classes // 2, 16) channels per pooled size. Here it always has 10, as for 20 classes, so
  that weights can be a start for other classes.
- The published units that halve the size hold slopes that they do not apply; here they have none.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.layers import adaptive_average_pool, conv_norm
from anomseg_ros.networks.network import SegmentationNetwork

WIDTHS: dict[float, tuple[int, int, int, int]] = {
    0.5: (16, 32, 64, 128),
    1.0: (32, 64, 128, 256),
    1.25: (32, 80, 160, 320),
    1.5: (32, 96, 192, 384),
    2.0: (32, 128, 256, 512),
}
"""Scale of the network -> channels of the encoder at 1/2, 1/4, 1/8 and 1/16."""

BRANCHES = 4
"""Depthwise convolutions of an EESP unit, and groups of its 1x1 convolutions."""
WIDE_DILATIONS, DEEP_DILATIONS = (1, 2, 3, 4), (1, 1, 2, 3)
"""Dilations of the branches: in units that halve the size and units at 1/8; in units at 1/16."""
UNITS_8, UNITS_16 = 3, 7
"""EESP units at 1/8 and 1/16."""
DECODER_WIDTHS = (64, 48, 32)
"""Channels of the decoder at 1/8, 1/4 and 1/2."""
PYRAMID_SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
"""Sizes of the pyramid pooling, as multiples of the features' own."""
PYRAMID_CHANNELS = 10
LEAST_SIZE = 5
"""Least rows and columns of each pooled size."""


def _norm_prelu(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(channels), activation=nn.PReLU(channels)))


def _conv_norm_prelu(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return conv_norm(in_channels, out_channels, kernel, stride=stride, groups=groups, activation=nn.PReLU(out_channels))


class _Eesp(nn.Module):
    """Extremely efficient spatial pyramid (Figure 1): (N, C, H, W) -> (N, D, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, dilations: Sequence[int], *, stride: int = 1) -> None:
        super().__init__()
        inner = out_channels // BRANCHES
        self.reduce = _conv_norm_prelu(in_channels, inner, 1, groups=BRANCHES)
        self.branches = nn.ModuleList(
            nn.Conv2d(inner, inner, 3, stride, dilation, dilation, groups=inner, bias=False) for dilation in dilations
        )
        self.joined = _norm_prelu(out_channels)
        self.expand = conv_norm(out_channels, out_channels, 1, groups=BRANCHES)

    def forward(self, features: Tensor) -> Tensor:
        reduced = self.reduce(features)
        sums = [self.branches[0](reduced)]
        for branch in self.branches[1:]:
            sums.append(sums[-1] + branch(reduced))
        expanded: Tensor = self.expand(self.joined(torch.cat(sums, 1)))
        return expanded


class _EespUnit(_Eesp):
    """An EESP with a shortcut: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, dilations: Sequence[int]) -> None:
        super().__init__(channels, channels, dilations)
        self.output_activation = nn.PReLU(channels)

    def forward(self, features: Tensor) -> Tensor:
        activated: Tensor = self.output_activation(super().forward(features) + features)
        return activated


class _Downsampler(nn.Module):
    """Strided EESP beside average pooling, plus the image: (N, C, H, W) -> (N, D, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.eesp = _Eesp(in_channels, out_channels - in_channels, WIDE_DILATIONS, stride=2)
        self.image = nn.Sequential(_conv_norm_prelu(3, 3, 3), conv_norm(3, out_channels, 1))
        self.activation = nn.PReLU(out_channels)

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        """image: (N, 3, H / 2, W / 2)."""
        halved = torch.cat((_halve(features), self.eesp(features)), 1)
        activated: Tensor = self.activation(halved + self.image(image))
        return activated


def _halve(features: Tensor) -> Tensor:
    return F.avg_pool2d(features, 3, stride=2, padding=1)


class _Encoder(nn.Module):
    """(N, 3, H, W) -> features at 1/16, 1/8, 1/4 and 1/2."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        at2, at4, at8, at16 = widths
        self.stem = _conv_norm_prelu(3, at2, 3, stride=2)
        self.down4 = _Downsampler(at2, at4)
        self.down8 = _Downsampler(at4, at8)
        self.stage8 = nn.Sequential(*(_EespUnit(at8, WIDE_DILATIONS) for _ in range(UNITS_8)))
        self.down16 = _Downsampler(at8, at16)
        self.stage16 = nn.Sequential(*(_EespUnit(at16, DEEP_DILATIONS) for _ in range(UNITS_16)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images4 = _halve(_halve(images))
        images8 = _halve(images4)
        features2 = self.stem(images)
        features4 = self.down4(features2, images4)
        features8 = self.stage8(self.down8(features4, images8))
        features16 = self.stage16(self.down16(features8, _halve(images8)))
        return features16, features8, features4, features2


class _PyramidPooling(nn.Module):
    """Efficient pyramid pooling: a depthwise convolution at each of five sizes; (N, C, H, W) -> (N, P, H, W)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        count, inner = len(PYRAMID_SCALES), PYRAMID_CHANNELS
        self.project = _conv_norm_prelu(in_channels, inner, 1)
        self.branches = nn.ModuleList(
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False) for _ in PYRAMID_SCALES
        )
        self.joined = _norm_prelu(count * inner)
        self.fuse = _conv_norm_prelu(count * inner, inner, 3, groups=inner)

    def forward(self, features: Tensor) -> Tensor:
        projected = self.project(features)
        size = projected.shape[-2:]
        pooled = [
            self._at_scale(projected, branch, scale, size)
            for branch, scale in zip(self.branches, PYRAMID_SCALES, strict=True)
        ]
        joined = self.joined(torch.cat(pooled, 1))
        # The grouped convolution needs the five results of one channel side by side.
        shuffled = joined.unflatten(1, (len(PYRAMID_SCALES), -1)).transpose(1, 2).flatten(1, 2)
        fused: Tensor = self.fuse(shuffled)
        return fused

    @staticmethod
    def _at_scale(features: Tensor, branch: nn.Module, scale: float, size: Sequence[int]) -> Tensor:
        height, width = size
        scaled = max(LEAST_SIZE, math.ceil(height * scale)), max(LEAST_SIZE, math.ceil(width * scale))
        if scale > 1.0:
            return adaptive_average_pool(branch(_enlarge(features, scaled)), (height, width))
        if scale < 1.0:
            return _enlarge(branch(adaptive_average_pool(features, scaled)), (height, width))
        convolved: Tensor = branch(features)
        return convolved


def _enlarge(features: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(features, size, mode="bilinear", align_corners=True)


class _Merge(nn.Module):
    """Adds the encoder's features, each channel weighted by the global average: two sizes alike -> (N, D, H, W)."""

    def __init__(self, encoder_channels: int, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(encoder_channels, channels, 1, bias=False)
        self.project = _conv_norm_prelu(encoder_channels, channels, 3, groups=math.gcd(encoder_channels, channels))
        self.joined = _norm_prelu(channels)

    def forward(self, features: Tensor, encoded: Tensor) -> Tensor:
        weights = torch.sigmoid(self.weigh(encoded.mean((2, 3), keepdim=True)))
        joined: Tensor = self.joined(features + self.project(encoded) * weights)
        return joined


class _Decoder(nn.Module):
    """Features at 1/16, 1/8, 1/4 and 1/2 -> (N, P, H / 2, W / 2)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        at2, at4, at8, at16 = widths
        self.pyramids = nn.ModuleList(_PyramidPooling(channels) for channels in (at16, *DECODER_WIDTHS))
        self.expansions = nn.ModuleList(_conv_norm_prelu(PYRAMID_CHANNELS, channels, 1) for channels in DECODER_WIDTHS)
        self.merges = nn.ModuleList(
            _Merge(encoded, channels) for encoded, channels in zip((at8, at4, at2), DECODER_WIDTHS, strict=True)
        )

    def forward(self, features16: Tensor, *finer: Tensor) -> Tensor:
        features = features16
        for pyramid, expand, merge, encoded in zip(self.pyramids, self.expansions, self.merges, finer, strict=False):
            height, width = encoded.shape[-2:]
            features = merge(_enlarge(expand(pyramid(features)), (height, width)), encoded)
        pooled: Tensor = self.pyramids[-1](features)
        return pooled


class ESPNetv2(SegmentationNetwork):
    """ESPNetv2 with the decoder of its Cityscapes checkpoints."""

    name = "espnetv2"
    stride = 16
    feature_names = ("encoder", "decoder")
    class_parameter = ("classifier.weight", 0)

    def __init__(self, num_classes: int, scale: float = 2.0) -> None:
        """scale: a key of WIDTHS. Raises ConfigError for any other."""
        super().__init__(num_classes)
        if scale not in WIDTHS:
            raise ConfigError(f"scale is {scale!r}; an ESPNetv2 has one of {', '.join(map(str, WIDTHS))}")
        self.scale = float(scale)
        self.encoder = _Encoder(WIDTHS[scale])
        self.decoder = _Decoder(WIDTHS[scale])
        self.classifier = nn.Conv2d(PYRAMID_CHANNELS, num_classes, 1)

    def options(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        encoded = self.encoder(images)
        return {"encoder": encoded[0], "decoder": self.decoder(*encoded)}
