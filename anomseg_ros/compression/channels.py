"""Which channels of a network must go together, found by torch-pruning's dependency graph (DepGraph, Fang et al. 2023).

Channels are coupled by sums, products, concatenations and max-unpooling: a channel that leaves one layer leaves all
that it is coupled with. A *class* is a set of channels that are coupled with the same places; from each class the same
share is removed. Without classes one layer of a network whose stages share channels (ENet, ERFNet) could lose all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from anomseg_ros.errors import CompressionError
from anomseg_ros.networks.base import AuxiliarySegmentationNetwork, SegmentationNetwork
from anomseg_ros.networks.enet import ENet

TRACED_PX = 64
"""Height and width of the image that the graph is traced with: a multiple of every network's stride."""

Place = tuple[nn.Module, bool]
"""A layer, and whether channels come out of it (else: go into it)."""


@dataclass(frozen=True)
class ChannelClass:
    """Channels that are coupled with the same places.

    indices: of the root's outputs. importances: squared L2 norm of all weights of each. owner: the narrowest layer that
    carries them, and its width; carriers: all of these; places: how many layers they come out of or go into. alike: in
    how many runs of equal length they must stay, 1 for no such rule.
    """

    root: nn.Module
    indices: tuple[int, ...]
    importances: tuple[float, ...]
    owner: str
    owner_width: int
    carriers: tuple[str, ...]
    places: int
    alike: int = 1


class Traced(nn.Module):
    """A network in the form that can be traced: its images come out of a layer, and every head is run."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        # Images that are concatenated with features (ERFNet, ENet) would else be invisible to the graph.
        self.pixels = nn.Conv2d(3, 3, 1)
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: float32 (N, 3, H, W)."""
        features = self.pixels(images)
        if isinstance(self.network, AuxiliarySegmentationNetwork) and self.network.auxiliary_heads:
            return self.network.classify_with_auxiliary(features)
        return (self.network.classify(features),)


class CoupledChannels:
    """The dependency graph of one network, which `remove` prunes in place."""

    def __init__(self, network: SegmentationNetwork) -> None:
        """Trace the network, in evaluation mode. Raises CompressionError where nothing can be removed."""
        _require_no_joining_groups(network)
        self._network = network.eval().requires_grad_(True)
        traced = Traced(self._network)
        self._disguises = _disguise(self._network)
        images = torch.zeros(1, 3, TRACED_PX, TRACED_PX)
        self._graph = torch_pruning.DependencyGraph().build_dependency(traced, images)
        self._names = {module: name for name, module in traced.named_modules()}
        self._kept = self._unprunable(traced)
        self.classes = tuple(self._find_classes())
        if not self.classes:
            raise CompressionError(f"network {network.name!r} has no channels that could be removed; nothing to prune")

    def remove(self, root: nn.Module, indices: list[int]) -> None:
        """Remove outputs of a layer and what they are coupled with."""
        group = self._graph.get_pruning_group(root, torch_pruning.prune_conv_out_channels, sorted(indices))
        group.prune()

    def places_of(self, root: nn.Module, indices: list[int]) -> list[tuple[str, bool, list[int]]]:
        """Return (name below Traced, whether they come out of it, channels) of each layer that has these outputs."""
        group = self._graph.get_pruning_group(root, torch_pruning.prune_conv_out_channels, sorted(indices))
        return [
            (
                self._names.get(item.dep.target.module, ""),
                self._graph.is_out_channel_pruning_fn(item.dep.handler),
                sorted(item.idxs),
            )
            for item in group
        ]

    def finish(self) -> SegmentationNetwork:
        """Return the network, as it was but for its widths."""
        for module, extra in self._disguises:
            del module.forward
            for name in extra:
                delattr(module, name)
        return self._network

    def _unprunable(self, traced: Traced) -> set[nn.Module]:
        """Return layers whose outputs are given: images, classes, and all of the heads that only training uses."""
        network = self._network
        return {
            traced.pixels,
            network.get_submodule(network.class_parameter[0].rpartition(".")[0]),
            *network.auxiliary_heads.modules(),
        }

    def _find_classes(self) -> Iterator[ChannelClass]:
        for group in self._graph.get_all_groups(root_module_types=[_ConvNd]):
            root = group[0].dep.target.module
            values = [0.0] * len(group[0].idxs)
            places: dict[int, set[Place]] = {index: set() for index in range(len(values))}
            for item in group:
                module = item.dep.target.module
                out = self._graph.is_out_channel_pruning_fn(item.dep.handler)
                for index, norm in zip(item.root_idxs, _squared_norms(module, out, item.idxs), strict=True):
                    places[index].add((module, out))
                    values[index] += norm
            yield from self._split(root, values, places)

    def _split(self, root: nn.Module, values: list[float], places: dict[int, set[Place]]) -> Iterator[ChannelClass]:
        """Split the outputs of a root by what they are coupled with; leave out those that have to stay."""
        alike: dict[frozenset[Place], list[int]] = {}
        for index, found in places.items():
            alike.setdefault(frozenset(found), []).append(index)
        for coupled, indices in alike.items():
            if any(self._must_stay(module, out) for module, out in coupled):
                continue
            # A normalisation is as wide as the features; a convolution may give only a part of what is concatenated.
            norms: list[nn.Module] = [module for module, _ in coupled if isinstance(module, _BatchNorm)]
            carriers = norms or [root]
            owner = min(carriers, key=self._graph.get_out_channels)
            runs = [m.groups for m, out in coupled if out and isinstance(m, _ConvNd) and 1 < m.groups < m.out_channels]
            yield ChannelClass(
                root,
                tuple(indices),
                tuple(values[index] for index in indices),
                self._names[owner],
                self._graph.get_out_channels(owner),
                tuple(self._names[module] for module in carriers),
                len(coupled),
                runs[0] if runs else 1,
            )

    def _must_stay(self, module: nn.Module, out: bool) -> bool:
        # A convolution that expands each channel into several has groups that would have to go as a whole.
        grouped = isinstance(module, _ConvNd) and 1 < module.groups < module.out_channels
        return (out and module in self._kept) or (grouped and not out)


