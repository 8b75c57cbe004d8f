"""EoMT: Your ViT is Secretly an Image Segmentation Model (Kerssies et al., CVPR 2025, arXiv 2503.19108).

A plain vision transformer with patches of 16 pixels. Learnt queries join the tokens before the last blocks. Each query
gives a class and a mask; masks are inner products with the patches' features at a quarter of the size. There is no
decoder. Structure and constants: models/eomt.py and models/scale_block.py of github.com/tue-mps/eomt, whose transformer
is timm's DINOv2 with four registers.

Parameters with 19 classes and 100 queries for images of 640x640: 23,893,652 (S), 93,498,644 (B), 316,476,436 (L), as in
the published networks. The default network is a small one of 1.1 M, for tests and first trainings.

Images (N, 3, H, W) with H and W multiples of 16 give Q masks at H / 4, W / 4 and the classes of the queries.

Deviations: masked attention is left out, because the authors' training anneals it away and inference does not use it.
Position embeddings are resampled, so that images may have any shape. The factors of LayerScale start at 1, because no
pretrained weights have to be protected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.networks.prediction import MaskPrediction

PATCH_PX = 16
HEAD_WIDTH = 64
"""Channels of one attention head, in DINOv2 of every size."""
REGISTERS = 4
UPSCALINGS = 2
"""How often the patches' grid is doubled before the masks are computed."""
EPSILON = 1e-6


class _Attention(nn.Module):
    """Multi-head self-attention: (N, T, D) -> (N, T, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        split = self.qkv(tokens).unflatten(2, (3, self.heads, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2])
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class _Block(nn.Module):
    """A transformer block, normalised before each part: (N, T, D) -> (N, T, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = _Attention(width)
        self.ls1 = _LayerScale(width)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.ls2 = _LayerScale(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        mixed: Tensor = self.ls2(self.mlp(self.norm2(tokens)))
        return tokens + mixed


class _ScaleBlock(nn.Module):
    """(N, D, H, W) -> (N, D, 2 H, 2 W) by a transposed convolution and a depthwise one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, features: Tensor) -> Tensor:
        features = self.conv2(F.gelu(self.conv1(features)))
        normalised: Tensor = self.norm(features.permute(0, 2, 3, 1))
        return normalised.permute(0, 3, 1, 2)


class EoMT(SegmentationNetwork):
    """See the module."""

    name = "eomt"
    stride = PATCH_PX
    feature_names = ("encoder", "upscaled")
    kind = MaskPrediction
    class_parameter = ("class_head.weight", 0)
    no_object_outputs = 1

    def __init__(
        self,
        num_classes: int,
        width: int = 128,
        depth: int = 4,
        query_blocks: int = 2,
        queries: int = 30,
        grid: Sequence[int] = (16, 32),
    ) -> None:
        """Build a fresh network.

        Args:
            num_classes: number of classes without "no object".
            width: channels of a token, a multiple of 64.
            depth: number of transformer blocks.
            query_blocks: number of last blocks that see the queries.
            queries: number of masks.
            grid: rows and columns of patches that the position embeddings are learnt for.

        Raises:
            ConfigError: the width or a number of blocks is out of range.
        """
        super().__init__(num_classes)
        if width < HEAD_WIDTH or width % HEAD_WIDTH:
            raise ConfigError(f"width is {width!r}; expected a multiple of {HEAD_WIDTH}")
        if not 1 <= query_blocks <= depth:
            raise ConfigError(f"query_blocks is {query_blocks!r}; expected 1 to {depth}, the number of blocks")
        self._options = {"width": width, "depth": depth, "query_blocks": query_blocks, "queries": queries}
        self.grid = int(grid[0]), int(grid[1])
        self.query_blocks = query_blocks
        self.patch_embed = nn.Conv2d(3, width, PATCH_PX, stride=PATCH_PX)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, self.grid[0] * self.grid[1], width))
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.reg_token = nn.Parameter(0.02 * torch.randn(1, REGISTERS, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, EPSILON)
        self.q = nn.Embedding(queries, width)
        self.class_head = nn.Linear(width, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.upscale = nn.Sequential(*(_ScaleBlock(width) for _ in range(UPSCALINGS)))

    def options(self) -> dict[str, Any]:
        return {**self._options, "grid": list(self.grid)}

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        patches = self.patch_embed(images)
        patches = patches + self._positions(patches.shape[2], patches.shape[3])
        further = torch.cat((self.cls_token, self.reg_token), 1).expand(images.shape[0], -1, -1)
        tokens = torch.cat((further, patches.flatten(2).transpose(1, 2)), 1)
        for index, block in enumerate(self.blocks):
            if index == len(self.blocks) - self.query_blocks:
                tokens = torch.cat((self.q.weight.expand(images.shape[0], -1, -1), tokens), 1)
            tokens = block(tokens)
        tokens = self.norm(tokens)
        queries = self.q.num_embeddings
        encoded = tokens[:, queries + 1 + REGISTERS :].transpose(1, 2).reshape(patches.shape)
        return {"queries": tokens[:, :queries], "encoder": encoded, "upscaled": self.upscale(encoded)}

    def decide(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        queries, upscaled = features["queries"], features["upscaled"]
        masks = self.mask_head(queries) @ upscaled.flatten(2)
        masks = masks.reshape(*masks.shape[:2], *upscaled.shape[2:])
        return {"mask_logits": masks, "class_logits": self.class_head(queries)}

    def _positions(self, height: int, width: int) -> Tensor:
        """Return the position embeddings (1, D, height, width) of a grid of patches."""
        learnt = self.pos_embed.transpose(1, 2).reshape(1, -1, *self.grid)
        return F.interpolate(learnt, (height, width), mode="bicubic", align_corners=False)
