"""Vision transformers whose blocks run in groups, for adapters that read or change the tokens between groups.

Kinds: "vit" (Dosovitskiy et al. 2021, learnt position embeddings) and "beit" (beit.py). Both have a class token,
patches of 16 pixels and heads of 64 channels. Position embeddings and biases are resampled for other grids.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.networks.beit import CLASS_PAIRS, BeitBlock
from anomseg_ros.networks.vision_transformer import EPSILON, HEAD_WIDTH, Block, resampled_positions

PATCH_PX = 16
KINDS = ("vit", "beit")


class GroupedEncoder(nn.Module):
    """See the module."""

    def __init__(self, kind: str, width: int, depth: int, grid: Sequence[int], groups: int) -> None:
        """Build a fresh encoder.

        Args:
            kind: of KINDS.
            width: D, a multiple of 64.
            depth: number of blocks, a multiple of `groups`.
            grid: rows and columns of patches that positions are learnt for.
            groups: number of groups.

        Raises:
            ConfigError: an option is out of range.
        """
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(unknown_name("encoder", kind, KINDS))
        if width < HEAD_WIDTH or width % HEAD_WIDTH:
            raise ConfigError(f"width is {width!r}; expected a multiple of {HEAD_WIDTH}")
        if groups < 1 or depth < groups or depth % groups:
            raise ConfigError(f"groups is {groups!r}; expected a divisor of the {depth} blocks")
        self.kind, self.groups = kind, groups
        self.grid = int(grid[0]), int(grid[1])
        self.patch_embed = nn.Conv2d(3, width, PATCH_PX, stride=PATCH_PX)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        blocks: list[nn.Module]
        if kind == "vit":
            self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid[0] * self.grid[1], width))
            blocks = [Block(width, layer_scale=False) for _ in range(depth)]
        else:
            blocks = [BeitBlock(width, self.grid) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, EPSILON)

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens (N, 1 + h w, D) before the first block, of normalised images."""
        patches = self.patch_embed(images)
        token = self.cls_token.expand(len(images), -1, -1)
        if self.kind == "vit":
            positions = resampled_positions(self.pos_embed[:, 1:], self.grid, (patches.shape[2], patches.shape[3]))
            patches, token = patches + positions, token + self.pos_embed[:, :1]
        return torch.cat((token, patches.flatten(2).transpose(1, 2)), 1)

    def run_group(self, tokens: Tensor, group: int, grid: tuple[int, int]) -> Tensor:
        """Return the tokens after the blocks of a group; the last group's are normalised.

        tokens: (N, 1 + h w, D). grid: h and w.
        """
        length = len(self.blocks) // self.groups
        for block in self.blocks[group * length : (group + 1) * length]:
            tokens = block(tokens) if self.kind == "vit" else block(tokens, grid)
        if group == self.groups - 1:
            tokens = self.norm(tokens)
        return tokens


def resampled_weights(weights: dict[str, Tensor], prefix: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    """Resample the positions of an encoder's weights from one grid to another, in place. prefix: of its names."""
    for name in [name for name in weights if name.startswith(prefix)]:
        if name == f"{prefix}pos_embed":
            positions = resampled_positions(weights[name][:, 1:], old, new).flatten(2).transpose(1, 2)
            weights[name] = torch.cat((weights[name][:, :1], positions), 1)
        elif name.endswith("relative_position_bias_table"):
            size, wanted = (2 * old[0] - 1, 2 * old[1] - 1), (2 * new[0] - 1, 2 * new[1] - 1)
            learnt = weights[name][:-CLASS_PAIRS].T.reshape(1, -1, *size)
            table = nn.functional.interpolate(learnt, wanted, mode="bilinear", align_corners=False)
            weights[name] = torch.cat((table.flatten(2)[0].T, weights[name][-CLASS_PAIRS:]))
