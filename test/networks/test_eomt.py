"""EoMT: published figures of its sizes, order of tokens, image sizes and options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from network_contract import NetworkFigures, random_images

from anomseg_ros.backends import open_detector
from anomseg_ros.errors import CheckpointError, ConfigError
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.counting import count_parameters
from anomseg_ros.networks.eomt import SIZES, EoMT
from anomseg_ros.networks.network import pixels_to_input
from anomseg_ros.networks.prediction import MaskPrediction, TiledMaskPrediction
from anomseg_ros.networks.vision_transformer import resampled_patches, resampled_positions


class TestEoMT(NetworkFigures):
    name = "eomt"
    parameters = 1_149_205  # by hand: 98,432 + 66,304 + 4 x 198,528 + 256 + 3,840 + 2,709 + 49,536 + 2 x 67,072
    parameters_tolerance = 0.0
    # 512x1024 has 2,048 patches, 5 tokens and 30 queries: 201 M of patches, 2 x 2,053 x 196,608 and 2 x 2,083 x 196,608
    # of blocks, 2 M of heads and 2,048 x (65,536 + 4 x 1,152) and 4 times that of upscaling.
    multiply_adds = 2.5475e9
    logit_stride = 4


@pytest.mark.parametrize(
    ("size", "patches", "published"),
    [
        ("small", 40, 23_893_652),
        ("base", 40, 93_498_644),
        ("large", 40, 316_476_436),
        ("small", 64, 24_852_116),
        ("base", 64, 95_415_572),
        ("large", 64, 319_032_340),
    ],
)
def test_sizes_of_the_authors_have_the_published_parameters(size, patches, published):
    with torch.device("meta"):
        assert count_parameters(EoMT(19, **dict[str, Any](SIZES[size]), grid=(patches, patches))) == published


def test_class_for_anomalies_adds_one_output_and_cosines_need_one_bias():
    with torch.device("meta"):
        assert count_parameters(EoMT(20, **dict[str, Any](SIZES["base"]), grid=(40, 40))) == 93_499_413
        cosines = EoMT(20, **dict[str, Any](SIZES["base"]), grid=(40, 40), cosine_scale=30.0)
    assert count_parameters(cosines) == 93_499_413 - 21 * 769 + 20 * 768 + 1


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
    positions = network.pos_embed.detach()
    assert torch.equal(resampled_positions(positions, (4, 6), (4, 6)), positions.transpose(1, 2).reshape(1, -1, 4, 6))
    assert resampled_positions(positions, (4, 6), (3, 9)).shape == (1, 128, 3, 9)
    with torch.no_grad():
        assert network(random_images(33, 130)).shape == (1, 3, 33, 130)
    assert network.options()["grid"] == [4, 6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 96}, "width is 96; expected a multiple of 64"),
        ({"query_blocks": 5}, "query_blocks is 5; expected 1"),
        ({"tiles": "short"}, "unknown way of tiles 'short'; known: short_side"),
        ({"cosine_scale": 0}, "cosine_scale is 0.0; expected a number above 0"),
    ],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        EoMT(3, **options)


def test_logits_of_cosines_depend_on_directions_alone(tmp_path):
    network = EoMT(3, cosine_scale=30.0).eval()
    features = torch.randn(2, 30, 128)
    with torch.no_grad():
        network.class_head.no_object.fill_(1.5)
        logits = network.class_head(features)
        torch.testing.assert_close(network.class_head(7 * features), logits)
        expected = 30 * F.cosine_similarity(features[:, :, None], network.class_head.weight, dim=-1)
        torch.testing.assert_close(logits[..., :3], expected, atol=1e-4, rtol=1e-5)
        assert (logits[..., 3] == 1.5).all()
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(network.class_head(features), logits)
    save_checkpoint(tmp_path / "cosines.safetensors", network, {})
    assert load_checkpoint(tmp_path / "cosines.safetensors", "eomt", 3).cosine_scale == 30.0
    with pytest.raises(CheckpointError, match="for 3 classes, not 4"):
        load_checkpoint(tmp_path / "cosines.safetensors", "eomt", 4)


def test_more_known_classes_than_classes_are_refused():
    with pytest.raises(ConfigError, match="released_known is 4; expected 0 to 3, the number of classes"):
        EoMT(3, released_known=4)(random_images(32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("tiles", ["none", "short_side"])
def test_released_inference_is_exported(tiles, tmp_path):
    torch.manual_seed(1)
    network = EoMT(20, queries=5, grid=(4, 8), tiles=tiles, released_known=19).eval()
    save_checkpoint(tmp_path / "released.safetensors", network, {})
    scores = ("mask_msp", "mask_max_logit", "mask_void")
    config = ExportConfig("released", 20, 19, height_px=64, width_px=128, scores=scores)
    bundle, parity = export_checkpoint("eomt", tmp_path / "released.safetensors", config, tmp_path / "bundle")
    assert parity.max_score_difference <= 1e-4
    frame = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    with torch.no_grad():
        semantic = network(pixels_to_input(torch.from_numpy(frame[None]))).exp()
    found = open_detector(bundle).detect(frame).scores["mask_msp"]
    np.testing.assert_allclose(found, 1 - semantic[0, :19].amax(0).numpy(), atol=1e-4)


@pytest.mark.parametrize("size", [(32, 80), (32, 64), (30, 77)])
@torch.no_grad()
def test_crops_along_the_width_are_averaged_where_they_overlap(size):
    torch.manual_seed(1)
    network = EoMT(3, grid=(2, 2), queries=5, tiles="short_side").eval()
    images = random_images(*size, batch=2)
    height, width = network.padded_size(*size)
    padded = F.pad(images, (0, width - size[1], 0, height - size[0]), mode="replicate")
    starts = {80: (0, 24, 48), 64: (0, 32)}[width]
    total, counts = torch.zeros(2, 3, height, width), torch.zeros(width)
    for start in starts:
        crop: Any = network.predict(padded[..., start : start + height])
        total[..., start : start + height] += crop.semantic(crop.enlarge(crop.maps))
        counts[start : start + height] += 1
    prediction = network.predict(images)
    assert isinstance(prediction, TiledMaskPrediction) and prediction.starts_px == starts
    expected = (total / counts)[..., : size[0], : size[1]]
    torch.testing.assert_close(prediction.pixel_logits().exp(), expected, atol=1e-5, rtol=1e-4)
    assert prediction.pixel_evidence().shape == expected.shape


def test_square_images_are_one_crop_and_high_ones_are_refused():
    network = EoMT(3, grid=(2, 2), tiles="short_side").eval()
    with torch.no_grad():
        assert type(network.predict(random_images(32, 32))) is MaskPrediction
    with pytest.raises(ConfigError, match="wider than high, not 32x64"):
        network.predict(random_images(64, 32))
    with pytest.raises(ConfigError, match="overlapping crops"):
        network.predict(random_images(32, 64), ("encoder",))


def test_resampled_patches_embed_resized_patches_equally():
    torch.manual_seed(0)
    weight, patches = torch.randn(8, 3, 14, 14), torch.randn(5, 3, 14, 14)
    resized = F.interpolate(patches, (16, 16), mode="bicubic", antialias=True, align_corners=False)
    embedded = F.conv2d(resized, resampled_patches(weight, 16)).flatten(1)
    torch.testing.assert_close(embedded, F.conv2d(patches, weight).flatten(1), atol=1e-3, rtol=1e-3)


def test_width_without_a_known_size_needs_no_published_layout(tmp_path):
    """A file of another network is refused with the keys that are missing, not with an error of a reader of sizes."""
    torch.save(
        {"pos_embed": torch.zeros(3), "patch_embed.proj.weight": torch.zeros(()), "q.weight": torch.zeros(())},
        tmp_path / "odd.pth",
    )
    for encoder_only in (False, True):
        with pytest.raises(CheckpointError, match="does not fit network 'eomt'"):
            load_checkpoint(tmp_path / "odd.pth", "eomt", 3, encoder_only=encoder_only)
