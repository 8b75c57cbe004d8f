"""Learning rates over a run, and the optimizers of the papers."""

from __future__ import annotations

import math

import torch
from torch import nn

from anomseg_ros.training.config import OptimizerConfig, ScheduleConfig
from anomseg_ros.training.data import Plan


def make_optimizer(config: OptimizerConfig, network: nn.Module, precision: str = "32-true") -> torch.optim.Optimizer:
    """Return the optimizer over the parameters that are trained, in one or two groups of weight decay."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [{"params": trained, "weight_decay": config.weight_decay}]
    if not config.norm_decay:
        # Vectors are norms, biases and slopes: pulling them to 0 does not regularise what the network computes.
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
    rate = config.learning_rate
    if config.kind == "sgd":
        return torch.optim.SGD(groups, rate, momentum=config.momentum)
    # The fused step takes a tenth of the time of the loop over parameters on a processor. It undoes float16's loss
    # scaling by itself, behind the back of gradient clipping.
    fused = not (precision == "16-mixed" and config.gradient_clip is not None)
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return kind(groups, rate, betas=config.betas, fused=fused)


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
    """Give every parameter group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
