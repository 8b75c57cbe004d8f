"""A layout: which key of a published checkpoint holds which of our parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from anomseg_ros.networks.network import NO_MEAN, NO_STD

State = dict[str, Tensor]
"""Parameter name -> tensor."""

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
"""Regular expressions and their replacements, applied one after the other to our key."""


@dataclass(frozen=True)
class Layout:
    """One published implementation of one of our networks."""

    name: str
    network: str
    published_key: Callable[[str], str]  # our parameter's name -> the published one
    options: Mapping[str, Any] = field(default_factory=dict)
    """Constructor arguments that make our network compute what the published one does."""
    unused: tuple[str, ...] = ()  # published keys that a file may hold and that inference does not use
    mean: tuple[float, float, float] = NO_MEAN
    std: tuple[float, float, float] = NO_STD
    quantized: bool = False  # the checkpoint holds quantized tensors
    prepare: Callable[[State], State] = dict  # converts the published state to the keys that `published_key` gives
    fresh: tuple[str, ...] = ()
    """Beginnings of our names of the parts that a pretrained encoder's file does not hold; none for whole networks."""
    read_options: Callable[[State], Mapping[str, Any]] | None = None
    """Reads further constructor arguments off the prepared state, where one layout has networks of several sizes."""
    pruned_groups: Mapping[str, int] | None = None
    """Groups of a pruned network's grouped convolutions; its widths are those of its weights. None: not pruned."""
    note: str | None = None
    """What whoever loads such a file should know; it is logged."""

    def options_of(self, state: State) -> dict[str, Any]:
        """Return the constructor's arguments for a prepared state."""
        return {**self.options, **(self.read_options(state) if self.read_options else {})}


def by_rules(rules: Rules) -> Callable[[str], str]:
    """Return the function from our key to the published one that a table of rules describes."""

    def published_key(key: str) -> str:
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        return key

    return published_key
