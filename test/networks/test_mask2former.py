"""Mask2Former's decoder equals transformers' on shared weights, masked attention included."""

from __future__ import annotations

import re

import pytest
import torch

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.mask2former import PixelDecoder, QueryDecoder, sine_positions

modeling = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")

WIDTH, HEADS, IN_WIDTH, QUERIES, CLASSES = 64, 4, 48, 9, 5
SIZES = [(16, 24), (8, 12), (4, 6), (2, 3)]
PIXEL_NAMES = (
    (r"^input_projections\.", "inputs."),
    (r"^adapter_1\.", "lateral."),
    (r"^layer_1\.", "smooth."),
    (r"^mask_projection\.", "masks."),
    (r"^encoder\.", ""),
    (r"\.self_attn\.sampling_offsets\.", ".attn.offsets."),
    (r"\.self_attn\.attention_weights\.", ".attn.weights."),
    (r"\.self_attn\.value_proj\.", ".attn.values."),
    (r"\.self_attn\.output_proj\.", ".attn.proj."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
)
QUERY_NAMES = (
    (r"^queries_embedder\.", "query_place."),
    (r"^queries_features\.", "query."),
    (r"^decoder\.layernorm\.", "norm."),
    (r"^decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", lambda match: f"mask_head.{2 * int(match[1])}."),
    (r"^decoder\.", ""),
    (r"\.self_attn\.q_proj\.", ".own.query."),
    (r"\.self_attn\.k_proj\.", ".own.key."),
    (r"\.self_attn\.v_proj\.", ".own.value."),
    (r"\.self_attn\.out_proj\.", ".own.proj."),
    (r"\.cross_attn\.out_proj\.", ".cross.proj."),
    (r"\.cross_attn_layer_norm\.", ".norm1."),
    (r"\.self_attn_layer_norm\.", ".norm2."),
    (r"\.final_layer_norm\.", ".norm3."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
)


def renamed(state, rules):
    """Return transformers' state under our names; joint projections become queries, keys and values."""
    found = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if ".cross_attn.in_proj_" in key:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[key.replace(".cross_attn.in_proj_", f".cross.{part}.")] = third
        else:
            found[key] = value
    return found


@pytest.fixture(scope="module")
def config():
    transformers = pytest.importorskip("transformers")
    return transformers.Mask2FormerConfig(
        feature_size=WIDTH,
        mask_feature_size=WIDTH,
        hidden_dim=WIDTH,
        encoder_feedforward_dim=96,
        dim_feedforward=80,
        encoder_layers=2,
        decoder_layers=5,
        num_attention_heads=HEADS,
        num_queries=QUERIES,
        num_labels=CLASSES,
        dropout=0.0,
    )


def drawn(module):
    """Return a module in evaluation mode whose weights are all random."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (0.5 if parameter.dim() < 2 else parameter[0].numel() ** -0.5)
            )
    return module.eval()


@pytest.fixture(scope="module")
def pixel_decoders(config):
    torch.manual_seed(0)
    theirs = drawn(modeling.Mask2FormerPixelDecoder(config, [IN_WIDTH] * 4))
    ours = PixelDecoder(IN_WIDTH, WIDTH, HEADS, 2, 96).eval()
    ours.load_state_dict(renamed(theirs.state_dict(), PIXEL_NAMES))
    return ours, theirs


@torch.no_grad()
def test_pixel_decoder_is_equal(pixel_decoders):
    ours, theirs = pixel_decoders
    maps = [torch.randn(2, IN_WIDTH, *size) for size in SIZES]
    masks, levels = ours(maps)
    expected = theirs(maps, output_attentions=False, output_hidden_states=False, return_dict=True)
    torch.testing.assert_close(masks, expected.mask_features, atol=1e-4, rtol=1e-4)
    for mine, other in zip(levels, expected.multi_scale_features, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_query_decoder_is_equal(config):
    """Five layers there are four here: the prediction before the first one is counted there."""
    torch.manual_seed(1)
    theirs = drawn(modeling.Mask2FormerTransformerModule(WIDTH, config))
    ours = QueryDecoder(CLASSES, WIDTH, HEADS, 4, 80, QUERIES).eval()
    shared = renamed(theirs.state_dict(), QUERY_NAMES)
    shared |= {key: value for key, value in ours.state_dict().items() if key.startswith("class_head.")}
    ours.load_state_dict(shared)
    features, maps = torch.randn(2, WIDTH, *SIZES[0]), [torch.randn(2, WIDTH, *size) for size in SIZES[:0:-1]]
    expected = theirs(maps, features)
    queries = ours(features, maps)
    assert len(queries) == 5
    for mine, other in zip(queries, expected.intermediate_hidden_states, strict=True):
        torch.testing.assert_close(mine, other.transpose(0, 1), atol=1e-4, rtol=1e-4)
    for mine, other in zip(queries, expected.masks_queries_logits, strict=True):
        torch.testing.assert_close(ours.decide(mine, features)["mask_logits"], other, atol=1e-3, rtol=1e-3)
    assert 0.05 < ours._visible(queries[0], features).float().mean() < 0.95, "the masks of attention have an effect"


def test_query_with_an_empty_mask_sees_everything():
    torch.manual_seed(0)
    decoder = QueryDecoder(CLASSES, WIDTH, HEADS, 1, 80, QUERIES)
    queries, features = torch.randn(1, QUERIES, WIDTH), torch.randn(1, WIDTH, 4, 6)
    with torch.no_grad():
        for layer in decoder.mask_head.children():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.zero_()
                layer.bias.zero_()
        decoder.mask_head[4].bias[0] = -1.0
        features[:, 0] = 1.0
        assert decoder._visible(queries, features).all()
        features[:, 0, 2, 3] = -1.0
        assert decoder._visible(queries, features).sum() == QUERIES


@pytest.mark.parametrize("size", [(4, 6), (7, 3)])
def test_sine_positions_are_equal(size):
    embedding = modeling.Mask2FormerSinePositionEmbedding(num_position_features=WIDTH // 2, normalize=True)
    expected = embedding((1, WIDTH, *size), "cpu", torch.float32)
    torch.testing.assert_close(sine_positions(WIDTH, size[0], size[1], torch.zeros(1)), expected, atol=1e-5, rtol=1e-5)


def test_widths_and_heads_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="decoder_width is 48; expected a multiple of 32"):
        PixelDecoder(8, 48, 2, 1, 8)
    with pytest.raises(ConfigError, match="decoder_heads is 3"):
        QueryDecoder(2, 64, 3, 1, 8, 2)
