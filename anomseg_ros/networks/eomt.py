"""EoMT: Your ViT is Secretly an Image Segmentation Model (Kerssies et al., CVPR 2025, arXiv 2503.19108).

A plain vision transformer with patches of 16 pixels. Learnt queries join the tokens before the last blocks. Each query
gives a class and a mask; masks are inner products with the patches' features at a quarter of the size. There is no
decoder. Structure and constants: models/eomt.py and models/scale_block.py of github.com/tue-mps/eomt.

SIZES has the authors' sizes S, B and L. With 19 classes they have 23,893,652, 93,498,644 and 316,476,436 parameters for
images of 640x640, as the published networks have. The default network is a small one of 1.1 M, for tests and first
trainings.

Images (N, 3, H, W) with H and W multiples of 16 give Q masks at H / 4, W / 4 and the classes of the queries.

This file and not transformers' EomtForUniversalSegmentation is what trains, runs and is exported: that one takes square
images of one size and cannot be exported as it is (tue-mps/eomt, issue 28). Tests hold both equal on shared weights,
with masked attention and without, and on rectangular images.

Deviations: position embeddings are resampled, so that images may have any shape. With `tiles` "short_side", images are
cut into the square crops of the paper's semantic inference instead. Without pretrained weights, the factors of
LayerScale start at 1 and positions have a variance of 1, as in transformers. `cosine_scale` replaces the linear
classifier by cosines (CosineHead).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.networks.cosine_head import CosineHead
from anomseg_ros.networks.network import SegmentationNetwork, StagedMaskNetwork
from anomseg_ros.networks.prediction import MaskPrediction, Prediction, TiledMaskPrediction
from anomseg_ros.networks.vision_transformer import EPSILON, HEAD_WIDTH, Block, resampled_positions

PATCH_PX = 16
REGISTERS = 4
UPSCALINGS = 2
"""How often the patches' grid is doubled before the masks are computed."""
TILES = ("none", "short_side")

SIZES: Mapping[str, Mapping[str, int]] = {
    "small": {"width": 384, "depth": 12, "query_blocks": 3, "queries": 100},
    "base": {"width": 768, "depth": 12, "query_blocks": 3, "queries": 100},
    "large": {"width": 1024, "depth": 24, "query_blocks": 4, "queries": 100},
}
"""The authors' sizes as constructor arguments; 100 queries are those of semantic segmentation."""


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


def _check(width: int, depth: int, query_blocks: int, tiles: str) -> None:
    if width < HEAD_WIDTH or width % HEAD_WIDTH:
        raise ConfigError(f"width is {width!r}; expected a multiple of {HEAD_WIDTH}")
    if not 1 <= query_blocks <= depth:
        raise ConfigError(f"query_blocks is {query_blocks!r}; expected 1 to {depth}, the number of blocks")
    if tiles not in TILES:
        raise ConfigError(unknown_name("way of tiles", tiles, TILES))


