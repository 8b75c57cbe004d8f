"""Rates by layer: the decay of blocks, embeddings and heads, and the two stages of the warm-up."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

torch = pytest.importorskip("torch")

from anomseg_ros.networks.dual_stream_adapter import DualStreamAdapter  # noqa: E402
from anomseg_ros.networks.eomt import EoMT  # noqa: E402
from anomseg_ros.training.config import OptimizerConfig  # noqa: E402
from anomseg_ros.training.layer_rates import layer_groups  # noqa: E402
from anomseg_ros.training.schedule import Group  # noqa: E402


def rates(groups: Sequence[Group], network: EoMT, step: int) -> dict[str, float]:
    names = {id(value): name for name, value in network.named_parameters()}
    return {names[id(value)]: group.factor(step) for group in groups for value in group.parameters}


def network() -> EoMT:
    return EoMT(3, width=64, depth=3, query_blocks=1, queries=4)


def test_rates_fall_towards_the_first_layer() -> None:
    eomt = network()
    found = rates(layer_groups(eomt, OptimizerConfig(), [], 0.8, (0, 0)), eomt, 0)
    assert found.keys() == dict(eomt.named_parameters()).keys()
    assert found["blocks.2.norm1.weight"] == found["norm.weight"] == found["q.weight"] == found["class_head.bias"] == 1
    assert found["blocks.1.attn.qkv.weight"] == pytest.approx(0.8)
    for name in ("blocks.0.mlp.fc1.weight", "patch_embed.weight", "pos_embed", "cls_token", "reg_token"):
        assert found[name] == pytest.approx(0.64), name


def test_encoder_of_dual_stream_adapters_has_rates_by_layer() -> None:
    whole = DualStreamAdapter(3)
    names = {id(value): name for name, value in whole.named_parameters()}
    groups = layer_groups(whole, OptimizerConfig(), [], 0.5, (0, 0))
    found = {names[id(value)]: group.factor(0) for group in groups for value in group.parameters}
    assert found["encoder.pos_embed"] == found["encoder.blocks.0.norm1.weight"] == 0.125
    assert found["encoder.blocks.2.mlp.fc1.weight"] == 0.5
    assert found["encoder.norm.weight"] == found["adapter.norms.0.weight"] == found["query_decoder.query.weight"] == 1


def test_heads_warm_up_before_the_encoder() -> None:
    eomt = network()
    groups = layer_groups(eomt, OptimizerConfig(), [], 0.5, (4, 10))
    expected = {0: (0.25, 0.0), 3: (1.0, 0.0), 4: (1.0, 0.1), 8: (1.0, 0.5), 13: (1.0, 1.0), 50: (1.0, 1.0)}
    for step, (head, encoder) in expected.items():
        found = rates(groups, eomt, step)
        assert found["mask_head.0.weight"] == pytest.approx(head)
        assert found["blocks.2.ls1.gamma"] == pytest.approx(encoder)
        assert found["blocks.1.ls1.gamma"] == pytest.approx(0.5 * encoder)


def test_frozen_parameters_have_no_group_and_vectors_may_have_no_decay() -> None:
    eomt, extra = network(), torch.nn.Parameter(torch.zeros(2, 2))
    eomt.blocks.requires_grad_(False)
    groups = layer_groups(eomt, OptimizerConfig(weight_decay=0.05, norm_decay=False), [extra], 0.8, (1, 1))
    held = {id(value): group.weight_decay for group in groups for value in group.parameters}
    assert id(eomt.blocks[0].norm1.weight) not in held
    assert held[id(extra)] == held[id(eomt.q.weight)] == 0.05 and held[id(eomt.norm.bias)] == 0.0
