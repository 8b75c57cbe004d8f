"""Deformable attention equals transformers' on shared weights, and a loop over points in numpy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.deformable_attention import POINTS, DeformableAttention, as_maps, as_tokens, centres

SIZES = [(3, 5), (6, 10), (2, 7)]


def drawn(width: int = 64, heads: int = 4, levels: int = 3, ratio: float = 1.0) -> DeformableAttention:
    torch.manual_seed(0)
    layer = DeformableAttention(width, heads, levels, ratio)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("levels", [1, 3])
@torch.no_grad()
def test_equals_transformers_on_shared_weights(levels):
    """As extractors (one map, queries of other maps) and as Mask2Former's pixel decoder (three maps)."""
    modeling = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    ours, sizes = drawn(levels=levels), SIZES[:levels]
    theirs = modeling.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(64, 4, levels, POINTS)
    names = {"sampling_offsets": "offsets", "attention_weights": "weights", "value_proj": "values"}
    shared = {
        key: ours.state_dict()[key.replace(key.split(".")[0], names.get(key.split(".")[0], "proj"))]
        for key in theirs.state_dict()
    }
    theirs.load_state_dict(shared)
    queries, tokens = torch.randn(2, 35, 64), torch.randn(2, sum(h * w for h, w in sizes), 64)
    places = centres([(5, 7)], queries)
    expected, _ = theirs(
        queries,
        encoder_hidden_states=tokens,
        reference_points=places[None, :, None].expand(2, -1, levels, -1),
        spatial_shapes_list=sizes,
    )
    torch.testing.assert_close(ours(queries, places, tokens, sizes), expected, atol=1e-5, rtol=1e-5)
    fresh, owner = DeformableAttention(64, 4, levels), SimpleNamespace(config=modeling.Mask2FormerConfig())
    modeling.Mask2FormerPreTrainedModel._init_weights(owner, theirs)
    torch.testing.assert_close(fresh.offsets.bias, theirs.sampling_offsets.bias)
    assert not fresh.offsets.weight.any() and not fresh.weights.weight.any()


@torch.no_grad()
def test_equals_a_loop_over_points_with_narrow_values():
    layer, sizes = drawn(16, 2, 2, 0.5), SIZES[:2]
    queries, tokens = torch.randn(1, 4, 16), torch.randn(1, 75, 16)
    places = torch.rand(4, 2)
    values = as_maps(layer.values(tokens), sizes)
    offsets = layer.offsets(queries).reshape(4, 2, 2, POINTS, 2).numpy()
    weights = layer.weights(queries).reshape(4, 2, -1).softmax(-1).reshape(4, 2, 2, POINTS).numpy()
    expected = np.zeros((4, 8), np.float32)
    for query, head, level, point in np.ndindex(4, 2, 2, POINTS):
        height, width = sizes[level]
        x, y = places[query].numpy() * (width, height) + offsets[query, head, level, point] - 0.5
        left, top = int(np.floor(x)), int(np.floor(y))
        for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
            if 0 <= column < width and 0 <= row < height:
                share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[query, head, level, point]
                part = slice(4 * head, 4 * head + 4)
                expected[query, part] += share * values[level][0, part, row, column].numpy()
    ours = layer(queries, places, tokens, sizes)
    torch.testing.assert_close(ours[0], layer.proj(torch.from_numpy(expected)), atol=1e-5, rtol=1e-5)


def test_tokens_and_maps_are_each_other_and_centres_follow_them():
    maps = [torch.randn(2, 3, *size) for size in SIZES]
    again = as_maps(as_tokens(maps), SIZES)
    assert all(torch.equal(one, other) for one, other in zip(maps, again, strict=True))
    places = centres(SIZES, maps[0])
    assert places.shape == (15 + 60 + 14, 2)
    torch.testing.assert_close(places[1], torch.tensor([1.5 / 5, 0.5 / 3]))
    torch.testing.assert_close(places[-1], torch.tensor([6.5 / 7, 1.5 / 2]))


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_that_do_not_divide_the_channels_are_refused(heads):
    with pytest.raises(ConfigError, match=f"{heads} heads of deformable attention do not divide 8 channels"):
        DeformableAttention(16, heads, 1, 0.5)
