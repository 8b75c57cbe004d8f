"""The channels of a network that must be removed together, from torch-pruning's graph (DepGraph, Fang et al. 2023).

Sums, products, concatenations and max-unpooling couple channels: a channel that leaves one layer leaves all layers it
is coupled with. A *class* is a set of channels that are coupled with the same places. Each class loses the same share.
Without classes, one layer of a network whose stages share channels (ENet, ERFNet) could lose all of its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from anomseg_ros.errors import CompressionError
from anomseg_ros.networks.enet import ENet
from anomseg_ros.networks.network import AuxiliarySegmentationNetwork, SegmentationNetwork

TRACED_PX = 64
"""Height and width of the traced image: a multiple of every network's stride."""

Place = tuple[nn.Module, bool]
"""A layer, and whether the channels are its outputs (else its inputs)."""


@dataclass(frozen=True)
class ChannelClass:
    """Channels that are coupled with the same places.

    indices: outputs of the root. importances: squared L2 norm of all weights of each. carriers: the layers that carry
    them; owner, owner_width: the narrowest one. places: number of inputs and outputs of layers. alike: number of runs
    of channels that must keep equal lengths, 1 for no such rule.
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
    """A network that can be traced: a layer gives its images, and every head runs."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        # Without it the graph does not see images that are concatenated with features (ERFNet, ENet).
        self.pixels = nn.Conv2d(3, 3, 1)
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: float32 (N, 3, H, W)."""
        features = self.pixels(images)
        if isinstance(self.network, AuxiliarySegmentationNetwork) and self.network.auxiliary_heads:
            return self.network.compute_with_auxiliary(features)
        return tuple(self.network.compute(features)[0].values())


class CoupledChannels:
    """The dependency graph of one network. The groups that it returns prune the network in place."""

    def __init__(self, network: SegmentationNetwork) -> None:
        """Trace the network in evaluation mode. Raises CompressionError where nothing can be removed."""
        _require_narrow_layers(network)
        self._network = network.eval().requires_grad_(True)
        traced = Traced(self._network)
        self._replaced = _replace_resizing(self._network)
        images = torch.zeros(1, 3, TRACED_PX, TRACED_PX)
        self._graph = torch_pruning.DependencyGraph().build_dependency(traced, images)
        self._names = {module: name for name, module in traced.named_modules()}
        # Images and classes are given; auxiliary heads are used in training alone.
        self._unprunable = {traced.pixels, network.classifier_layer, *network.auxiliary_heads.modules()}
        self.classes = tuple(self._find_classes())
        if not self.classes:
            raise CompressionError(f"network {network.name!r} has no channels that could be removed; nothing to prune")

    def group(self, root: nn.Module, indices: Sequence[int]) -> Any:
        """Return torch-pruning's Group of outputs of a layer and all that they are coupled with."""
        return self._graph.get_pruning_group(root, torch_pruning.prune_conv_out_channels, sorted(indices))

    def finish(self) -> SegmentationNetwork:
        """Return the network with its own blocks again."""
        for block in self._replaced:
            for name in ("forward", "carry", "widen"):
                if name in block.__dict__ or name in block._modules:
                    delattr(block, name)
        return self._network

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
        """Split the outputs of a root by what they are coupled with; leave out those that must stay."""
        classes: dict[frozenset[Place], list[int]] = {}
        for index, coupled_with in places.items():
            classes.setdefault(frozenset(coupled_with), []).append(index)
        for coupled, indices in classes.items():
            if any(self._must_stay(module, out) for module, out in coupled):
                continue
            # A normalisation is as wide as the features; a convolution may give a part of a concatenation.
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
        # The groups of a convolution that expands each channel into several could only be removed as a whole.
        grouped = isinstance(module, _ConvNd) and 1 < module.groups < module.out_channels
        return (out and module in self._unprunable) or (grouped and not out)


def _require_narrow_layers(network: SegmentationNetwork) -> None:
    """Raise CompressionError for layers that cannot be narrowed: those of transformers, and some convolutions.

    ESPNetv2 has convolutions with several inputs per group. They would have to lose as many inputs of every group, on
    both sides of sums that span the whole network.
    """
    for key, _ in network.named_parameters():
        module = network.get_submodule(key.rpartition(".")[0])
        if not isinstance(module, (_ConvNd, nn.BatchNorm2d, nn.PReLU)):
            raise CompressionError(
                f"network {network.name!r} has {key} in a layer of kind {type(module).__name__}, which structured "
                "pruning cannot narrow; use the `method` unstructured or masked"
            )
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd) and 1 < module.groups < module.in_channels:
            raise CompressionError(
                f"network {network.name!r} joins {module.in_channels} channels in {module.groups} groups ({name}), "
                "which structured pruning cannot narrow; use the `method` unstructured or masked"
            )


def _squared_norms(module: nn.Module, out: bool, channels: list[int]) -> list[float]:
    """Return the squared L2 norm of the weights of each output channel of a layer, or each input channel."""
    weight = getattr(module, "weight", None)
    grouped = isinstance(module, _ConvNd) and module.groups > 1
    if weight is None or isinstance(module, nn.PReLU) or (grouped and not out):
        return [0.0] * len(channels)  # slopes are no magnitudes; inputs of a grouped convolution have no weights alone
    if isinstance(module, _ConvNd) and not grouped and out == isinstance(module, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    norms = weight.detach().reshape(weight.shape[0], -1).square().sum(1)
    return [float(value) for value in norms[channels]]


def _replace_resizing(network: SegmentationNetwork) -> list[nn.Module]:
    """Replace the forwards of ENet's resizing blocks by ones with the same couplings that the graph understands.

    Padding with zeros becomes a concatenation with a layer's outputs. Unpooling becomes a product with the features
    whose maxima decide where values go. Returns the blocks.
    """
    if not isinstance(network, ENet):
        return []
    downs: list[Any] = [network.down1, network.down2]
    for block in downs:
        before, after = block.reduce.conv.in_channels, block.expand.conv.out_channels
        block.carry = nn.Conv2d(before, before, 1, groups=before, bias=False)
        block.widen = nn.Conv2d(before, after - before, 1, bias=False)
        for layer in (block.carry, block.widen):
            nn.init.zeros_(layer.weight)  # adds nothing to the importance of its channels
        block.forward = _downsampling(block)
    ups: list[Any] = [network.up4, network.up5]
    for up in ups:
        up.forward = _upsampling(up)
    return [*downs, *ups]


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
