"""Rates by layer for vision transformers: layer-wise decay, and a warm-up in two stages.

Both as github.com/tue-mps/eomt trains (training/lightning_module.py, two_stage_warmup_poly_schedule.py): block i of L
has the factor d^(L - 1 - i), embeddings that of block 0, the last norm and all parts outside the encoder 1. First the
other parts warm up alone for a steps, then the encoder for b steps, both linearly.

Deviation: the factors multiply the configured schedule, which decays from the first step on. The published one decays
from the end of each warm-up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from anomseg_ros.networks.network import StagedMaskNetwork
from anomseg_ros.training.config import OptimizerConfig
from anomseg_ros.training.schedule import Group

_BLOCK = re.compile(r"(?:encoder\.)?blocks\.(\d+)\.")
_NORMS = ("norm.", "encoder.norm.")


def layer_groups(
    network: StagedMaskNetwork,
    config: OptimizerConfig,
    others: Iterable[nn.Parameter],
    decay: float,
    warmup_steps: tuple[int, int],
) -> list[Group]:
    """Return the parameters that train, grouped by rate and weight decay.

    Args:
        network: its blocks are named blocks.I or encoder.blocks.I.
        config: gives the weight decay.
        others: parameters of an objective.
        decay: d.
        warmup_steps: a and b.
    """
    last = max((int(match[1]) for name, _ in network.named_parameters() if (match := _BLOCK.match(name))), default=0)
    grouped: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    named = [(name, value, name.startswith(network.encoder_parts)) for name, value in network.named_parameters()]
    for name, parameter, is_encoder in [*named, *(("", value, False) for value in others)]:
        if not parameter.requires_grad:
            continue
        block = _BLOCK.match(name)
        depth = last - int(block[1]) if block else last if is_encoder and not name.startswith(_NORMS) else 0
        wanted = config.norm_decay or parameter.dim() > 1
        key = is_encoder, decay**depth, config.weight_decay if wanted else 0.0
        grouped.setdefault(key, []).append(parameter)
    return [
        Group(parameters, weight_decay, _Rate(factor, warmup_steps, is_encoder))
        for (is_encoder, factor, weight_decay), parameters in grouped.items()
    ]


class _Rate:
    """The factor of one group at a step."""

    def __init__(self, factor: float, warmup_steps: tuple[int, int], is_encoder: bool) -> None:
        self._factor, self._first, self._encoder = factor, warmup_steps[0], is_encoder
        self._second = warmup_steps[1]

    def __call__(self, step: int) -> float:
        if not self._encoder:
            return self._factor * (min(1.0, (step + 1) / self._first) if self._first else 1.0)
        done = step - self._first + 1
        if done <= 0:
            return 0.0
        return self._factor * (min(1.0, done / self._second) if self._second else 1.0)
