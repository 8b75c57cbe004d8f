"""Pruning of a network by one of three methods, and what it saves.

structured      channels are removed (structured.py): fewer parameters, less time.
unstructured    L1, single weights become 0 (paper PTQ, section 4.5): all sizes, and the time, stay as they are.
masked          L2, filters become 0 (paper MiDE, section 3.5): the papers' structured pruning, for their tables.

Zeros are for good: no mask is left, and fine-tuning keeps them (training/start.py).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import prune as torch_prune

from anomseg_ros.compression.cost import Cost
from anomseg_ros.compression.structured import OF, ROUND_TO, prune_structured, require_fraction
from anomseg_ros.errors import CompressionError, unknown_name
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.training.start import KEEP_ZEROS

STRUCTURED, UNSTRUCTURED, MASKED = METHODS = ("structured", "unstructured", "masked")
SCOPES = ("global", "layer")


@dataclass(frozen=True)
class PruneConfig:
    """How to prune. fraction: in (0, 1).

    Structured only: `of`, what the fraction is a share of; round_to, see prune_structured. Unstructured only: `scope`,
    whether the smallest weights are those of all layers together, or of each layer.
    """

    method: str = STRUCTURED
    fraction: float = 0.3
    of: str = OF[0]
    round_to: int = ROUND_TO
    scope: str = SCOPES[0]

    def __post_init__(self) -> None:
        """Raise CompressionError for unknown choices and a fraction out of range."""
        for name, options in (("method", METHODS), ("of", OF), ("scope", SCOPES)):
            if getattr(self, name) not in options:
                raise CompressionError(unknown_name(name, getattr(self, name), options))
        require_fraction(self.fraction)
        if self.round_to < 1:
            raise CompressionError(f"round_to {self.round_to!r}: expected 1 (any width) or more, such as 8")

    def words(self) -> str:
        """Return what is done, in one line for people."""
        share = f"{100 * self.fraction:g} %"
        if self.method == UNSTRUCTURED:
            each = "all convolutions together" if self.scope == "global" else "each convolution"
            return f"pruned, L1 unstructured: {share} of the weights of {each} are 0"
        if self.method == MASKED:
            return f"pruned, L2 masked: {share} of the filters of each convolution are 0, none is removed"
        what = "channels of each layer" if self.of == "channels" else "multiply-adds"
        return f"pruned, L2 structured: about {share} of the {what} removed"


def prune(network: SegmentationNetwork, config: PruneConfig, size_px: tuple[int, int]) -> SegmentationNetwork:
    """Return a pruned copy of a network, in evaluation mode. size_px: (height, width) that multiply-adds are of.

    Raises CompressionError where there is nothing to prune.
    """
    layers = _convolutions(network)
    if not layers:
        raise CompressionError(f"network {network.name!r} has no convolution but its classifier; nothing to prune")
    if config.method == STRUCTURED:
        return prune_structured(network, config.fraction, of=config.of, round_to=config.round_to, size_px=size_px)
    pruned = copy.deepcopy(network).eval()
    if config.method == UNSTRUCTURED:
        _zero_weights(_convolutions(pruned, classifier=True), config)
    else:
        _zero_filters(_convolutions(pruned), config.fraction)
    return pruned


def checkpoint_metadata(config: PruneConfig) -> dict[str, Any]:
    """Return what a checkpoint says of its pruning: what was done, and whether fine-tuning has to keep zeros."""
    return {"pruned": config.words(), KEEP_ZEROS: config.method != STRUCTURED}


def estimated_time_ratio(before: Cost, after: Cost) -> float:
    """Return the ESTIMATE that papers report as the time after unstructured pruning, as a share of the time before.

    Multiply-adds with weights other than 0 over all multiply-adds. Tables 4 to 6 of paper PTQ give times "estimated" in
    this way ("the potential inference time reduction that an optimized sparse runtime would bring", section 4.5): its
    ERFNet takes 0.0420 s, and at half of the weights 0.0220 s, since 96 % of its multiply-adds are in the layers that
    are pruned. Dense kernels, which every backend here has, save nothing.
    """
    return after.effective_multiply_adds / before.multiply_adds


def zero_share(network: SegmentationNetwork) -> float:
    """Return the share of zeros among the weights of the convolutions that inference uses."""
    weights = [layer.weight for layer in _convolutions(network, classifier=True).values()]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def _convolutions(network: SegmentationNetwork, classifier: bool = False) -> dict[str, nn.Conv2d]:
    """Return the Conv2d layers that inference uses, as the papers prune them: transposed ones stay as they are.

    classifier: with the one that gives the classes.
    """
    last = network.class_parameter[0].rpartition(".")[0]
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and not name.startswith("auxiliary_heads.") and (classifier or name != last)
    }


def _zero_weights(layers: Mapping[str, nn.Conv2d], config: PruneConfig) -> None:
    if config.scope == "global":
        total = sum(layer.weight.numel() for layer in layers.values())
        # A number of weights, not a share: torch takes 1.0 and 1 for different things.
        torch_prune.global_unstructured(
            [(layer, "weight") for layer in layers.values()],
            torch_prune.L1Unstructured,
            amount=round(config.fraction * total),
        )
    for layer in layers.values():
        if config.scope == "layer":
            torch_prune.l1_unstructured(layer, "weight", round(config.fraction * layer.weight.numel()))  # type: ignore[no-untyped-call]
        torch_prune.remove(layer, "weight")  # type: ignore[no-untyped-call]


def _zero_filters(layers: Mapping[str, nn.Conv2d], fraction: float) -> None:
    for layer in layers.values():
        torch_prune.ln_structured(layer, "weight", round(fraction * layer.out_channels), n=2, dim=0)  # type: ignore[no-untyped-call]
        torch_prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
