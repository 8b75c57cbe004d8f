"""The plain vision transformer of DINOv2 with registers, and resampling of its patches and positions.

An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929); blocks are normalised first and have
LayerScale (Touvron et al. 2021, arXiv 2103.17239), registers are those of Darcet et al. (2024, arXiv 2309.16588).
Structure and constants: timm's `vit_*_patch14_reg4_dinov2`, which github.com/tue-mps/eomt (models/vit.py) builds on.
Without LayerScale, blocks are those of the first vision transformers.
Attribute names are timm's, so that published keys need little renaming.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64
"""Channels of one attention head, in DINOv2 of every size."""
EPSILON = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention: (N, T, D) -> (N, T, D)."""

    def __init__(self, width: int, head_width: int = HEAD_WIDTH) -> None:
        """head_width: channels of one head, a divisor of `width`."""
        super().__init__()
        self.heads, self.head_width = width // head_width, head_width
        self.qkv: nn.Module = nn.Linear(width, 3 * width)
        self.proj: nn.Module = nn.Linear(width, width)

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """visible: bool (N, T, T), whether a token (row) sees another (column); None: every token sees all."""
        split = self.qkv(tokens).unflatten(2, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4)
        mask = None if visible is None else visible[:, None]
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2], mask)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class LayerScale(nn.Module):
    """One factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class Block(nn.Module):
    """A transformer block, normalised before each part: (N, T, D) -> (N, T, D)."""

    def __init__(self, width: int, layer_scale: bool = True, head_width: int = HEAD_WIDTH) -> None:
        """Build a block.

        Args:
            width: D, a multiple of `head_width`.
            layer_scale: whether each part has a factor per channel, which the first vision transformers have not.
            head_width: channels of one attention head.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, head_width)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, EPSILON)
        layers = {"fc1": nn.Linear(width, 4 * width), "gelu": nn.GELU(), "fc2": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """visible: see Attention."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), visible))
        mixed: Tensor = self.ls2(self.mlp(self.norm2(tokens)))
        return tokens + mixed


def resampled_positions(positions: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Return position embeddings (1, D, height, width) of a `wanted` grid, from (1, T, D) of another grid."""
    learnt = positions.transpose(1, 2).reshape(1, -1, *grid)
    if grid == wanted:
        return learnt
    return F.interpolate(learnt, wanted, mode="bicubic", align_corners=False)


def resampled_patches(weight: Tensor, size_px: int) -> Tensor:
    """Return a patch embedding (D, C, size_px, size_px) that gives equal embeddings for resized patches.

    weight: (D, C, h, h). The kernel is the pseudo-inverse of bicubic resizing applied to the kernel (FlexiViT, Beyer et
    al., CVPR 2023, equation 1), as timm resamples DINOv2's 14 x 14 patches to EoMT's 16 x 16.
    """
    old_px = weight.shape[-1]
    basis = torch.eye(old_px**2, dtype=torch.float64).reshape(-1, 1, old_px, old_px)
    resized = F.interpolate(basis, (size_px, size_px), mode="bicubic", antialias=True, align_corners=False)
    resize = resized.reshape(old_px**2, size_px**2)  # row: a patch's pixel, column: pixels of the resized patch
    inverse = torch.linalg.pinv(resize)
    flat = weight.to(torch.float64).reshape(*weight.shape[:2], -1) @ inverse.T
    resampled: Tensor = flat.reshape(*weight.shape[:2], size_px, size_px).to(weight.dtype)
    return resampled
