"""Blocks of BEiT (Bao et al., ICLR 2022, arXiv 2106.08254): attention with a learnt bias per relative position.

Structure and constants: beit/modeling_finetune.py of github.com/microsoft/unilm, as in timm and transformers; a test
holds blocks equal to transformers'. Keys have no bias. Attribute names are those of vision_transformer.py.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.networks.vision_transformer import EPSILON, HEAD_WIDTH, LayerScale

CLASS_PAIRS = 3
"""Last rows of a table: class token to patches, patches to class token, class token to itself."""


class RelativeAttention(nn.Module):
    """Multi-head self-attention of a class token and a grid of patches: (N, 1 + h w, D) -> (N, 1 + h w, D)."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        """grid: rows and columns of patches that the biases are learnt for."""
        super().__init__()
        self.heads, self.grid = width // HEAD_WIDTH, grid
        self.qkv: nn.Module = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1) + CLASS_PAIRS, self.heads)
        )
        self.proj: nn.Module = nn.Linear(width, width)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        biases = torch.cat((self.q_bias, self.q_bias.new_zeros(len(self.q_bias)), self.v_bias))
        joint = self.qkv(tokens) + biases
        split = joint.unflatten(2, (3, self.heads, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        bias = self.position_bias(grid).to(joint.dtype)[None]
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2], bias)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected

    def position_bias(self, grid: tuple[int, int]) -> Tensor:
        """Return (heads, T, T) for a grid of any size; a table of another size is resampled bilinearly."""
        table: Tensor = self.relative_position_bias_table
        if grid != self.grid:
            rows, columns = 2 * self.grid[0] - 1, 2 * self.grid[1] - 1
            learnt = table[:-CLASS_PAIRS].T.reshape(1, -1, rows, columns)
            wanted = (2 * grid[0] - 1, 2 * grid[1] - 1)
            resampled = F.interpolate(learnt, wanted, mode="bilinear", align_corners=False)
            table = torch.cat((resampled.flatten(2)[0].T, table[-CLASS_PAIRS:]))
        index = relative_positions(grid, table.device)
        return table[index.flatten()].reshape(*index.shape, -1).permute(2, 0, 1)


def relative_positions(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Return int64 (T, T): the row of a table for each pair of tokens of a grid, the class token first."""
    height, width = grid
    rows = torch.arange(height, device=device)[:, None].expand(height, width).flatten()
    columns = torch.arange(width, device=device).expand(height, width).flatten()
    down, across = rows[:, None] - rows + height - 1, columns[:, None] - columns + width - 1
    patches = down * (2 * width - 1) + across
    further = (2 * height - 1) * (2 * width - 1)
    ones = torch.ones_like(patches)
    top = torch.cat((ones[:1, :1] * (further + 2), ones[:1] * further), 1)
    return torch.cat((top, torch.cat((ones[:, :1] * (further + 1), patches), 1)))


class BeitBlock(nn.Module):
    """A transformer block of BEiT, normalised before each part: (N, 1 + h w, D) -> (N, 1 + h w, D)."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = RelativeAttention(width, grid)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        layers = {"fc1": nn.Linear(width, 4 * width), "gelu": nn.GELU(), "fc2": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ls2 = LayerScale(width)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """grid: rows and columns of the patches."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), grid))
        mixed: Tensor = self.ls2(self.mlp(self.norm2(tokens)))
        return tokens + mixed
