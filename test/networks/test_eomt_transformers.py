"""EoMT equals transformers' implementation on shared random weights, which reach it by the layout of its files."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from network_contract import random_images

from anomseg_ros.networks.checkpoints import _misfit, load_checkpoint
from anomseg_ros.networks.eomt import SIZES, EoMT
from anomseg_ros.networks.layouts_eomt import EOMT_LAYOUTS
from anomseg_ros.networks.network import NO_MEAN, NO_STD

transformers = pytest.importorskip("transformers")

BLOCKS, QUERIES, GRID = 2, 12, 4


@pytest.fixture(scope="module")
def oracle():
    torch.manual_seed(0)
    config = transformers.EomtConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_blocks=BLOCKS,
        num_queries=QUERIES,
        image_size=16 * GRID,
        num_labels=5,
        layerscale_value=1.0,
    )
    network = transformers.EomtForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lambda" in name or "norm" in name or "token" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def ours(oracle, tmp_path_factory) -> EoMT:
    path = tmp_path_factory.mktemp("weights") / "eomt.pth"
    torch.save(oracle.state_dict(), path)
    network = load_checkpoint(path, "eomt", 5)
    assert isinstance(network, EoMT) and network.source_layout == "huggingface/transformers"
    assert (network.grid, network.query_blocks, network.options()["queries"]) == ((GRID, GRID), BLOCKS, QUERIES)
    network.set_normalisation(NO_MEAN, NO_STD)  # transformers' network takes normalised images
    return network


def logits_of(prediction):
    return prediction.mask_logits, prediction.class_logits


def theirs_of(output):
    return output.masks_queries_logits, output.class_queries_logits


def with_masked_attention(oracle, probability):
    oracle.attn_mask_probs.fill_(probability)


@torch.no_grad()
def test_logits_are_equal(oracle, ours):
    images = random_images(64, 64, batch=2)
    with_masked_attention(oracle, 0.0)
    for mine, theirs in zip(logits_of(ours.predict(images)), theirs_of(oracle(images)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_logits_of_rectangular_images_are_equal(oracle, ours):
    """Transformers' network gets resampled positions and the other grid by hand: it has no rectangular form."""
    images = random_images(48, 96)
    with_masked_attention(oracle, 0.0)
    embeddings, grid = oracle.embeddings, oracle.grid_size
    square, ids = embeddings.position_embeddings.weight, embeddings.position_ids
    resized = F.interpolate(square.T.reshape(1, -1, GRID, GRID), (3, 6), mode="bicubic", align_corners=False)
    try:
        embeddings.position_embeddings.weight = torch.nn.Parameter(resized.flatten(2)[0].T.contiguous())
        embeddings.position_ids, oracle.grid_size = torch.arange(18)[None], (3, 6)
        theirs = theirs_of(oracle(images))
    finally:
        embeddings.position_embeddings.weight, embeddings.position_ids = square, ids
        oracle.grid_size = grid
    for mine, other in zip(logits_of(ours.predict(images)), theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("probability", [1.0, 0.4])
def test_masked_attention_is_equal(oracle, ours, probability):
    images = random_images(64, 64, batch=2)
    with_masked_attention(oracle, probability)
    torch.manual_seed(3)
    theirs = theirs_of(oracle(images))
    torch.manual_seed(3)
    stages = ours.predict_stages(images, (probability,) * BLOCKS)
    assert len(stages) == BLOCKS + 1
    for mine, other in zip(logits_of(stages[-1]), theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    unmasked = ours.predict(images)
    assert not torch.allclose(stages[-1].mask_logits, unmasked.mask_logits, atol=1e-2), "the masks have an effect"


@torch.no_grad()
def test_stages_without_masks_end_in_the_prediction(ours):
    images = random_images(50, 77)
    stages, plain = ours.predict_stages(images, (0.0,) * BLOCKS), ours.predict(images)
    assert stages[-1].size_px == (50, 77)
    assert torch.equal(stages[-1].pixel_logits(), plain.pixel_logits())
    assert not torch.equal(stages[0].mask_logits, stages[1].mask_logits)


@pytest.mark.parametrize(("size", "heads"), [("small", 6), ("base", 12), ("large", 16)])
def test_files_of_the_published_sizes_fit(size, heads):
    (layout,) = (one for one in EOMT_LAYOUTS if one.name == "huggingface/transformers")
    sizes = SIZES[size]
    config = transformers.EomtConfig(
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=heads,
        num_blocks=sizes["query_blocks"],
        num_queries=sizes["queries"],
        image_size=640,
        num_labels=19,
    )
    with torch.device("meta"):
        prepared = layout.prepare(transformers.EomtForUniversalSegmentation(config).state_dict())
        assert not _misfit(layout, prepared, 19)
    assert layout.options_of(prepared) == {**sizes, "grid": [40, 40]}
