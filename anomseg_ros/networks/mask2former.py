"""The decoder of Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527): from four feature maps to queries and masks.

The pixel decoder refines the maps at 1/8, 1/16 and 1/32 by deformable attention and joins that at 1/4 to give the
masks' features. In the query decoder, each layer attends to one map, coarse maps first. A query sees only where the
mask that it predicted before the layer is positive, or everywhere if it is positive nowhere; inference does the same.
Structure, constants and initial values: mask2former/modeling of github.com/facebookresearch/Mask2Former. Tests hold
both parts equal to transformers' on shared weights.

Deviation: masks of attention are computed from features that are resized first, not from resized masks. Both steps are
linear, so only rounding differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.deformable_attention import DeformableAttention, as_maps, as_tokens, centres

LEVELS = 3
NORM_GROUPS = 32
SINE_PERIOD = 10_000.0


def sine_positions(channels: int, height: int, width: int, like: Tensor) -> Tensor:
    """Return (1, channels, height, width): sines and cosines of the row, then of the column (DETR's embedding).

    channels: a multiple of 4. Rows and columns count from 1 and are scaled to 2 pi.
    """
    half = channels // 2
    periods = SINE_PERIOD ** (np.arange(half) // 2 * 2 / half)

    def along(length: int) -> Tensor:
        """Return (half, length), which is a constant in graphs."""
        angles = np.arange(1, length + 1) / (length + 1e-6) * 2.0 * math.pi / periods[:, None]
        waves = np.where(np.arange(half)[:, None] % 2 == 0, np.sin(angles), np.cos(angles))
        return torch.tensor(waves.tolist(), dtype=torch.float32, device=like.device)

    down = along(height)[:, :, None].expand(-1, height, width)
    across = along(width)[:, None, :].expand(-1, height, width)
    return torch.cat((down, across))[None]


class _Attention(nn.Module):
    """Multi-head attention: (N, Q, D) queries, (N, S, D) keys and values -> (N, Q, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None = None) -> Tensor:
        """visible: bool (N, Q, S), whether a query sees a key."""
        split = [
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.query, queries), (self.key, keys), (self.value, values))
        ]
        mask = None if visible is None else visible[:, None]
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2], mask)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class _PixelLayer(nn.Module):
    """Deformable self-attention and a perceptron, normalised behind each: (N, S, D) -> (N, S, D)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attn = DeformableAttention(width, heads, LEVELS)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.norm2 = nn.LayerNorm(width)
        _xavier(self.mlp)

    def forward(self, tokens: Tensor, positions: Tensor, places: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        tokens = self.norm1(tokens + self.attn(tokens + positions, places, tokens, sizes))
        refined: Tensor = self.norm2(tokens + self.mlp(tokens))
        return refined


class PixelDecoder(nn.Module):
    """Maps (N, D_in, h, w) at 1/4, 1/8, 1/16 and 1/32 -> masks' features at 1/4, and maps at 1/32, 1/16 and 1/8."""

    def __init__(self, in_width: int, width: int, heads: int, layers: int, inner: int) -> None:
        """Build a pixel decoder.

        Args:
            in_width: channels of the given maps.
            width: channels of all maps inside and of the results.
            heads: of deformable attention.
            layers: number of layers of deformable attention.
            inner: channels inside the perceptrons.

        Raises:
            ConfigError: the width is no multiple of 32.
        """
        super().__init__()
        if width < NORM_GROUPS or width % NORM_GROUPS:
            raise ConfigError(f"decoder_width is {width!r}; expected a multiple of {NORM_GROUPS}")
        self.width = width
        self.inputs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_width, width, 1), nn.GroupNorm(NORM_GROUPS, width)) for _ in range(LEVELS)
        )
        self.level_embed = nn.Parameter(torch.randn(LEVELS, width))
        self.layers = nn.ModuleList(_PixelLayer(width, heads, inner) for _ in range(layers))
        self.lateral = nn.Sequential(nn.Conv2d(in_width, width, 1, bias=False), nn.GroupNorm(NORM_GROUPS, width))
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(NORM_GROUPS, width), nn.ReLU()
        )
        self.masks = nn.Conv2d(width, width, 1)
        for level in self.inputs:
            _xavier(level)
        for module in (self.lateral, self.smooth, self.masks):  # detectron2's c2_xavier_fill
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        coarse = [layer(one) for layer, one in zip(self.inputs, maps[:0:-1], strict=True)]
        sizes = [(one.shape[2], one.shape[3]) for one in coarse]
        positions = torch.cat(
            [
                sine_positions(self.width, *size, one).flatten(2).transpose(1, 2) + self.level_embed[level]
                for level, (one, size) in enumerate(zip(coarse, sizes, strict=True))
            ],
            1,
        )
        tokens, places = as_tokens(coarse), centres(sizes, maps[0])
        for layer in self.layers:
            tokens = layer(tokens, positions, places, sizes)
        refined = as_maps(tokens, sizes)
        size = (maps[0].shape[2], maps[0].shape[3])
        enlarged = F.interpolate(refined[-1], size, mode="bilinear", align_corners=False)
        return self.masks(self.smooth(self.lateral(maps[0]) + enlarged)), refined


