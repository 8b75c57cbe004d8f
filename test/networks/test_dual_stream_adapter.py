"""Dual-stream adapters: the paper's counts by part, the two streams, and every variant of the paper's tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from network_contract import NetworkFigures, random_images, randomize
from torch import nn

from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import Provenance
from anomseg_ros.errors import ConfigError
from anomseg_ros.export import ExportConfig, export_network, random_frames
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.dual_stream import Adapter, AdapterConfig
from anomseg_ros.networks.dual_stream_adapter import SIZES, DualStreamAdapter
from anomseg_ros.networks.prediction import MaskPrediction
from anomseg_ros.parity import check_parity

VARIANTS: list[dict[str, Any]] = [
    {"prior": False},
    {"refinement": False},
    {"prior": False, "refinement": False},
    {"injector": True},
    {"streams": 1, "injector": True},
    {"streams": 0},
    {"streams": 0, "side_depth": 5, "side_width": 48},
    {"merge": "concat"},
    {"encoder": "beit"},
    {"groups": 1},
    {"groups": 2},
]


class TestDualStreamAdapter(NetworkFigures):
    name = "dual_stream_adapter"
    parameters = 787_989  # 257,600 of the encoder, 244,848 of the adapter, 118,096 + 167,445 of the decoder
    parameters_tolerance = 0.0
    # By hand for 512x1024, in M: encoder 101 + 403; prior 661 + 94 + 61; 12 extractors of 92.5; enlarging 134; pixel
    # decoder 44 + 2 x 314 + 134 + 1,208 + 134; query decoder 88 of keys and values and 3 of 20 queries.
    multiply_adds = 4.803e9
    logit_stride = 4


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_large_size_has_the_papers_parameters_by_part():
    """The paper states 303.3 M of the ViT, 27.7 M of the adapter, 435.9 M in all."""
    with torch.device("meta"):
        network = DualStreamAdapter(19, **dict[str, Any](SIZES["large"]))
    assert count(network.encoder) == 303_405_568
    assert count(network.adapter) == 27_344_448
    assert count(network.pixel_decoder) + count(network.query_decoder) == 104_940_308
    assert count(network) - count(network.encoder) == pytest.approx(133e6, rel=0.01)
    with torch.device("meta"):
        vit = DualStreamAdapter(19, **{**dict[str, Any](SIZES["large"]), "encoder": "vit"})
        two = DualStreamAdapter(19, **{**dict[str, Any](SIZES["large"]), "decoder_layers": 2})
    assert count(vit.encoder) == 303_301_632
    assert count(two) - count(network) == 16_796_672


def test_tiny_size_has_the_encoder_of_the_paper():
    with torch.device("meta"):
        network = DualStreamAdapter(19, **dict[str, Any](SIZES["tiny"]))
    assert count(network.encoder) == 5_524_416
    assert count(network.adapter) == 2_621_600
    with torch.device("meta"):
        vit_adapter = DualStreamAdapter(19, **{**dict[str, Any](SIZES["tiny"]), "streams": 1, "injector": True})
    assert count(vit_adapter.adapter) == 2_438_192  # ViT-Adapter's paper states 2.4 M, too
    assert count(network.pixel_decoder) + count(network.query_decoder) == 19_713_236


@torch.no_grad()
def test_streams_start_from_the_same_maps_and_have_level_embeddings_of_their_own():
    torch.manual_seed(0)
    network = DualStreamAdapter(3, refinement=False).eval()
    images = random_images(64, 96)
    prediction = network.predict(images, network.feature_names)
    prior = network.adapter.prior(images)
    for level, (name, one) in enumerate(zip(network.feature_names, prior[1:], strict=False)):
        known, other = prediction.features[name].chunk(2, 1)
        vectors = network.adapter.level_embed[:, level, :, None, None]
        torch.testing.assert_close(known, one + vectors[0])
        torch.testing.assert_close(other, one + vectors[1])
    assert isinstance(prediction, MaskPrediction) and prediction.mask_logits.shape == (1, 20, 16, 24)


@torch.no_grad()
def test_refinement_is_extractors_after_each_group_of_blocks():
    torch.manual_seed(0)
    network = DualStreamAdapter(3, depth=8).eval()
    images, sizes = random_images(64, 96), [(8, 12), (4, 6), (2, 3)]
    encoder, adapter = network.encoder, network.adapter
    assert isinstance(adapter, Adapter)
    features, grid = encoder.embed(images), (4, 6)
    streams = [adapter._tokens(adapter._start(images, features, grid)[1:], stream) for stream in range(2)]
    for group in range(4):
        for block in encoder.blocks[2 * group : 2 * group + 2]:
            features = block(features)
        features = encoder.norm(features) if group == 3 else features
        assert [len(own[group]) for own in adapter.extractors] == [3 if group == 3 else 1] * 2
        for index, own in enumerate(adapter.extractors):
            for extractor in own[group]:
                streams[index] = extractor(streams[index], sizes, features[:, 1:], grid)
    found = adapter(encoder, images)[1][0]
    torch.testing.assert_close(found, torch.cat([one[:, :96].mT.unflatten(2, (8, 12)) for one in streams], 1))


@torch.no_grad()
def test_injector_changes_nothing_until_it_is_trained():
    torch.manual_seed(0)
    network = DualStreamAdapter(3, streams=1, injector=True).eval()
    images = random_images(64, 96)
    before = network(images)
    for injector in network.adapter.injectors:
        injector.gamma.fill_(0.5)
    assert not torch.allclose(network(images), before, atol=1e-3)


@torch.no_grad()
def test_streams_without_a_prior_start_from_the_resized_patches():
    network = DualStreamAdapter(3, prior=False, refinement=False).eval()
    images = random_images(64, 96)
    found = network.predict(images, network.feature_names).features
    patches = network.encoder.embed(images)[:, 1:].mT.unflatten(2, (4, 6))
    for name, size in zip(network.feature_names, ((8, 12), (4, 6), (2, 3)), strict=False):
        known, other = found[name].chunk(2, 1)
        resized = nn.functional.interpolate(patches, size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(known, resized)
        assert torch.equal(known, other)


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_variants_train_every_parameter_and_are_saved(options, tmp_path):
    network = DualStreamAdapter(3, **options).train()
    network(random_images(64, 96, batch=2)).square().mean().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []
    save_checkpoint(tmp_path / "own.safetensors", network, {})
    loaded = load_checkpoint(tmp_path / "own.safetensors", "dual_stream_adapter", 3)
    assert loaded.options() == network.options() and options.items() <= loaded.options().items()
    with torch.no_grad():
        features = loaded.predict(random_images(64, 96), loaded.feature_names).features
    widths = {name: maps.shape[1] for name, maps in features.items()}
    assert widths["streams_8"] == widths["streams_32"] == 64 * max(1, options.get("streams", 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"encoder": "beit"}, {"injector": True, "prior": False}, {"streams": 0, "side_depth": 4, "side_width": 48}],
    ids=str,
)
def test_exported_graph_of_a_variant_equals_the_network_at_an_odd_size(options, tmp_path):
    torch.manual_seed(0)
    network = DualStreamAdapter(19, **options)
    randomize(network)
    network.eval()
    config = ExportConfig("odd", 19, None, height_px=61, width_px=97, scores=("mask_msp", "max_logit"))
    bundle, _ = export_network(network, "dual_stream_adapter", config, tmp_path / "odd", Provenance("none", "0" * 64))
    parity = check_parity(bundle, network, random_frames(config))
    assert parity.max_score_difference <= 1e-4
    assert open_detector(bundle).detect(np.zeros((80, 90, 3), np.uint8)).labels.shape == (61, 97)


@torch.no_grad()
def test_side_adapter_takes_up_the_tokens_before_each_group_of_blocks():
    torch.manual_seed(0)
    network = DualStreamAdapter(3, depth=8, grid=(4, 6), streams=0, side_depth=5, side_width=24, side_heads=3).eval()
    images, encoder, adapter = random_images(64, 96), network.encoder, network.adapter
    features, tokens = encoder.embed(images), adapter.patch_embed(images).flatten(2).mT
    for index in range(5):
        if index < 4:
            tokens = tokens + adapter.fusions[index](features[:, 1:])
            features = encoder.blocks[2 * index + 1](encoder.blocks[2 * index](features))
        tokens = adapter.blocks[index](tokens + adapter.pos_embed)
    found = adapter(encoder, images)[1]
    torch.testing.assert_close(found[1], adapter.proj(tokens).mT.unflatten(2, (4, 6)))
    assert [one.shape[2:] for one in found] == [(8, 12), (4, 6), (2, 3)]


def test_side_adapter_has_the_parameters_of_its_paper():
    """SAN states 8.4 M beside ViT-B, with what is not ours: queries, three perceptrons, and CLIP's positions."""
    sizes = dict[str, Any](SIZES["tiny"])
    with torch.device("meta"):
        tiny = DualStreamAdapter(19, **{**sizes, "streams": 0, "side_depth": 8})
        base = DualStreamAdapter(19, **{**sizes, "width": 768, "grid": (40, 40), "streams": 0, "side_depth": 8})
    assert count(tiny.adapter) == 6_020_784
    own = count(base.adapter.get_submodule("proj")) + count(base.adapter.get_submodule("norms"))
    narrow, wide = (240 + 1 + 256 + 1) * 256, 257 * 256
    perceptrons = 2 * (narrow + wide) + narrow + 257 * 256 * 12
    assert count(base.adapter) - own + 2 * 100 * 240 + perceptrons + 197 * 768 == pytest.approx(8.4e6, rel=0.01)


