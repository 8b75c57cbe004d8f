"""Layouts of EoMT: its authors' files, transformers' form of these, and DINOv2 with registers as pretrained encoder.

One layout has the networks of all sizes: width, number of blocks, queries and grid are read off the tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from anomseg_ros.networks.eomt import PATCH_PX, SIZES
from anomseg_ros.networks.layout import Layout, Rules, State, by_rules
from anomseg_ros.networks.network import IMAGENET_MEAN, IMAGENET_STD
from anomseg_ros.networks.vision_transformer import resampled_patches

DINOV2_PATCH_PX = 14
PROBABILITIES = "attn_mask_probs"
"""Probability of masked attention per block with queries: unused at inference, but its length is their number."""

_AUTHORS: Rules = (
    (r"^(patch_embed)\.", r"\1.proj."),
    (r"^(patch_embed|pos_embed|cls_token|reg_token|blocks|norm)(\.|$)", r"encoder.backbone.\1\2"),
)

_TRANSFORMERS: Rules = (
    (r"^patch_embed\.", "embeddings.patch_embeddings.projection."),
    (r"^pos_embed$", "embeddings.position_embeddings.weight"),
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^blocks\.", "layers."),
    (r"\.attn\.qkv\.", ".attention.qkv."),  # joined by `_join_attention`
    (r"\.attn\.proj\.", ".attention.out_proj."),
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
    (r"^norm\.", "layernorm."),
    (r"^q\.", "query."),
    (r"^class_head\.", "class_predictor."),
    (r"^mask_head\.(\d)\.", lambda match: f"mask_head.fc{int(match[1]) // 2 + 1}."),
    (r"^upscale\.(\d)\.norm\.", r"upscale_block.block.\1.layernorm2d."),
    (r"^upscale\.(\d)\.", r"upscale_block.block.\1."),
)

_DINOV2: Rules = (
    (r"^patch_embed\.", "patch_embed.proj."),
    (r"^reg_token$", "register_tokens"),
)

_ATTENTION = re.compile(r"(.*\.attention\.)q_proj\.(weight|bias)")


def _strip_lightning(state: State) -> State:
    """Return the state without the "network." of the authors' Lightning module."""
    return {key.removeprefix("network."): value for key, value in state.items()}


def _join_attention(state: State) -> State:
    """Return the state with queries, keys and values of each layer in one matrix, and positions as (1, T, D)."""
    joined = dict(state)
    for key in state:
        match = _ATTENTION.fullmatch(key)
        parts = [f"{match[1]}{part}_proj.{match[2]}" for part in "qkv"] if match else []
        if match and all(part in joined for part in parts):
            joined[f"{match[1]}qkv.{match[2]}"] = torch.cat([joined.pop(part) for part in parts])
    positions = "embeddings.position_embeddings.weight"
    if positions in joined and joined[positions].dim() == 2:
        joined[positions] = joined[positions][None]
    return joined


def _without_class_position(state: State) -> State:
    """Return DINOv2's state for patches of 16 pixels and without a position of the class token.

    The position is added to the token, which has it always. timm converts the same way.
    """
    plain = dict(state)
    positions, token, patches = (plain.get(key) for key in ("pos_embed", "cls_token", "patch_embed.proj.weight"))
    if positions is not None and token is not None and positions.dim() == 3 and token.shape == positions[:, :1].shape:
        plain["cls_token"], plain["pos_embed"] = token + positions[:, :1], positions[:, 1:]
    if patches is not None and patches.dim() == 4 and patches.shape[2:] == (DINOV2_PATCH_PX, DINOV2_PATCH_PX):
        plain["patch_embed.proj.weight"] = resampled_patches(patches, PATCH_PX)
    return plain


def _sizes(state: State, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return width, depth and grid of a state. keys: our name -> published one. Nothing, if it is no transformer's."""
    patches, positions = state.get(keys["patches"]), state.get(keys["positions"])
    blocks = {match[1] for key in state if (match := re.match(re.escape(keys["blocks"]) + r"\.(\d+)\.", key))}
    if patches is None or positions is None or not blocks or positions.dim() != 3:
        return {}
    rows = math.isqrt(positions.shape[1])
    width = patches.shape[0]
    if not width or width % 64 or rows**2 != positions.shape[1]:
        return {}
    return {"width": width, "depth": len(blocks), "grid": [rows, rows]}


def _whole_network(keys: Mapping[str, str], queries_key: str) -> Any:
    def options(state: State) -> dict[str, Any]:
        queries, probabilities, sizes = state.get(queries_key), state.get(PROBABILITIES), _sizes(state, keys)
        if queries is None or queries.dim() != 2 or probabilities is None or probabilities.dim() != 1 or not sizes:
            return {}
        if not 1 <= len(probabilities) <= sizes["depth"]:
            return {}
        return {**sizes, "queries": len(queries), "query_blocks": len(probabilities)}

    return options


def _encoder(state: State) -> dict[str, Any]:
    """Return the sizes of an encoder, and the number of blocks with queries that its size has in EoMT."""
    sizes = _sizes(state, {"patches": "patch_embed.proj.weight", "positions": "pos_embed", "blocks": "blocks"})
    authors = [size for size in SIZES.values() if size["width"] == sizes.get("width")]
    return {**(authors[0] if authors else {}), **sizes}


EOMT_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "tue-mps/eomt",
        "eomt",
        by_rules(_AUTHORS),
        unused=(PROBABILITIES, "criterion.empty_weight", "encoder.pixel_mean", "encoder.pixel_std"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        prepare=_strip_lightning,
        read_options=_whole_network(
            {
                "patches": "encoder.backbone.patch_embed.proj.weight",
                "positions": "encoder.backbone.pos_embed",
                "blocks": "encoder.backbone.blocks",
            },
            "q.weight",
        ),
    ),
    Layout(
        "huggingface/transformers",
        "eomt",
        by_rules(_TRANSFORMERS),
        unused=(PROBABILITIES, "criterion.empty_weight"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        prepare=_join_attention,
        read_options=_whole_network(
            {
                "patches": "embeddings.patch_embeddings.projection.weight",
                "positions": "embeddings.position_embeddings.weight",
                "blocks": "layers",
            },
            "query.weight",
        ),
    ),
    Layout(
        "facebookresearch/dinov2, registers",
        "eomt",
        by_rules(_DINOV2),
        unused=("mask_token",),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        prepare=_without_class_position,
        read_options=_encoder,
        fresh=("q.", "class_head.", "mask_head.", "upscale."),
    ),
)
