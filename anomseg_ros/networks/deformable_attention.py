"""Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021, arXiv 2010.04159, equation 3).

A query at place p looks at K points of each of L maps, per head:

    y(p) = W_o concat over heads m of sum over l and k of a_mlk v_ml(p + o_mlk / size_l)

Weights a (a softmax over the L K points of a head) and offsets o, in pixels of a map, are linear in the query. v is the
projected map, sampled bilinearly and 0 outside. Layers and initial values are those of the authors, which Mask2Former
and ViT-Adapter use. ViT-Adapter's `ratio` makes v narrower than the query.

Deviation: the points are sampled by grid sampling, which ONNX, TensorRT and torch have, in place of a CUDA kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError

POINTS = 4
"""Points per head and map, in Mask2Former and ViT-Adapter."""
Sizes = Sequence[tuple[int, int]]
"""Height and width of each map of a sequence of tokens."""


class DeformableAttention(nn.Module):
    """(N, T, D) queries and (N, S, D) tokens of maps -> (N, T, D)."""

    def __init__(self, width: int, heads: int, levels: int, ratio: float = 1.0) -> None:
        """Build a layer.

        Args:
            width: D.
            heads: M, a divisor of the values' channels.
            levels: L, number of maps.
            ratio: channels of the values as a share of D.

        Raises:
            ConfigError: the heads do not divide the channels.
        """
        super().__init__()
        inner = int(width * ratio)
        if heads < 1 or inner < heads or inner % heads:
            raise ConfigError(f"{heads} heads of deformable attention do not divide {inner} channels; give a divisor")
        self.heads, self.levels = heads, levels
        self.offsets = nn.Linear(width, heads * levels * POINTS * 2)
        self.weights = nn.Linear(width, heads * levels * POINTS)
        self.values = nn.Linear(width, inner)
        self.proj = nn.Linear(inner, width)
        self.reset()

    def reset(self) -> None:
        """Set the initial weights: each head looks in a direction of its own, at 1 to 4 pixels, with equal weights."""
        angles = torch.arange(self.heads) * (2.0 * math.pi / self.heads)
        ways = torch.stack((angles.cos(), angles.sin()), -1)
        ways = ways / ways.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, POINTS + 1)[None, None, :, None] * ways[:, None, None]
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(steps.expand(-1, self.levels, -1, -1).flatten())
        for layer in (self.values, self.proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, places: Tensor, tokens: Tensor, sizes: Sizes) -> Tensor:
        """Return the attended queries.

        Args:
            queries: (N, T, D).
            places: (T, 2), x and y of each query as shares of the frame's width and height, see `centres`.
            tokens: (N, S, D), the maps one behind the other.
            sizes: height and width of each map.
        """
        points = (self.levels, POINTS)
        offsets = self.offsets(queries).unflatten(2, (self.heads, *points, 2))
        weights = self.weights(queries).unflatten(2, (self.heads, -1)).softmax(-1).unflatten(3, points)
        values_by_head = self.values(tokens).unflatten(2, (self.heads, -1))
        maps = by_level(values_by_head, sizes)
        total: Tensor | None = None
        for level, (values, (height, width)) in enumerate(zip(maps, sizes, strict=True)):
            pixel = torch.tensor((1.0 / width, 1.0 / height), dtype=places.dtype, device=places.device)
            grid: Tensor = places[None, :, None, None] + offsets[:, :, :, level] * pixel  # (N, T, M, K, 2)
            grid = (2.0 * grid - 1.0).transpose(1, 2).flatten(0, 1)
            by_head = values.permute(0, 2, 3, 1).reshape(-1, values.shape[3], height, width)
            sampled = F.grid_sample(by_head, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            shares = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
            summed = (sampled * shares).sum(-1)  # (N M, channels of a head, T)
            total = summed if total is None else total + summed
        assert total is not None
        joined = total.reshape(len(queries), -1, queries.shape[1]).transpose(1, 2)
        attended: Tensor = self.proj(joined)
        return attended


def centres(sizes: Sizes, like: Tensor) -> Tensor:
    """Return (T, 2): x and y of the centre of every pixel of the maps, as shares of the frame, on `like`'s device."""
    places = []
    for height, width in sizes:
        rows = (torch.arange(height, dtype=torch.float32, device=like.device) + 0.5) / height
        columns = (torch.arange(width, dtype=torch.float32, device=like.device) + 0.5) / width
        across, down = columns.expand(height, width), rows[:, None].expand(height, width)
        places.append(torch.stack((across, down), -1).flatten(0, 1))
    return torch.cat(places)


def as_tokens(maps: Sequence[Tensor]) -> Tensor:
    """Return maps (N, D, h, w) as tokens (N, S, D), one map behind the other."""
    return torch.cat([one.flatten(2).transpose(1, 2) for one in maps], 1)


def as_maps(tokens: Tensor, sizes: Sizes) -> list[Tensor]:
    """Return tokens (N, S, D) as maps (N, D, h, w) of these sizes."""
    parts = by_level(tokens, sizes)
    return [part.transpose(1, 2).reshape(len(part), -1, *size) for part, size in zip(parts, sizes, strict=True)]


def by_level(tokens: Tensor, sizes: Sizes) -> list[Tensor]:
    """Return the tokens (N, h w, ...) of each map, of tokens (N, S, ...) of maps of these sizes."""
    ends = list(accumulate(height * width for height, width in sizes))
    return [tokens[:, begin:end] for begin, end in pairwise([0, *ends])]
