"""EoMT: published figures of its sizes, order of tokens, image sizes and options."""

from __future__ import annotations

import pytest
import torch
from network_contract import NetworkFigures, random_images

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.counting import count_parameters
from anomseg_ros.networks.eomt import EoMT
from anomseg_ros.networks.prediction import MaskPrediction


class TestEoMT(NetworkFigures):
    name = "eomt"
    parameters = 1_149_205  # by hand: 98,432 + 66,304 + 4 x 198,528 + 256 + 3,840 + 2,709 + 49,536 + 2 x 67,072
    parameters_tolerance = 0.0
    # 512x1024 has 2,048 patches, 5 tokens and 30 queries: 201 M of patches, 2 x 2,053 x 196,608 and 2 x 2,083 x 196,608
    # of blocks, 2 M of heads and 2,048 x (65,536 + 4 x 1,152) and 4 times that of upscaling.
    multiply_adds = 2.5475e9
    logit_stride = 4


@pytest.mark.parametrize(
    ("width", "depth", "query_blocks", "published"),
    [(384, 12, 3, 23_893_652), (768, 12, 3, 93_498_644), (1024, 24, 4, 316_476_436)],
)
def test_sizes_of_the_authors_have_the_published_parameters(width, depth, query_blocks, published):
    with torch.device("meta"):
        assert count_parameters(EoMT(19, width, depth, query_blocks, 100, (40, 40))) == published


def test_queries_enter_only_the_last_blocks():
    network = EoMT(3, query_blocks=1).eval()
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with torch.no_grad():
        prediction = network.predict(random_images(64, 96))
    patches = 4 * 6
    assert seen == [5 + patches] * 3 + [30 + 5 + patches]
    assert isinstance(prediction, MaskPrediction)
    assert prediction.mask_logits.shape == (1, 30, 16, 24)
    assert prediction.class_logits.shape == (1, 30, 4)


def test_masks_are_inner_products_with_the_upscaled_features():
    network = EoMT(3).eval()
    with torch.no_grad():
        tensors = network.encode(random_images(64, 96))
        masks = network.decide(tensors)["mask_logits"]
        expected = torch.einsum("nqd,ndhw->nqhw", network.mask_head(tensors["queries"]), tensors["upscaled"])
    torch.testing.assert_close(masks, expected, atol=1e-5, rtol=1e-5)


def test_position_embeddings_are_resampled_for_other_sizes():
    network = EoMT(3, grid=(4, 6)).eval()
    own = network.pos_embed.detach().transpose(1, 2).reshape(1, -1, 4, 6)
    with torch.no_grad():
        assert torch.equal(network._positions(4, 6), own)
        assert network._positions(3, 9).shape == (1, 128, 3, 9)
        assert network(random_images(33, 130)).shape == (1, 3, 33, 130)
    assert network.options()["grid"] == [4, 6]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"width": 96}, "width is 96; expected a multiple of 64"), ({"query_blocks": 5}, "query_blocks is 5; expected 1")],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        EoMT(3, **options)
