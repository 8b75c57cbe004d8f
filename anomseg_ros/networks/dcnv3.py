"""DCNv3, the deformable convolution of InternImage (Wang et al., CVPR 2023, arXiv 2211.05778, section 3.1), in torch.

At each place p, each group g of channels sums 9 points of its projected features v with weights that sum to 1:

    y_g(p) = sum over k of m_gk(p) v_g(p + s (p_k + o_gk(p)))

Offsets o and weights m are linear in the place's features after a depthwise convolution. s is the offset scale. v is
sampled bilinearly and is 0 outside the frame. Order of the points: x changes slowly, k = 3 (x + 1) + (y + 1), and each
offset is (x, y). Layers, order and initial values: segmentation/ops_dcnv3/modules/dcnv3.py of
github.com/OpenGVLab/InternImage at 2071d4c.

Deviation: the points are sampled by grid sampling, which ONNX, TensorRT and torch have, in place of a CUDA kernel. A
graph for ONNX Runtime can have ONNX's DeformConv instead.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError

Network = TypeVar("Network", bound=nn.Module)

POINTS = 9
DEFORM_CONV_OPSET = 19
EPSILON = 1e-6
"""Of every layer normalisation of InternImage."""


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, EPSILON)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DCNv3(nn.Module):
    """(N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, channels: int, groups: int, offset_scale: float = 1.0) -> None:
        """groups: number of groups, each with offsets and weights of its own; a divisor of `channels`."""
        super().__init__()
        self.groups, self.offset_scale = groups, offset_scale
        self.as_operator = False
        """Whether graphs get ONNX's DeformConv in place of grid sampling; torch itself cannot run it."""
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels, EPSILON)
        self.offset = nn.Linear(channels, 2 * POINTS * groups)
        self.mask = nn.Linear(channels, POINTS * groups)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        for layer in (self.offset, self.mask):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        local = self.depthwise(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        local = F.gelu(self.norm(local))
        offsets = self.offset(local).unflatten(3, (self.groups, POINTS, 2))
        weights = self.mask(local).unflatten(3, (self.groups, POINTS)).softmax(-1)
        summed = deformable_convolution if self.as_operator else deformable_sum
        sampled = summed(self.input_proj(features), offsets, weights, self.offset_scale)
        projected: Tensor = self.output_proj(sampled)
        return projected


def deformable_sum(values: Tensor, offsets: Tensor, weights: Tensor, offset_scale: float) -> Tensor:
    """Return y of the module's formula, (N, H, W, C).

    Args:
        values: float (N, H, W, C).
        offsets: float (N, H, W, G, 9, 2), x and y in pixels before scaling.
        weights: float (N, H, W, G, 9).
        offset_scale: s.
    """
    batch, height, width, channels = values.shape
    groups = offsets.shape[3]
    # Grid sampling takes places from -1 to 1, the outer edges of the first and the last pixel.
    pixels = torch.tensor((2.0 / width, 2.0 / height), dtype=values.dtype, device=values.device)
    grid = (_places(height, width, offset_scale, values) + offset_scale * offsets.permute(0, 3, 1, 2, 4, 5)) * pixels
    grid = (grid - 1.0).reshape(batch * groups, height, width * POINTS, 2)
    maps = values.permute(0, 3, 1, 2).reshape(batch * groups, channels // groups, height, width)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    shares = weights.permute(0, 3, 1, 2, 4).reshape(batch * groups, 1, height, width, POINTS)
    summed = (sampled.reshape(batch * groups, -1, height, width, POINTS) * shares).sum(-1)
    return summed.reshape(batch, channels, height, width).permute(0, 2, 3, 1)


def deformable_convolution(values: Tensor, offsets: Tensor, weights: Tensor, offset_scale: float) -> Tensor:
    """Return the node DeformConv (opset 19) of an exported graph, which computes `deformable_sum` of its arguments.

    Its points are in rows, and its offsets (y, x) from the points of a plain 3x3 convolution.
    """
    channels, groups = values.shape[3], offsets.shape[3]
    steps = torch.arange(-1, 2, dtype=values.dtype, device=values.device)
    points = torch.stack((steps.repeat_interleave(3), steps.repeat(3)), -1)
    moved = offset_scale * offsets + (offset_scale - 1.0) * points

    def in_rows(tensor: Tensor) -> Tensor:
        """Return (N, channels, H, W) of (N, H, W, G, 9, …), the points in rows in place of columns."""
        columns = tensor.reshape(*tensor.shape[:4], 3, 3, -1)
        return columns.transpose(4, 5).flip(-1).flatten(3).permute(0, 3, 1, 2)

    by_rows, shares = in_rows(moved), in_rows(weights)
    features, ones = values.permute(0, 3, 1, 2), values.new_ones(channels, 1, 3, 3)
    made: Tensor = torch.onnx.ops.symbolic(
        "DeformConv",
        (features, ones, by_rows, values.new_zeros(channels), shares),
        {"group": channels, "kernel_shape": [3, 3], "offset_group": groups, "pads": [1, 1, 1, 1]},
        dtype=features.dtype,
        shape=features.shape,
        version=DEFORM_CONV_OPSET,
    )
    return made.permute(0, 2, 3, 1)


def with_deform_conv(network: Network) -> Network:
    """Return a copy of a network whose graph has DeformConv. Raises ConfigError for a network without DCNv3."""
    twin = copy.deepcopy(network)
    layers = [layer for layer in twin.modules() if isinstance(layer, DCNv3)]
    if not layers:
        raise ConfigError(
            "`deform_conv` needs a network of deformable convolutions, such as intern_image; leave it out"
        )
    for layer in layers:
        layer.as_operator = True
    return twin


def _places(height: int, width: int, offset_scale: float, like: Tensor) -> Tensor:
    """Return (H, W, 9, 2): x and y in pixels from the frame's corner of each point without its offset."""

    def numbers(start: int, end: int) -> Tensor:
        return torch.arange(start, end, dtype=like.dtype, device=like.device)

    rows, columns, steps = numbers(0, height) + 0.5, numbers(0, width) + 0.5, numbers(-1, 2) * offset_scale
    across = columns.reshape(1, -1, 1) + steps.repeat_interleave(3)
    down = rows.reshape(-1, 1, 1) + steps.repeat(3)
    return torch.stack((across.expand(height, -1, -1), down.expand(-1, width, -1)), -1)
