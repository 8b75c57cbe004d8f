"""Layouts of the pretrained encoders that dual-stream adapters freeze: vision transformers and BEiT.

One layout has all sizes: width, number of blocks and grid are read off the tensors. No whole network is published.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anomseg_ros.networks.beit import CLASS_PAIRS
from anomseg_ros.networks.dual_stream_adapter import SIZES
from anomseg_ros.networks.encoder_groups import PATCH_PX
from anomseg_ros.networks.layout import Layout, Rules, State, by_rules
from anomseg_ros.networks.network import IMAGENET_MEAN, IMAGENET_STD
from anomseg_ros.networks.vision_transformer import HEAD_WIDTH

HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of Microsoft's BEiT."""
FRESH = ("adapter.", "pixel_decoder.", "query_decoder.")
_TABLE = "blocks.0.attn.relative_position_bias_table"

_TIMM: Rules = ((r"^encoder\.", ""), (r"^patch_embed\.", "patch_embed.proj."))
_UNILM: Rules = (*_TIMM, (r"\.ls(\d)\.gamma$", r".gamma_\1"))


def _without_unused(state: State) -> State:
    """Return a state without its classifier and what BEiT computes from the sizes."""
    unused = ("head.", "head_dist.", "lm_head.", "fc_norm.", "mask_token", "rel_pos_bias.")
    return {
        key: value
        for key, value in state.items()
        if not key.startswith(unused) and not key.endswith("relative_position_index")
    }


def _with_norm(state: State) -> State:
    """Return BEiT's state with a last norm and a table for each block.

    Fine-tuned files name the norm fc_norm, since it follows a mean over patches. In files of the pretraining alone, all
    blocks share one table.
    """
    named = {re.sub(r"^fc_norm\.", "norm.", key): value for key, value in state.items()}
    table = named.get("rel_pos_bias.relative_position_bias_table")
    if table is not None:
        blocks = range(_depth(named))
        named |= {f"blocks.{index}.attn.relative_position_bias_table": table for index in blocks}
    return _without_unused(named)


def _options(encoder: str, state: State) -> dict[str, Any]:
    """Return the constructor's arguments for a state; none, if it is no such transformer's."""
    patches, depth = state.get("patch_embed.proj.weight"), _depth(state)
    rows = _rows_of_positions(state.get("pos_embed")) if encoder == "vit" else _rows_of_table(state.get(_TABLE))
    if patches is None or patches.dim() != 4 or patches.shape[2] != PATCH_PX or not rows:
        return {}
    width = patches.shape[0]
    if not width or width % HEAD_WIDTH or not depth or depth % 4:
        return {}
    paper = [size for size in SIZES.values() if (size["encoder"], size["width"]) == (encoder, width)]
    own = {"encoder": encoder, "width": width, "depth": depth, "grid": [rows, rows]}
    return {**(paper[0] if paper else {}), **own}


def _depth(state: Mapping[str, Tensor]) -> int:
    return len({match[1] for key in state if (match := re.match(r"blocks\.(\d+)\.", key))})


def _rows_of_positions(positions: Tensor | None) -> int:
    """Return the rows of a square grid with a class token's position before it, 0 if it is none."""
    if positions is None or positions.dim() != 3:
        return 0
    rows = math.isqrt(max(0, positions.shape[1] - 1))
    return rows if rows**2 == positions.shape[1] - 1 else 0


def _rows_of_table(table: Tensor | None) -> int:
    """Return the rows of the square grid of a table of relative positions, 0 if it is none."""
    if table is None or table.dim() != 2:
        return 0
    side = math.isqrt(max(0, len(table) - CLASS_PAIRS))
    return (side + 1) // 2 if side % 2 and side**2 == len(table) - CLASS_PAIRS else 0


def _vit(state: State) -> dict[str, Any]:
    return _options("vit", state)


def _beit(state: State) -> dict[str, Any]:
    return _options("beit", state)


DUAL_STREAM_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "timm, vision transformer",
        "dual_stream_adapter",
        by_rules(_TIMM),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        prepare=_without_unused,
        read_options=_vit,
        fresh=FRESH,
    ),
    Layout(
        "microsoft/unilm, BEiT",
        "dual_stream_adapter",
        by_rules(_UNILM),
        mean=HALF,
        std=HALF,
        prepare=_with_norm,
        read_options=_beit,
        fresh=FRESH,
        options={"encoder": "beit"},
    ),
)
