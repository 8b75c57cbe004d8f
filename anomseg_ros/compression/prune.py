"""Prune a network by one of three methods.

structured      channels are removed (structured.py): fewer parameters, less time.
unstructured    single weights of least L1 norm become 0 (paper PTQ, section 4.5): all sizes and the time stay.
masked          filters of least L2 norm become 0 (paper MiDE, section 3.5): the papers' structured pruning.

The zeros are permanent: no mask remains, and fine-tuning keeps them (training/start.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import prune as torch_prune

from anomseg_ros.compression.convolutions import convolutions_of
from anomseg_ros.compression.structured import OF, ROUND_TO, prune_structured, require_fraction
from anomseg_ros.core.types import Cost
from anomseg_ros.errors import CompressionError, unknown_name
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.training.start import KEEP_ZEROS

STRUCTURED, UNSTRUCTURED, MASKED = METHODS = ("structured", "unstructured", "masked")
SCOPES = ("global", "layer")


@dataclass(frozen=True)
class PruneConfig:
    """How to prune. fraction: in (0, 1).

    of, round_to: of the structured method; see prune_structured. scope: of the unstructured method: "global" zeroes the
    smallest weights of all layers together, "layer" those of each layer.
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
        """Return a description in one line."""
        share = f"{100 * self.fraction:g} %"
        if self.method == UNSTRUCTURED:
            each = "all convolutions together" if self.scope == "global" else "each convolution"
            return f"pruned, L1 unstructured: {share} of the weights of {each} are 0"
        if self.method == MASKED:
            return f"pruned, L2 masked: {share} of the filters of each convolution are 0, none is removed"
        what = "channels of each layer" if self.of == "channels" else "multiply-adds"
        return f"pruned, L2 structured: about {share} of the {what} removed"


def prune(network: SegmentationNetwork, config: PruneConfig, size_px: tuple[int, int]) -> SegmentationNetwork:
    """Return a pruned copy of a network, in evaluation mode. size_px: (height, width) for counting multiply-adds.

    Raises CompressionError where there is nothing to prune.
    """
    if not _convolutions(network):
        raise CompressionError(f"network {network.name!r} has no convolution but its classifier; nothing to prune")
    if config.method == STRUCTURED:
        return prune_structured(network, config.fraction, of=config.of, round_to=config.round_to, size_px=size_px)
    pruned = copy.deepcopy(network).eval()
    if config.method == UNSTRUCTURED:
        _zero_weights(_convolutions(pruned, classifier=True), config)
    else:
        for layer in _convolutions(pruned):
            torch_prune.ln_structured(layer, "weight", round(config.fraction * layer.out_channels), n=2, dim=0)  # type: ignore[no-untyped-call]
            torch_prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    return pruned


def checkpoint_metadata(config: PruneConfig) -> dict[str, Any]:
    """Return the metadata of a pruned checkpoint: a description, and whether fine-tuning must keep the zeros."""
    return {"pruned": config.words(), KEEP_ZEROS: config.method != STRUCTURED}


def estimated_time_ratio(before: Cost, after: Cost) -> float:
    """Return the ESTIMATE of the time after unstructured pruning that papers report, as a share of the time before.

    It is the share of multiply-adds whose weight is not 0. Tables 4 to 6 of paper PTQ "estimate" times in this way
    ("the potential inference time reduction that an optimized sparse runtime would bring", section 4.5). Its ERFNet
    takes 0.0420 s, and 0.0220 s with half of the weights, since the pruned layers have 96 % of its multiply-adds. The
    dense kernels of all backends here save nothing.
    """
    return after.effective_multiply_adds / before.multiply_adds


def _convolutions(network: SegmentationNetwork, classifier: bool = False) -> list[nn.Conv2d]:
    """Return the Conv2d layers that inference uses; like the papers, without transposed ones.

    classifier: include the layer that gives the classes.
    """
    return [
        layer
        for layer in convolutions_of(network).values()
        if isinstance(layer, nn.Conv2d) and (classifier or layer is not network.classifier_layer)
    ]


def _zero_weights(layers: Sequence[nn.Conv2d], config: PruneConfig) -> None:
    if config.scope == "global":
        total = sum(layer.weight.numel() for layer in layers)
        # A number of weights, not a share: torch treats 1.0 and 1 differently.
        torch_prune.global_unstructured(
            [(layer, "weight") for layer in layers], torch_prune.L1Unstructured, amount=round(config.fraction * total)
        )
    for layer in layers:
        if config.scope == "layer":
            torch_prune.l1_unstructured(layer, "weight", round(config.fraction * layer.weight.numel()))  # type: ignore[no-untyped-call]
        torch_prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