def test_side_adapter_of_another_grid_is_resampled():
    options: dict[str, Any] = {"streams": 0, "side_depth": 4, "side_width": 24}
    learnt, other = DualStreamAdapter(3, grid=(3, 4), **options), DualStreamAdapter(3, grid=(6, 5), **options)
    other.load_state_dict(other.weights_of(learnt))


def test_encoder_of_another_grid_is_resampled():
    learnt, other = DualStreamAdapter(3, grid=(3, 4)), DualStreamAdapter(3, grid=(6, 5))
    weights = other.weights_of(learnt)
    assert weights["encoder.pos_embed"].shape == other.encoder.pos_embed.shape
    other.load_state_dict(weights)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "dino"}, "unknown encoder 'dino'; known: "),
        ({"width": 96}, "width is 96; expected a multiple of 64"),
        ({"groups": 3}, "groups is 3; expected a divisor of the 4 blocks"),
        ({"streams": 3}, "streams is 3; expected 0, 1 or 2"),
        ({"merge": "mean"}, "unknown merge 'mean'; known: "),
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"prior_width": 0}, "prior_width is 0"),
        ({"side_depth": 8}, "side_depth is for streams=0, and streams is 2"),
        ({"streams": 0, "side_depth": 3}, "side_depth is 3; expected 4 or more, a block for each group"),
        ({"streams": 0, "side_depth": -1}, "side_depth is -1; expected 0 or more"),
        ({"streams": 0, "side_depth": 8, "side_heads": 7}, "side_heads is 7; expected a divisor of side_width 240"),
        ({"heads": 3}, "3 heads of deformable attention"),
    ],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        DualStreamAdapter(3, **options)


def test_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match="unexpected keyword argument 'stream'"):
        DualStreamAdapter(3, stream=1)


def test_adapter_without_streams_has_norms_alone():
    assert {name.split(".")[0] for name, _ in Adapter(64, 4, AdapterConfig(streams=0)).named_parameters()} == {"norms"}
