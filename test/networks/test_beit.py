"""BEiT's blocks equal transformers' on shared weights, at the learnt grid and at another one."""

from __future__ import annotations

import re

import pytest
import torch

from anomseg_ros.networks.beit import relative_positions
from anomseg_ros.networks.encoder_groups import GroupedEncoder, resampled_weights

GRID = 4
NAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^layernorm\.", "norm."),
    (r"^layers\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.lambda_(\d)$", r".ls\1.gamma"),
    (r"\.relative_position_bias\.relative_position_bias_table$", ".attn.relative_position_bias_table"),
)


@pytest.fixture(scope="module")
def networks():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BeitConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=512,
        image_size=16 * GRID,
        use_relative_position_bias=True,
        use_mean_pooling=False,
        layer_norm_eps=1e-6,
    )
    theirs = transformers.BeitModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours, state = GroupedEncoder("beit", 128, 4, (GRID, GRID), 2).eval(), {}
    for key, value in theirs.state_dict().items():
        for pattern, replacement in NAMES:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    for index in range(4):
        start = f"blocks.{index}.attn."
        parts = [state.pop(f"{start}{part}_proj.weight") for part in "qkv"]
        state[f"{start}qkv.weight"] = torch.cat(parts)
        state |= {f"{start}{part}_bias": state.pop(f"{start}{part}_proj.bias") for part in "qv"}
    ours.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize("grid", [(GRID, GRID), (3, 6), (2, 7)])
@torch.no_grad()
def test_tokens_are_equal(networks, grid):
    ours, theirs = networks
    images = torch.randn(2, 3, 16 * grid[0], 16 * grid[1])
    tokens = ours.embed(images)
    for group in range(2):
        tokens = ours.run_group(tokens, group, grid)
    expected = theirs(images, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)


def test_every_pair_of_tokens_has_the_row_of_its_distance():
    index = relative_positions((2, 3))
    assert index.shape == (7, 7)
    assert (index[0, 1:] == 15).all() and (index[1:, 0] == 16).all() and index[0, 0] == 17
    patches = index[1:, 1:]
    assert patches.diagonal().unique().tolist() == [1 * 5 + 2]
    assert patches[0, 1] == patches[4, 5] == patches[0, 0] - 1 and patches[0, 3] == patches[0, 0] - 5


@pytest.mark.parametrize("kind", ["vit", "beit"])
@torch.no_grad()
def test_resampled_weights_compute_what_other_grids_do(kind):
    torch.manual_seed(0)
    learnt, other = (GroupedEncoder(kind, 64, 2, grid, 1).eval() for grid in ((3, 4), (2, 5)))
    for parameter in learnt.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    weights = learnt.state_dict(prefix="encoder.")
    resampled_weights(weights, "encoder.", (3, 4), (2, 5))
    other.load_state_dict({key.removeprefix("encoder."): value for key, value in weights.items()})
    images = torch.randn(1, 3, 32, 80)
    ours, theirs = (one.run_group(one.embed(images), 0, (2, 5)) for one in (learnt, other))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
