"""ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation (Paszke et al., arXiv 1606.02147).

An initial block (1/2), two encoder stages with max-pooling (1/4, 1/8), dilated and asymmetric bottlenecks at 1/8, and
a small decoder whose shortcuts are max-unpooled with the positions the encoder's pooling chose. Channel counts, the
schedule of dilations and the dropout rates are Table 1 and section 4 of the paper: 16, 64, 128, 128, 64, 16; dropout
0.01 in stage 1 and 0.1 after it; PReLU in the encoder, ReLU in the decoder.

The two widely used PyTorch implementations, `YASSOUALI` and `DAVIDTVS`, differ in details that the paper leaves open.
`ENetVariant` names these details. Weights of one variant compute nonsense in the other.

Parameters with 20 classes: 0.358 M (YASSOUALI), 0.352 M (DAVIDTVS); the paper's Table 3 says 0.37 M, Table 5 of the
MiDE-Net report 0.354 M. Multiply-adds at 512x1024 with 20 classes: 4.14 G (YASSOUALI), 4.06 G (DAVIDTVS); that Table 5
says 4.27 G, which counts 2 more operations per output value of a batch normalisation.

Images (N, 3, H, W) with H and W multiples of 8 give logits (N, C, H, W): the last layer is a learnt (transposed)
convolution, so classifying at a lower resolution would not be equal.

Deviation: pooling positions are four masks, one per position in the 2x2 window ("phase"), not flat indices. So the
exported graph holds comparisons and selections, not ONNX's MaxUnpool or ScatterND, which TensorRT and quantizers do not
support. The results are equal bit for bit, ties included.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.networks.layers import conv_norm
from anomseg_ros.networks.network import SegmentationNetwork

REDUCTION = 4
"""Every bottleneck works on a quarter of its input's channels (section 4)."""

CONTEXT_SCHEDULE: tuple[int | None, ...] = (1, 2, None, 4, 1, 8, None, 16)
"""Stages 2 and 3 of Table 1: dilation of the 3x3 convolution, None for the asymmetric 5x1 and 1x5 pair."""

Phases = tuple[Tensor, Tensor, Tensor, Tensor]
"""Boolean masks (N, C, H / 2, W / 2): the maximum of a 2x2 window came from its (0,0), (0,1), (1,0), (1,1) pixel."""


@dataclass(frozen=True)
class ENetVariant:
    """Structural details in which published ENets differ; defaults are those of yassouali's code."""

    initial_pool_size: int = 2
    """Window of the initial block's max-pooling (stride 2): 2 as in the paper, or 3 with padding 1."""
    initial_pool_first: bool = True  # the pooled image comes before the convolution's 13 channels
    initial_bias: bool = True
    initial_slopes: int = 16  # PReLU slopes of the initial block: 16 is one per channel, 1 is one for all
    asymmetric_rows_first: bool = False
    """The 5x1 (vertical) convolution of an asymmetric bottleneck precedes the 1x5 one."""
    asymmetric_bias: bool = True
    upsampling_kernel: int = 3
    """Kernel of the transposed convolutions inside the decoder's upsampling bottlenecks: 3 or 2."""
    upsampling_expansion_relu: bool = True
    """A ReLU follows the last 1x1 convolution of an upsampling bottleneck, before the shortcut is added."""


YASSOUALI = ENetVariant()
"""github.com/yassouali/pytorch-segmentation, models/enet.py."""

DAVIDTVS = ENetVariant(
    initial_pool_size=3,
    initial_pool_first=False,
    initial_bias=False,
    initial_slopes=1,
    asymmetric_rows_first=True,
    asymmetric_bias=False,
    upsampling_kernel=2,
    upsampling_expansion_relu=False,
)
"""github.com/davidtvs/PyTorch-ENet, models/enet.py, with its default encoder_relu=False and decoder_relu=True."""


def max_pool_with_phases(features: Tensor, by_comparison: bool = False) -> tuple[Tensor, Phases]:
    """Return the 2x2, stride-2 maximum of features (N, C, H, W) and where in its window each maximum came from.

    On ties the first pixel in row-major order is taken, as torch.nn.functional.max_pool2d does.

    by_comparison: compare the four pixels with each other, not with the maximum. The results are equal. In float16 an
    engine may round the maximum unlike the pixels, which leaves windows without a maximum (5 % of other labels). But
    OpenVINO 2026.4 computes wrong results from this form in int8, or cannot compile it.
    """
    pooled = F.max_pool2d(features, 2)
    a, b = features[..., 0::2, 0::2], features[..., 0::2, 1::2]
    c, d = features[..., 1::2, 0::2], features[..., 1::2, 1::2]
    if by_comparison:
        upper = torch.maximum(a, b) >= torch.maximum(c, d)
        first, third = upper & (a >= b), ~upper & (c >= d)
        return pooled, (first, upper & ~first, third, ~(upper | third))
    first = a == pooled
    second = (b == pooled) & ~first
    upper = first | second
    third = (c == pooled) & ~upper
    return pooled, (first, second, third, ~(upper | third))


