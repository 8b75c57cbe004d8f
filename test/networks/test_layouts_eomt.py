"""Published files of EoMT and DINOv2 load completely, into the size that they have."""

from __future__ import annotations

import pytest
import torch
from published_keys import facebookresearch_dinov2, tue_mps_eomt

from anomseg_ros.errors import CheckpointError
from anomseg_ros.networks.checkpoints import _misfit, load_checkpoint
from anomseg_ros.networks.eomt import EoMT
from anomseg_ros.networks.layouts_eomt import EOMT_LAYOUTS
from anomseg_ros.networks.network import IMAGENET_MEAN, IMAGENET_STD

LAYOUTS = {layout.name: layout for layout in EOMT_LAYOUTS}


def random_state(shapes):
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def test_file_of_the_authors_loads_every_tensor_into_its_place(tmp_path):
    state = random_state(tue_mps_eomt(19, 128, 3, 7, 5, 2))
    torch.save({"state_dict": state}, tmp_path / "pytorch_model.bin.pth")
    network = load_checkpoint(tmp_path / "pytorch_model.bin.pth", "eomt", 19)
    assert isinstance(network, EoMT) and network.source_layout == "tue-mps/eomt"
    expected = {"width": 128, "depth": 3, "query_blocks": 2, "queries": 7, "grid": [5, 5]}
    assert {key: network.options()[key] for key in expected} == expected
    assert (network.mean, network.std) == (IMAGENET_MEAN, IMAGENET_STD)
    own = network.state_dict()
    for key in ("q.weight", "class_head.weight", "mask_head.2.bias", "upscale.1.norm.weight"):
        assert torch.equal(own[key], state[f"network.{key}"]), key
    for key in ("pos_embed", "cls_token", "reg_token", "blocks.2.mlp.fc1.weight", "blocks.0.ls2.gamma", "norm.bias"):
        assert torch.equal(own[key], state[f"network.encoder.backbone.{key}"]), key
    assert torch.equal(own["patch_embed.weight"], state["network.encoder.backbone.patch_embed.proj.weight"])
    arrived = sorted(float(value.double().sum()) for value in own.values())
    unused = ("network.attn_mask_probs", "criterion.", "network.encoder.pixel_")
    sent = sorted(float(value.double().sum()) for key, value in state.items() if not key.startswith(unused))
    assert arrived == pytest.approx(sent)


@pytest.mark.parametrize(
    ("width", "depth", "query_blocks", "grid"), [(384, 12, 3, 40), (768, 12, 3, 40), (1024, 24, 4, 64)]
)
def test_files_of_the_published_shapes_fit(width, depth, query_blocks, grid):
    with torch.device("meta"):
        whole = {key: torch.empty(s) for key, s in tue_mps_eomt(19, width, depth, 100, grid, query_blocks).items()}
        assert not _misfit(LAYOUTS["tue-mps/eomt"], LAYOUTS["tue-mps/eomt"].prepare(whole), 19)
        del whole["network.encoder.backbone.blocks.3.norm1.weight"]
        misfit = _misfit(LAYOUTS["tue-mps/eomt"], LAYOUTS["tue-mps/eomt"].prepare(whole), 19)
    assert misfit.missing == ("encoder.backbone.blocks.3.norm1.weight",) and len(misfit) == 1


@pytest.mark.parametrize(("width", "depth", "query_blocks"), [(384, 12, 3), (1024, 24, 4)])
def test_dinov2_of_the_published_shapes_fits(width, depth, query_blocks):
    layout = LAYOUTS["facebookresearch/dinov2, registers"]
    shapes = facebookresearch_dinov2(width, depth)
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    state["patch_embed.proj.weight"] = torch.zeros(shapes["patch_embed.proj.weight"])
    prepared = layout.prepare(state)
    assert not _misfit(layout, prepared, 19)
    assert layout.options_of(prepared)["query_blocks"] == query_blocks


def test_dinov2_is_an_encoder_and_no_whole_network(tmp_path):
    state = random_state(facebookresearch_dinov2(128, 4))
    torch.save(state, tmp_path / "dinov2.pth")
    with pytest.raises(CheckpointError, match=r"closest layout 'tue-mps/eomt'"):
        load_checkpoint(tmp_path / "dinov2.pth", "eomt", 19)
    network = load_checkpoint(tmp_path / "dinov2.pth", "eomt", 19, encoder_only=True)
    assert isinstance(network, EoMT) and network.grid == (37, 37)
    torch.testing.assert_close(network.cls_token[0, 0], state["cls_token"][0, 0] + state["pos_embed"][0, 0])
    assert torch.equal(network.pos_embed, state["pos_embed"][:, 1:])
    assert network.patch_embed.weight.shape == (128, 3, 16, 16)
    assert torch.equal(network.get_parameter("blocks.3.attn.qkv.weight"), state["blocks.3.attn.qkv.weight"])


def test_networks_without_a_layout_of_encoders_say_so(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "any.pth")
    with pytest.raises(CheckpointError, match="no layout of an encoder's weights alone is known for network 'enet'"):
        load_checkpoint(tmp_path / "any.pth", "enet", 19, encoder_only=True)
