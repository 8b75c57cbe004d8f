"""Learning rates over a run, and the optimizers of the papers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from anomseg_ros.training.config import OptimizerConfig, ScheduleConfig
from anomseg_ros.training.data import Plan
from anomseg_ros.training.start import submodule


def make_optimizer(config: OptimizerConfig, network: nn.Module, precision: str = "32-true") -> torch.optim.Optimizer:
    """Return the optimizer over the parameters that are trained, in groups of one rate and weight decay each.

    Raises ConfigError for a factor on the rate of a submodule that does not exist.
    """
    for name in config.rates:
        submodule(network, name, "optimizer.rates")
    groups = _groups(config, network)
    rate = config.learning_rate
    if config.kind == "sgd":
        return torch.optim.SGD(groups, rate, momentum=config.momentum)
    # The fused step takes a tenth of the time of the loop over parameters on a processor. It undoes float16's loss
    # scaling by itself, behind the back of gradient clipping.
    fused = not (precision == "16-mixed" and config.gradient_clip is not None)
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return kind(groups, rate, betas=config.betas, fused=fused)


def _groups(config: OptimizerConfig, network: nn.Module) -> list[dict[str, Any]]:
    """Return the trained parameters by factor on the rate ("factor") and weight decay."""
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            # Vectors are norms, biases and slopes: pulling them to 0 does not regularise what the network computes.
            decayed = config.norm_decay or parameter.dim() > 1
            key = _factor(config, name), config.weight_decay if decayed else 0.0
            grouped.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in grouped.items()
    ]


def _factor(config: OptimizerConfig, name: str) -> float:
    """Return the factor of the longest submodule name that a parameter's name begins with, 1 for none."""
    fitting = [part for part in config.rates if name.startswith(f"{part}.")]
    return config.rates[max(fitting, key=len)] if fitting else 1.0


def learning_rate(config: ScheduleConfig, base: float, step: int, plan: Plan) -> float:
    """Return the rate of optimizer step number `step` (from 0).

    poly: base (1 - t / T)^power, LambdaLR of the MiDE paper (eq. 8, whose t counts epochs from 1; power 0.9) where
    `every` is "epoch"; with every step as in DeepLab and BiSeNet. Warm-up rises linearly and multiplies.
    """
    done = step / plan.steps if config.every == "step" else plan.epoch_of(step) / plan.epochs
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.kind == "poly":
        return warm * base * float((1.0 - done) ** config.power)
    if config.kind == "cosine":
        return warm * base * 0.5 * (1.0 + math.cos(math.pi * done))
    return warm * base


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)  # states of earlier versions have none
