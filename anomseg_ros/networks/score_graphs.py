"""The formulas of core/scores.py in torch, as exported graphs hold them.

Every function takes logits (N, C, …) of the known classes, with needs_void also those of the void class (N, …), and the
temperature T, and returns (N, …). None uses Softmax: over the class axis it takes twenty times as long as the
exponential and a sum in ONNX Runtime.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from anomseg_ros.core.scores import SCORES

Graph = Callable[..., Tensor]


def score_graph(name: str) -> Graph:
    """Return the function of a score of the table."""
    module, _, function = SCORES[name].graph.partition(":")
    graph: Graph = getattr(importlib.import_module(module), function)
    return graph


def msp(known: Tensor, temperature: float) -> Tensor:
    """1 - max p."""
    _, exponentials = _shifted(known, temperature)
    return 1.0 - 1.0 / exponentials.sum(dim=1)


def max_logit(known: Tensor, temperature: float) -> Tensor:
    """-max z."""
    return -known.amax(dim=1)


def max_entropy(known: Tensor, temperature: float) -> Tensor:
    """-sum p log p."""
    shifted, exponentials = _shifted(known, temperature)
    total = exponentials.sum(dim=1)
    return torch.log(total) - (exponentials * shifted).sum(dim=1) / total


def energy(known: Tensor, temperature: float) -> Tensor:
    """-T log sum exp(z / T)."""
    _, exponentials = _shifted(known, temperature)
    return -(known.amax(dim=1) + temperature * torch.log(exponentials.sum(dim=1)))


def void(known: Tensor, void_logit: Tensor, temperature: float) -> Tensor:
    """Probability of the void class.

    1 / (1 + sum exp(z - z_void)): an overflow gives 1 / inf = 0, which is what such a probability rounds to.
    """
    differences = _scaled(known - void_logit.unsqueeze(1), temperature)
    return 1.0 / (1.0 + torch.exp(differences).sum(dim=1))


def _shifted(known: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return (z - max z) / T and its exponential."""
    shifted = _scaled(known - known.amax(dim=1, keepdim=True), temperature)
    return shifted, torch.exp(shifted)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature
