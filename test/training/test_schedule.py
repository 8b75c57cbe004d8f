from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch")

from anomseg_ros.errors import ConfigError  # noqa: E402
from anomseg_ros.networks import build_network  # noqa: E402
from anomseg_ros.training.config import OptimizerConfig, ScheduleConfig  # noqa: E402
from anomseg_ros.training.data import Plan  # noqa: E402
from anomseg_ros.training.schedule import Group, groups_by_part, learning_rate, make_optimizer, set_learning_rates  # noqa: E402

PLAN = Plan(frames=10, seed=0, batch_size=2, accumulate=1, processes=1, epochs=4)  # 20 steps


def optimizer_of(config: OptimizerConfig, network: torch.nn.Module, rate: float = 0.25) -> torch.optim.Optimizer:
    """Return an optimizer of the parts of the network at the rate of the schedule."""
    groups = groups_by_part(config, network)
    optimizer = make_optimizer(config, groups)
    set_learning_rates(optimizer, groups, rate, 0)
    return optimizer


def rates(**changes: object) -> list[float]:
    config = ScheduleConfig(**changes)  # type: ignore[arg-type]
    return [learning_rate(config, 0.1, step, PLAN) for step in range(PLAN.steps)]


def test_poly_schedule_by_step_equals_the_formula() -> None:
    assert rates() == pytest.approx([0.1 * (1 - step / 20) ** 0.9 for step in range(20)])


def test_poly_schedule_by_epoch_equals_lambda_lr() -> None:
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


def test_cosine_constant_and_warm_up_schedules() -> None:
    cosine = rates(kind="cosine")
    assert cosine[0] == pytest.approx(0.1) and cosine[10] == pytest.approx(0.05) and 0 < cosine[19] < 0.001
    assert rates(kind="constant") == [0.1] * 20
    warm = rates(kind="constant", warmup_steps=4)
    assert warm[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_norm_decay_off_excludes_norms_and_biases() -> None:
    network = build_network("mide_net", 3)
    (whole,) = optimizer_of(OptimizerConfig(weight_decay=0.1), network).param_groups
    assert len(whole["params"]) == len(list(network.parameters()))
    kernels, vectors = optimizer_of(OptimizerConfig(weight_decay=0.1, norm_decay=False), network).param_groups
    assert (kernels["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {parameter.dim() for parameter in vectors["params"]} == {1}
    assert len(kernels["params"]) + len(vectors["params"]) == len(whole["params"])


def test_frozen_parameters_are_not_optimised() -> None:
    network = build_network("mide_net", 3).requires_grad_(False)
    network.get_submodule("classifier").requires_grad_(True)
    (group,) = optimizer_of(OptimizerConfig(), network).param_groups
    assert len(group["params"]) == 2


@pytest.mark.parametrize(
    ("kind", "made"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_each_kind_of_optimizer_is_created(kind: str, made: type[torch.optim.Optimizer]) -> None:
    optimizer = optimizer_of(OptimizerConfig(kind=kind, momentum=0.8), build_network("mide_net", 3))
    assert type(optimizer) is made
    assert all(group["lr"] == 0.25 for group in optimizer.param_groups)
    if kind == "sgd":
        assert optimizer.param_groups[0]["momentum"] == 0.8


def test_float16_with_clipping_disables_the_fused_optimizer() -> None:
    clipped = OptimizerConfig(gradient_clip=1.0)
    groups = groups_by_part(clipped, build_network("mide_net", 3))
    assert make_optimizer(clipped, groups, "bf16-mixed").param_groups[0]["fused"]
    assert not make_optimizer(clipped, groups, "16-mixed").param_groups[0]["fused"]


def test_rates_of_parts_multiply_the_schedule() -> None:
    network = build_network("bisenet_v1", 3)
    config = OptimizerConfig(rates={"context_path": 0.5, "context_path.backbone": 0.1})
    optimizer = optimizer_of(config, network, 0.2)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        factor = 0.1 if name.startswith("context_path.backbone.") else 0.5 if name.startswith("context_path.") else 1.0
        assert found[id(parameter)] == pytest.approx(0.2 * factor), name


def test_rate_of_an_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.rates names 'bakbone'.*the closest: "):
        groups_by_part(OptimizerConfig(rates={"bakbone": 0.5}), build_network("mide_net", 3))


def test_other_parameters_train_at_the_rate_of_the_schedule() -> None:
    network, head = build_network("mide_net", 3), torch.nn.Linear(2, 2)
    groups = groups_by_part(OptimizerConfig(rates={"classifier": 0.5}), network, head.named_parameters("head"))
    factors = {id(parameter): group.factor for group in groups for parameter in group.parameters}
    assert [factors[id(parameter)] for parameter in head.parameters()] == [1.0, 1.0]


def test_factor_of_a_group_can_depend_on_the_step() -> None:
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [Group([first]), Group([second], factor=lambda step: step / 10)]
    optimizer = make_optimizer(OptimizerConfig(), groups)
    for step, factor in ((0, 0.0), (3, 0.3)):
        set_learning_rates(optimizer, groups, 0.5, step)
        assert [entry["lr"] for entry in optimizer.param_groups] == pytest.approx([0.5, 0.5 * factor])
    torch.save(optimizer.state_dict(), buffer := io.BytesIO())
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True), "functions are no part of the state"
