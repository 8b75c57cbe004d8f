from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from anomseg_ros.errors import ConfigError  # noqa: E402
from anomseg_ros.networks import build_network  # noqa: E402
from anomseg_ros.training.config import OptimizerConfig, ScheduleConfig  # noqa: E402
from anomseg_ros.training.data import Plan  # noqa: E402
from anomseg_ros.training.schedule import learning_rate, make_optimizer, set_learning_rate  # noqa: E402

PLAN = Plan(frames=10, seed=0, batch_size=2, accumulate=1, processes=1, epochs=4)  # 20 steps


def rates(**changes: object) -> list[float]:
    config = ScheduleConfig(**changes)  # type: ignore[arg-type]
    return [learning_rate(config, 0.1, step, PLAN) for step in range(PLAN.steps)]


def test_poly_by_step() -> None:
    assert rates() == pytest.approx([0.1 * (1 - step / 20) ** 0.9 for step in range(20)])


def test_poly_by_epoch_is_torch_s_lambda_lr() -> None:
    """Equation 8 of paper MiDE: (1 - (epoch - 1) / epochs)^0.9, epochs counted from 1."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: (1 - epoch / 4) ** 0.9)
    expected = []
    for _ in range(4):
        expected += [optimizer.param_groups[0]["lr"]] * 5
        optimizer.step()
        schedule.step()
    assert rates(every="epoch") == pytest.approx(expected)


def test_cosine_constant_and_warm_up() -> None:
    cosine = rates(kind="cosine")
    assert cosine[0] == pytest.approx(0.1) and cosine[10] == pytest.approx(0.05) and 0 < cosine[19] < 0.001
    assert rates(kind="constant") == [0.1] * 20
    warm = rates(kind="constant", warmup_steps=4)
    assert warm[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_weight_decay_of_norms() -> None:
    network = build_network("mide_net", 3)
    (whole,) = make_optimizer(OptimizerConfig(weight_decay=0.1), network).param_groups
    assert len(whole["params"]) == len(list(network.parameters()))
    kernels, vectors = make_optimizer(OptimizerConfig(weight_decay=0.1, norm_decay=False), network).param_groups
    assert (kernels["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {parameter.dim() for parameter in vectors["params"]} == {1}
    assert len(kernels["params"]) + len(vectors["params"]) == len(whole["params"])


def test_frozen_parameters_are_left_out() -> None:
    network = build_network("mide_net", 3).requires_grad_(False)
    network.get_submodule("classifier").requires_grad_(True)
    (group,) = make_optimizer(OptimizerConfig(), network).param_groups
    assert len(group["params"]) == 2


@pytest.mark.parametrize(
    ("kind", "made"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_kinds(kind: str, made: type) -> None:
    optimizer = make_optimizer(OptimizerConfig(kind=kind, momentum=0.8), build_network("mide_net", 3))
    assert type(optimizer) is made
    set_learning_rate(optimizer, 0.25)
    assert all(group["lr"] == 0.25 for group in optimizer.param_groups)
    if kind == "sgd":
        assert optimizer.param_groups[0]["momentum"] == 0.8


def test_float16_with_clipping_takes_an_optimizer_that_allows_it() -> None:
    network = build_network("mide_net", 3)
    clipped = OptimizerConfig(gradient_clip=1.0)
    assert make_optimizer(clipped, network, "bf16-mixed").param_groups[0]["fused"]
    assert not make_optimizer(clipped, network, "16-mixed").param_groups[0]["fused"]


def test_rates_of_parts_multiply_the_schedule_s() -> None:
    network = build_network("bisenet_v1", 3)
    config = OptimizerConfig(rates={"context_path": 0.5, "context_path.backbone": 0.1})
    optimizer = make_optimizer(config, network)
    set_learning_rate(optimizer, 0.2)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        factor = 0.1 if name.startswith("context_path.backbone.") else 0.5 if name.startswith("context_path.") else 1.0
        assert found[id(parameter)] == pytest.approx(0.2 * factor), name


def test_a_rate_of_a_part_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.rates names 'bakbone'.*the closest: "):
        make_optimizer(OptimizerConfig(rates={"bakbone": 0.5}), build_network("mide_net", 3))