class _QueryLayer(nn.Module):
    """Masked attention to a map, self-attention and a perceptron, normalised behind each: (N, Q, D) -> (N, Q, D)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.cross = _Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.own = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.norm3 = nn.LayerNorm(width)
        _xavier(self)

    def forward(self, queries: Tensor, places: Tensor, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """places: (Q, D), added to the queries. positions: (1, S, D), added to the keys. visible: bool (N, Q, S)."""
        queries = self.norm1(queries + self.cross(queries + places, tokens + positions, tokens, visible))
        own = queries + places
        queries = self.norm2(queries + self.own(own, own, queries))
        refined: Tensor = self.norm3(queries + self.mlp(queries))
        return refined


class QueryDecoder(nn.Module):
    """Masks' features and three maps -> queries (N, Q, D) before each layer and after the last, normalised."""

    def __init__(self, num_classes: int, width: int, heads: int, layers: int, inner: int, queries: int) -> None:
        """Build a query decoder.

        Args:
            num_classes: C, without "no object".
            width: D, channels of queries, maps and masks' features.
            heads: of attention.
            layers: number of layers with masked attention.
            inner: channels inside the perceptrons.
            queries: Q.

        Raises:
            ConfigError: the heads do not divide the width.
        """
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"decoder_heads is {heads!r}, which does not divide {width} channels; give a divisor")
        self.query = nn.Embedding(queries, width)
        self.query_place = nn.Embedding(queries, width)
        self.level_embed = nn.Embedding(LEVELS, width)
        self.layers = nn.ModuleList(_QueryLayer(width, heads, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.class_head = nn.Linear(width, num_classes + 1)

    def forward(self, mask_features: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        sizes = [(one.shape[2], one.shape[3]) for one in maps]
        tokens = [as_tokens([one]) + self.level_embed.weight[level] for level, one in enumerate(maps)]
        width = self.norm.normalized_shape[0]
        positions = [sine_positions(width, *size, mask_features).flatten(2).transpose(1, 2) for size in sizes]
        small = [F.interpolate(mask_features, size, mode="bilinear", align_corners=False).detach() for size in sizes]
        queries = self.query.weight.expand(len(mask_features), -1, -1)
        found = [self.norm(queries)]
        for index, layer in enumerate(self.layers):
            level = index % LEVELS
            visible = self._visible(found[-1], small[level])
            queries = layer(queries, self.query_place.weight, tokens[level], positions[level], visible)
            found.append(self.norm(queries))
        return found

    @torch.no_grad()
    def _visible(self, queries: Tensor, small: Tensor) -> Tensor:
        """Return bool (N, Q, h w): where a query's mask is positive, or everywhere if it is nowhere."""
        logits: Tensor = self.mask_head(queries) @ small.flatten(2)
        return (logits > 0) | (logits.amax(2, keepdim=True) <= 0)

    def decide(self, queries: Tensor, mask_features: Tensor) -> dict[str, Tensor]:
        """Return mask logits (N, Q, h, w) and class logits (N, Q, C + 1) of normalised queries (N, Q, D)."""
        masks = self.mask_head(queries) @ mask_features.flatten(2)
        masks = masks.unflatten(2, (mask_features.shape[2], mask_features.shape[3]))
        return {"mask_logits": masks, "class_logits": self.class_head(queries)}


def _xavier(module: nn.Module) -> None:
    """Draw weights as Glorot does; biases of convolutions are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
