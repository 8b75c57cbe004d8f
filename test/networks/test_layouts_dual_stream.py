"""Files of pretrained vision transformers and of BEiT load completely, into the size that they have."""

from __future__ import annotations

import pytest
import torch
from published_keys import microsoft_beit, timm_vit

from anomseg_ros.errors import CheckpointError
from anomseg_ros.networks.checkpoints import _misfit, load_checkpoint
from anomseg_ros.networks.dual_stream_adapter import DualStreamAdapter
from anomseg_ros.networks.layouts_dual_stream import DUAL_STREAM_LAYOUTS
from anomseg_ros.networks.network import IMAGENET_MEAN

VIT, BEIT = DUAL_STREAM_LAYOUTS


def random_state(shapes):
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def test_vision_transformer_is_an_encoder_and_no_whole_network(tmp_path):
    state = random_state(timm_vit(128, 4, 3, 10))
    torch.save({"model": state}, tmp_path / "deit.pth")
    with pytest.raises(CheckpointError, match="no layout of a whole published network is known for network 'dual_"):
        load_checkpoint(tmp_path / "deit.pth", "dual_stream_adapter", 19)
    network = load_checkpoint(tmp_path / "deit.pth", "dual_stream_adapter", 19, encoder_only=True)
    assert isinstance(network, DualStreamAdapter) and network.grid == (3, 3)
    assert (network.source_layout, network.mean) == ("timm, vision transformer", IMAGENET_MEAN)
    own = network.encoder.state_dict()
    assert torch.equal(own["patch_embed.weight"], state["patch_embed.proj.weight"])
    for key in ("pos_embed", "cls_token", "blocks.3.attn.qkv.bias", "blocks.0.mlp.fc2.weight", "norm.weight"):
        assert torch.equal(own[key], state[key]), key
    assert len(own) == len(state) - 2, "all but the classifier"


def test_beit_is_an_encoder(tmp_path):
    state = random_state(microsoft_beit(128, 4, 3, 10))
    torch.save({"model": state}, tmp_path / "beit.pth")
    network = load_checkpoint(tmp_path / "beit.pth", "dual_stream_adapter", 19, encoder_only=True)
    assert isinstance(network, DualStreamAdapter) and network.options()["encoder"] == "beit"
    assert (network.grid, network.mean, network.std) == ((3, 3), (0.5,) * 3, (0.5,) * 3)
    own = network.encoder.state_dict()
    assert torch.equal(own["norm.bias"], state["fc_norm.bias"])
    assert torch.equal(own["blocks.2.ls1.gamma"], state["blocks.2.gamma_1"])
    for key in ("cls_token", "blocks.1.attn.relative_position_bias_table", "blocks.3.attn.q_bias"):
        assert torch.equal(own[key], state[key]), key
    assert len(own) == len(state) - 2 - 4, "all but the classifier and the indices"


def test_beit_without_fine_tuning_has_one_table_for_all_blocks(tmp_path):
    state = random_state(microsoft_beit(128, 4, 3, 10))
    own = {key: value for key, value in state.items() if "relative_position" not in key and not key.startswith("head.")}
    own = {key.replace("fc_norm.", "norm."): value for key, value in own.items()}
    table = "relative_position_bias_table"
    own |= {f"rel_pos_bias.{table}": state[f"blocks.0.attn.{table}"], "mask_token": torch.zeros(1, 1, 128)}
    torch.save({**own, "lm_head.weight": torch.zeros(9, 128)}, tmp_path / "beit.pth")
    network = load_checkpoint(tmp_path / "beit.pth", "dual_stream_adapter", 19, encoder_only=True)
    for index in range(4):
        assert torch.equal(network.get_parameter(f"encoder.blocks.{index}.attn.{table}"), own[f"rel_pos_bias.{table}"])


@pytest.mark.parametrize(
    ("layout", "shapes", "expected"),
    [
        (VIT, timm_vit(192, 12, 14, 1000), {"decoder_layers": 9, "heads": 6}),
        (BEIT, microsoft_beit(1024, 24, 14, 21841), {"decoder_layers": 1, "ratio": 0.5, "encoder": "beit"}),
    ],
)
def test_encoders_of_the_paper_fit(layout, shapes, expected):
    with torch.device("meta"):
        prepared = layout.prepare({key: torch.empty(shape) for key, shape in shapes.items()})
        assert not _misfit(layout, prepared, 19)
    assert expected.items() <= layout.options_of(prepared).items()
    del prepared["blocks.3.mlp.fc1.bias"]
    with torch.device("meta"):
        assert _misfit(layout, prepared, 19).missing == ("blocks.3.mlp.fc1.bias",)


@pytest.mark.parametrize("positions", [(1, 7, 128), (7, 128), (0,)])
def test_files_of_other_shapes_are_refused_by_their_keys(positions, tmp_path):
    state = random_state(timm_vit(128, 4, 3, 10))
    torch.save({**state, "pos_embed": torch.zeros(positions)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="does not fit network 'dual_stream_adapter'"):
        load_checkpoint(tmp_path / "odd.pth", "dual_stream_adapter", 19, encoder_only=True)