def _require_no_joining_groups(network: SegmentationNetwork) -> None:
    """Raise CompressionError for a convolution in groups of several inputs each, as ESPNetv2's are.

    A group would have to lose as many inputs as every other one, on both sides of sums that run through the network.
    """
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd) and 1 < module.groups < module.in_channels:
            raise CompressionError(
                f"network {network.name!r} joins {module.in_channels} channels in {module.groups} groups ({name}), "
                "which structured pruning cannot narrow; give --method unstructured or masked"
            )


def _squared_norms(module: nn.Module, out: bool, channels: list[int]) -> list[float]:
    """Return the squared L2 norm of the weights that each of a layer's output (or input) channels has."""
    weight = getattr(module, "weight", None)
    grouped = isinstance(module, _ConvNd) and module.groups > 1
    if weight is None or isinstance(module, nn.PReLU) or (grouped and not out):
        return [0.0] * len(channels)  # slopes are no magnitudes; inputs of a grouped convolution have no weights alone
    if isinstance(module, _ConvNd) and not grouped and out == isinstance(module, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    norms = weight.detach().reshape(weight.shape[0], -1).square().sum(1)
    return [float(value) for value in norms[channels]]


def _disguise(network: SegmentationNetwork) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """Give ENet's resizing blocks forwards of the same couplings whose operations the graph understands.

    Padding with zeros becomes a concatenation with a layer's outputs; unpooling becomes a product with the features
    whose maxima decide where values go. Returns the blocks and the names of what was added to each.
    """
    if not isinstance(network, ENet):
        return []
    blocks: list[Any] = [network.down1, network.down2]
    for block in blocks:
        before, after = block.reduce.conv.in_channels, block.expand.conv.out_channels
        block.carry = nn.Conv2d(before, before, 1, groups=before, bias=False)
        block.widen = nn.Conv2d(before, after - before, 1, bias=False)
        for layer in (block.carry, block.widen):
            nn.init.zeros_(layer.weight)  # adds nothing to what its channels are worth
        block.forward = _downsampling(block)
    ups: list[Any] = [network.up4, network.up5]
    for up in ups:
        up.forward = _upsampling(up)
    added = ("carry", "widen")
    return [(network.down1, added), (network.down2, added), (network.up4, ()), (network.up5, ())]


def _downsampling(block: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def forward(features: Tensor) -> tuple[Tensor, Tensor]:
        pooled = F.max_pool2d(features, 2)
        shortcut = torch.cat((block.carry(pooled), block.widen(pooled)), 1)
        return block._add(features, shortcut), pooled

    return forward


def _upsampling(block: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def forward(features: Tensor, pooled: Tensor) -> Tensor:
        values = block.shortcut(features) * pooled
        return cast(Tensor, block._add(features, F.interpolate(values, scale_factor=2.0, mode="nearest")))

    return forward