class EoMT(StagedMaskNetwork):
    """See the module."""

    name = "eomt"
    stride = PATCH_PX
    feature_names = ("encoder", "upscaled")
    kind = MaskPrediction
    class_parameter = ("class_head.weight", 0)
    encoder_parts = ("patch_embed.", "pos_embed", "cls_token", "reg_token", "blocks.", "norm.")

    def __init__(
        self,
        num_classes: int,
        width: int = 128,
        depth: int = 4,
        query_blocks: int = 2,
        queries: int = 30,
        grid: Sequence[int] = (16, 32),
        cosine_scale: float | None = None,
        tiles: str = "none",
        released_known: int = 0,
    ) -> None:
        """Build a fresh network.

        Args:
            num_classes: number of classes without "no object".
            width: channels of a token, a multiple of 64.
            depth: number of transformer blocks.
            query_blocks: number of last blocks that see the queries.
            queries: number of masks.
            grid: rows and columns of patches that the position embeddings are learnt for.
            cosine_scale: s of a CosineHead; None for a linear classifier.
            tiles: "none" for whole images, "short_side" for square crops along the width.
            released_known: of the predictions, see MaskPrediction; 0 for the inference of the paper.

        Raises:
            ConfigError: an option is out of range.
        """
        super().__init__(num_classes)
        _check(width, depth, query_blocks, tiles)
        self._options = {"width": width, "depth": depth, "query_blocks": query_blocks, "queries": queries}
        self.grid, self.released_known = (int(grid[0]), int(grid[1])), released_known
        self.query_blocks, self.cosine_scale, self.tiles = query_blocks, cosine_scale, tiles
        self.patch_embed = nn.Conv2d(3, width, PATCH_PX, stride=PATCH_PX)
        self.pos_embed = nn.Parameter(torch.randn(1, self.grid[0] * self.grid[1], width))
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.reg_token = nn.Parameter(0.02 * torch.randn(1, REGISTERS, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, EPSILON)
        self.q = nn.Embedding(queries, width)
        self.class_head = (
            nn.Linear(width, num_classes + 1)
            if cosine_scale is None
            else CosineHead(width, num_classes, float(cosine_scale))
        )
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.upscale = nn.Sequential(*(_ScaleBlock(width) for _ in range(UPSCALINGS)))

    def options(self) -> dict[str, Any]:
        return {
            **self._options,
            "grid": list(self.grid),
            "cosine_scale": self.cosine_scale,
            "tiles": self.tiles,
            "released_known": self.released_known,
        }

    def weights_of(self, source: SegmentationNetwork) -> dict[str, Tensor]:
        weights = source.state_dict()
        if isinstance(source, EoMT) and source.grid != self.grid:
            positions = resampled_positions(weights["pos_embed"], source.grid, self.grid)
            weights["pos_embed"] = positions.flatten(2).transpose(1, 2)
        return weights

    @classmethod
    def class_count(cls, outputs: int, options: Mapping[str, Any]) -> int:
        return outputs - (options.get("cosine_scale") is None)

    @property
    def stages(self) -> int:
        return self.query_blocks

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self._embed(images)
        for index, block in enumerate(self.blocks):
            if index == len(self.blocks) - self.query_blocks:
                tokens = self._with_queries(tokens)
            tokens = block(tokens)
        return self._features(tokens, images)

    def decide(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        queries, upscaled = features["queries"], features["upscaled"]
        masks = self.mask_head(queries) @ upscaled.flatten(2)
        masks = masks.reshape(*masks.shape[:2], *upscaled.shape[2:])
        return {"mask_logits": masks, "class_logits": self.class_head(queries)}

    def compute(self, images: Tensor, features: Sequence[str] = ()) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        starts_px = self._crop_starts_px(images)
        if len(starts_px) == 1:
            return super().compute(images, features)
        if features:
            raise ConfigError("feature maps of overlapping crops are not defined; set the network's option tiles=none")
        height_px = images.shape[2]
        crops = torch.cat([images[..., start : start + height_px] for start in starts_px])
        tensors = self.decide(self.encode(crops))
        by_crop = {name: value.reshape(len(starts_px), -1, *value.shape[1:]) for name, value in tensors.items()}
        return {name: value.transpose(0, 1).flatten(1, 2) for name, value in by_crop.items()}, {}

    def compute_stages(
        self, images: Tensor, masked: Sequence[float], features: Sequence[str] = ()
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        tokens = self._embed(images)
        split = len(self.blocks) - self.query_blocks
        for block in self.blocks[:split]:
            tokens = block(tokens)
        tokens, stages = self._with_queries(tokens), []
        for block, share in zip(self.blocks[split:], masked, strict=True):
            stages.append(self.decide(self._features(tokens, images)))
            tokens = block(tokens, self._visible(stages[-1]["mask_logits"].detach(), share) if share > 0 else None)
        last = self._features(tokens, images)
        return [*stages, self.decide(last)], {name: last[name] for name in features}

    def _prediction(
        self, images: Tensor, padded: Tensor, tensors: Mapping[str, Tensor], features: Mapping[str, Tensor]
    ) -> Prediction:
        if tensors["class_logits"].shape[1] == self.q.num_embeddings:  # of whole images
            whole = super()._prediction(images, padded, tensors, features)
            return replace(cast(MaskPrediction, whole), released_known=self.released_known)
        return TiledMaskPrediction(
            size_px=(images.shape[2], images.shape[3]),
            padded_px=(padded.shape[2], padded.shape[3]),
            starts_px=self._crop_starts_px(padded),
            mask_logits=tensors["mask_logits"],
            class_logits=tensors["class_logits"],
            released_known=self.released_known,
        )

    def _crop_starts_px(self, images: Tensor) -> tuple[int, ...]:
        """Return the left columns of the square crops: models of github.com/tue-mps/eomt, window_imgs_semantic."""
        height_px, width_px = images.shape[2:]
        if self.tiles == "none" or width_px == height_px:
            return (0,)
        if width_px < height_px:
            raise ConfigError(
                f"tiles=short_side takes images that are wider than high, not {width_px}x{height_px}; set tiles=none"
            )
        count = math.ceil(width_px / height_px)
        overlap = (count * height_px - width_px) / (count - 1)
        return tuple(int(index * (height_px - overlap)) for index in range(count))

    def _embed(self, images: Tensor) -> Tensor:
        """Return the tokens (N, T, D) of class, registers and patches."""
        patches = self.patch_embed(images)
        patches = patches + resampled_positions(self.pos_embed, self.grid, (patches.shape[2], patches.shape[3]))
        further = torch.cat((self.cls_token, self.reg_token), 1).expand(images.shape[0], -1, -1)
        return torch.cat((further, patches.flatten(2).transpose(1, 2)), 1)

    def _with_queries(self, tokens: Tensor) -> Tensor:
        return torch.cat((self.q.weight.expand(tokens.shape[0], -1, -1), tokens), 1)

    def _features(self, tokens: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return the tensors for `decide` of tokens that begin with the queries."""
        tokens, queries = self.norm(tokens), self.q.num_embeddings
        grid = images.shape[2] // PATCH_PX, images.shape[3] // PATCH_PX
        encoded = tokens[:, queries + 1 + REGISTERS :].transpose(1, 2).reshape(tokens.shape[0], -1, *grid)
        return {"queries": tokens[:, :queries], "encoder": encoded, "upscaled": self.upscale(encoded)}

    def _visible(self, mask_logits: Tensor, share: float) -> Tensor:
        """Return bool (N, T, T): which tokens see which in masked attention (section 3.2 of the paper).

        A query sees a patch where its mask's logit is above 0; every other pair of tokens is visible. Of the queries,
        the masks of a random `share` apply.
        """
        count, queries, height, width = mask_logits.shape
        small = F.interpolate(mask_logits, (height // 4, width // 4), mode="bilinear", align_corners=False)
        seen = small.flatten(2) > 0
        if share < 1:
            seen = seen | (torch.rand(count, queries, device=seen.device) > share).unsqueeze(2)
        before = queries + 1 + REGISTERS
        tokens = before + seen.shape[2]
        visible = torch.ones(count, tokens, tokens, dtype=torch.bool, device=seen.device)
        visible[:, :queries, before:] = seen
        return visible
