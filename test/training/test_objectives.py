"""Every objective of the table fulfils the contract of objectives."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from objective_contract import Case, ObjectiveContract  # noqa: E402
from tiny_runs import tiny_plain  # noqa: E402

from anomseg_ros.errors import ConfigError  # noqa: E402
from anomseg_ros.training.config import parse_config  # noqa: E402
from anomseg_ros.training.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, objective_class  # noqa: E402

MORE_CASES = [
    Case("segmentation", {"auxiliary_weight": 0.5, "auxiliary_stride": 4, "kind": "ohem"}, "bisenet_lite"),
    Case("segmentation", {"auxiliary_weight": 0.0, "kind": "focal"}, "bisenet_lite"),
    Case("segmentation", {"distillation_weight": 1.0, "logit_norm_temperature": 0.1}, void=True),
    Case("segmentation", {"entropy_weight": 0.5, "energy_weight": 0.1, "class_weights_c": 1.02}),
    Case("segmentation", {"entropy_weight": 0.5, "energy_weight": 0.1, "void_weight": 2.0}, void=True),
    Case("segmentation", network="eomt", void=True),
    Case("masks", {"points": 64, "class_loss": "logit_norm", "layer_decay": 0.5, "warmup_steps": [2, 2]}, "eomt"),
    Case("masks", {"points": 64, "class_loss": "released_arcface", "released_outlier_weight": 2.0}, "eomt"),
    Case("masks", {"points": 64, "class_loss": "arcface", "rba_weight": 1.0}, "eomt", True, {"cosine_scale": 30.0}),
    Case("masks", {"points": 64, "lora": {"rank": 2, "dropout": 0.1}}, "eomt", True),
    Case("masks", {"points": 64, "layer_decay": 0.5}, "dual_stream_adapter", True),
    Case("dual_stream", {"points": 64, "stream_loss": "bce", "stream_cells": "all"}, "dual_stream_adapter"),
    Case("dual_stream", {"points": 64, "stream_loss": "contrastive"}, "dual_stream_adapter", True),
    Case("dual_stream", {"points": 64, "stream_weight": 0.0, "contrastive_weight": 1.0}, "dual_stream_adapter"),
    Case("dual_stream", {"points": 64, "lora": {"rank": 2}, "stream_weight": 0.0}, "dual_stream_adapter", True),
]
NETWORK = {"masks": "eomt", "dual_stream": "dual_stream_adapter"}
"""The network of an objective that does not train every one."""
CASES = [
    *(Case(name, network=NETWORK.get(name, "mide_net"), void=void) for name in OBJECTIVES for void in (False, True)),
    *MORE_CASES,
]


class TestObjectives(ObjectiveContract):
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request: pytest.FixtureRequest) -> Case:
        found: Case = request.param
        return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_section_has_the_options_of_the_objective(name: str) -> None:
    config = parse_config(tiny_plain("x", objective=name), "here")
    assert type(config.loss) is objective_class(name).options_type
    with pytest.raises(ConfigError, match="here: loss: unknown key 'no_such_option'; did you mean "):
        parse_config(tiny_plain("x", objective=name, loss={"no_such_option": 1}), "here")


def test_objective_has_a_default() -> None:
    assert parse_config(tiny_plain("x"), "here").objective == DEFAULT_OBJECTIVE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "segmentatoin"}, "unknown objective 'segmentatoin'; known: segmentation"),
        ({"objective": 3}, "here: objective: expected str, got 3"),
        ({"loss": None}, "here: loss: expected a mapping with the keys of LossConfig, got None"),
        ({"loss": [1]}, "here: loss: expected a mapping"),
        ({"loss": {"kind": 3}}, "here: loss: kind: expected str, got 3"),
    ],
)
def test_invalid_objectives_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(tiny_plain("x", **changes), "here")
