"""Learning rates, groups of parameters with one rate, and optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import nn

from anomseg_ros.training.start import submodule

if TYPE_CHECKING:
    from anomseg_ros.training.config import OptimizerConfig, ScheduleConfig
    from anomseg_ros.training.data import Plan


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters with one rate. factor: on the schedule's rate; may be a function of the optimizer step (from 0)."""

    parameters: Sequence[nn.Parameter]
    weight_decay: float = 0.0
    factor: float | Callable[[int], float] = 1.0


def groups_by_part(
    config: OptimizerConfig, network: nn.Module, others: Iterable[tuple[str, nn.Parameter]] = ()
) -> list[Group]:
    """Return the parameters that train, grouped by weight decay and by the factor of their part of the network.

    others: named parameters that train with the network's. Raises ConfigError if config.rates names an unknown
    submodule.
    """
    for name in config.rates:
        submodule(network, name, "optimizer.rates")
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in chain(network.named_parameters(), others):
        if parameter.requires_grad:
            # Vectors are norms, biases and slopes. Decaying these does not regularise the network.
            decayed = config.norm_decay or parameter.dim() > 1
            key = _factor(config, name), config.weight_decay if decayed else 0.0
            grouped.setdefault(key, []).append(parameter)
    return [Group(parameters, decay, factor) for (factor, decay), parameters in grouped.items()]


def _factor(config: OptimizerConfig, name: str) -> float:
    """Return the factor of the innermost submodule in config.rates that has the parameter, 1 if there is none."""
    parts = [part for part in config.rates if name.startswith(f"{part}.")]
    return config.rates[max(parts, key=len)] if parts else 1.0


def make_optimizer(
    config: OptimizerConfig, groups: Sequence[Group], precision: str = "32-true"
) -> torch.optim.Optimizer:
    """Return the optimizer over groups of parameters."""
    each = [{"params": list(group.parameters), "weight_decay": group.weight_decay} for group in groups]
    rate = config.learning_rate
    if config.kind == "sgd":
        return torch.optim.SGD(each, rate, momentum=config.momentum)
    # On a processor, the fused step takes a tenth of the time of the loop over parameters. It also undoes float16's
    # loss scaling, which gradient clipping must do before.
    fused = not (precision == "16-mixed" and config.gradient_clip is not None)
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return kind(each, rate, betas=config.betas, fused=fused)


def learning_rate(config: ScheduleConfig, base: float, step: int, plan: Plan) -> float:
    """Return the rate of optimizer step number `step` (from 0).

    poly is base (1 - t / T)^power. With `every` "epoch" it is LambdaLR of the MiDE paper (eq. 8, where t counts epochs
    from 1; power 0.9), with "step" that of DeepLab and BiSeNet. A linear warm-up multiplies the rate.
    """
    done = step / plan.steps if config.every == "step" else plan.epoch_of(step) / plan.epochs
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.kind == "poly":
        return warm * base * float((1.0 - done) ** config.power)
    if config.kind == "cosine":
        return warm * base * 0.5 * (1.0 + math.cos(math.pi * done))
    return warm * base


def set_learning_rates(optimizer: torch.optim.Optimizer, groups: Sequence[Group], rate: float, step: int) -> None:
    """Set each group's rate in the optimizer: the schedule's rate of the step times the group's factor."""
    for entry, group in zip(optimizer.param_groups, groups, strict=True):
        entry["lr"] = rate * (group.factor(step) if callable(group.factor) else group.factor)