def max_unpool_from_phases(values: Tensor, phases: Phases) -> Tensor:
    """Return (N, C, 2 H, 2 W): each of values (N, C, H, W) at its phase of a 2x2 window, zeros at the other three.

    This formulation is the fastest in ONNX Runtime on a CPU. Slower ones: concatenated channels with one transposition,
    nearest upsampling with a mask, six-dimensional broadcasting.
    """
    batch, channels, height, width = values.shape
    zero = values.new_zeros(())
    first, second, third, fourth = (torch.where(phase, values, zero) for phase in phases)
    upper = torch.stack((first, second), -1).reshape(batch, channels, height, 1, 2 * width)
    lower = torch.stack((third, fourth), -1).reshape(batch, channels, height, 1, 2 * width)
    return torch.cat((upper, lower), 3).reshape(batch, channels, 2 * height, 2 * width)


def _activation(relu: bool) -> nn.Module:
    return nn.ReLU() if relu else nn.PReLU()


class _InitialBlock(nn.Module):
    """(N, 3, H, W) -> (N, 16, H / 2, W / 2): a strided convolution beside max-pooling (Figure 2a)."""

    def __init__(self, variant: ENetVariant) -> None:
        super().__init__()
        self.pool_first = variant.initial_pool_first
        self.conv = nn.Conv2d(3, 13, 3, stride=2, padding=1, bias=variant.initial_bias)
        self.pool = nn.MaxPool2d(variant.initial_pool_size, stride=2, padding=variant.initial_pool_size // 3)
        self.norm = nn.BatchNorm2d(16)
        self.activation = nn.PReLU(variant.initial_slopes)

    def forward(self, images: Tensor) -> Tensor:
        convolved, pooled = self.conv(images), self.pool(images)
        features = (pooled, convolved) if self.pool_first else (convolved, pooled)
        activated: Tensor = self.activation(self.norm(torch.cat(features, 1)))
        return activated


class _Bottleneck(nn.Module):
    """The branch that all bottlenecks share (Figure 2b): reduce 1x1, spatial convolution, expand 1x1, dropout."""

    def __init__(self, reduce: nn.Module, spatial: nn.Module, expand: nn.Module, dropout: float, relu: bool) -> None:
        super().__init__()
        self.reduce = reduce
        self.spatial = spatial
        self.expand = expand
        self.dropout = nn.Dropout2d(dropout)
        self.output_activation = _activation(relu)

    def _add(self, features: Tensor, shortcut: Tensor) -> Tensor:
        residual = self.dropout(self.expand(self.spatial(self.reduce(features))))
        activated: Tensor = self.output_activation(shortcut + residual)
        return activated


class _RegularBottleneck(_Bottleneck):
    """(N, C, H, W) -> (N, C, H, W), with a 3x3 convolution of the given dilation or, for None, an asymmetric pair."""

    def __init__(
        self, channels: int, dilation: int | None, variant: ENetVariant, *, dropout: float = 0.1, relu: bool = False
    ) -> None:
        inner = channels // REDUCTION
        spatial = (
            _asymmetric(inner, variant, relu)
            if dilation is None
            else conv_norm(inner, inner, 3, dilation=dilation, activation=_activation(relu))
        )
        super().__init__(
            conv_norm(channels, inner, 1, activation=_activation(relu)),
            spatial,
            conv_norm(inner, channels, 1, activation=_activation(relu)),
            dropout,
            relu,
        )

    def forward(self, features: Tensor) -> Tensor:
        return self._add(features, features)


def _asymmetric(channels: int, variant: ENetVariant, relu: bool) -> nn.Sequential:
    kernels = [(5, 1), (1, 5)] if variant.asymmetric_rows_first else [(1, 5), (5, 1)]
    first, second = (
        nn.Conv2d(channels, channels, size, padding=(size[0] // 2, size[1] // 2), bias=variant.asymmetric_bias)
        for size in kernels
    )
    return nn.Sequential(
        OrderedDict(
            first_conv=first,
            first_norm=nn.BatchNorm2d(channels),
            first_activation=_activation(relu),
            conv=second,
            norm=nn.BatchNorm2d(channels),
            activation=_activation(relu),
        )
    )


class _DownsamplingBottleneck(_Bottleneck):
    """(N, C, H, W) -> (N, D, H / 2, W / 2) and the phases of its max-pooling; the shortcut's new channels are 0."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        inner = in_channels // REDUCTION
        super().__init__(
            conv_norm(in_channels, inner, 2, stride=2, activation=nn.PReLU()),
            conv_norm(inner, inner, 3, activation=nn.PReLU()),
            conv_norm(inner, out_channels, 1, activation=nn.PReLU()),
            dropout,
            relu=False,
        )
        self.by_comparison = False  # see max_pool_with_phases

    def forward(self, features: Tensor) -> tuple[Tensor, Phases]:
        pooled, phases = max_pool_with_phases(features, self.by_comparison)
        # A pruned network has another width than the paper's. Quantization replaces the weight, so its shape cannot be
        # asked.
        width: int = self.expand.get_submodule("conv").out_channels  # type: ignore[assignment]
        shortcut = F.pad(pooled, (0, 0, 0, 0, 0, width - pooled.shape[1]))
        return self._add(features, shortcut), phases


class _UpsamplingBottleneck(_Bottleneck):
    """(N, C, H, W) and the phases of (N, D, H, W) -> (N, D, 2 H, 2 W)."""

    def __init__(self, in_channels: int, out_channels: int, variant: ENetVariant) -> None:
        inner, kernel = in_channels // REDUCTION, variant.upsampling_kernel
        transposed = nn.ConvTranspose2d(
            inner, inner, kernel, stride=2, padding=kernel // 3, output_padding=kernel - 2, bias=False
        )
        super().__init__(
            conv_norm(in_channels, inner, 1, activation=nn.ReLU()),
            nn.Sequential(OrderedDict(conv=transposed, norm=nn.BatchNorm2d(inner), activation=nn.ReLU())),
            conv_norm(inner, out_channels, 1, activation=nn.ReLU() if variant.upsampling_expansion_relu else None),
            dropout=0.1,
            relu=True,
        )
        self.shortcut = conv_norm(in_channels, out_channels, 1)

    def forward(self, features: Tensor, phases: Phases) -> Tensor:
        return self._add(features, max_unpool_from_phases(self.shortcut(features), phases))


class ENet(SegmentationNetwork):
    """ENet; `variant` is an ENetVariant or a mapping with its fields."""

    name = "enet"
    stride = 8
    feature_names = ("encoder", "decoder")
    max_unpooling = True
    class_parameter = ("classifier.weight", 1)

    def __init__(self, num_classes: int, variant: ENetVariant | Mapping[str, Any] = YASSOUALI) -> None:
        super().__init__(num_classes)
        self.variant = variant if isinstance(variant, ENetVariant) else ENetVariant(**variant)
        self.initial = _InitialBlock(self.variant)
        self.down1 = _DownsamplingBottleneck(16, 64, dropout=0.01)
        self.stage1 = nn.Sequential(*(_RegularBottleneck(64, 1, self.variant, dropout=0.01) for _ in range(4)))
        self.down2 = _DownsamplingBottleneck(64, 128, dropout=0.1)
        self.stage2 = nn.Sequential(*(_RegularBottleneck(128, rate, self.variant) for rate in CONTEXT_SCHEDULE))
        self.stage3 = nn.Sequential(*(_RegularBottleneck(128, rate, self.variant) for rate in CONTEXT_SCHEDULE))
        self.up4 = _UpsamplingBottleneck(128, 64, self.variant)
        self.stage4 = nn.Sequential(*(_RegularBottleneck(64, 1, self.variant, relu=True) for _ in range(2)))
        self.up5 = _UpsamplingBottleneck(64, 16, self.variant)
        self.stage5 = nn.Sequential(_RegularBottleneck(16, 1, self.variant, relu=True))
        self.classifier = nn.ConvTranspose2d(16, num_classes, 3, stride=2, padding=1, output_padding=1, bias=False)

    def options(self) -> dict[str, Any]:
        return {"variant": asdict(self.variant)}

    def for_gpu(self) -> ENet:
        network = copy.deepcopy(self)
        network.down1.by_comparison = network.down2.by_comparison = True
        return network

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features, phases1 = self.down1(self.initial(images))
        features, phases2 = self.down2(self.stage1(features))
        encoded = self.stage3(self.stage2(features))
        features = self.stage4(self.up4(encoded, phases2))
        return {"encoder": encoded, "decoder": self.stage5(self.up5(features, phases1))}
