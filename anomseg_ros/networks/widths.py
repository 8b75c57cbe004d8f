"""Pruned networks, which are narrower than in their papers, built from the shapes of their weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anomseg_ros.networks import build_network
from anomseg_ros.networks.network import SegmentationNetwork

CLASSIFIER = "classifier"
"""The last part of the name of every layer whose outputs are the classes."""


def pruned_description(network: SegmentationNetwork) -> dict[str, Any] | None:
    """Return a checkpoint's description of a pruned network; None if the widths are those of the paper.

    It holds the groups of each grouped convolution, the only part of a width that shapes do not tell.
    """
    with torch.device("meta"):
        full = build_network(network.name, network.num_classes, **network.options())
    shapes = {key: value.shape for key, value in full.state_dict().items()}
    if all(value.shape == shapes.get(key) for key, value in network.state_dict().items()):
        return None
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    return {"groups": {name: module.groups for name, module in convolutions.items() if module.groups > 1}}


def fit_widths(network: SegmentationNetwork, state: Mapping[str, Tensor], groups: Mapping[str, int]) -> None:
    """Narrow each layer whose weights in `state` are narrower.

    Kernel sizes and the number of classes stay: a state that differs in these still does not fit. groups: those of
    `pruned_description`.
    """
    for name, module in list(network.named_modules()):
        weight = state.get(f"{name}.weight")
        if weight is None or weight.dim() != getattr(module, "weight", weight).dim():
            continue
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            _fit_convolution(
                module, tuple(weight.shape), int(groups.get(name, module.groups)), name.split(".")[-1] == CLASSIFIER
            )
        elif isinstance(module, nn.BatchNorm2d):
            _fit_norm(module, len(weight))
        elif isinstance(module, nn.PReLU):
            module.num_parameters = len(weight)
            _narrow(module, "weight", (len(weight),))


def widths_are_consistent(network: SegmentationNetwork) -> bool:
    """Return whether each layer takes as many channels as the one before gives. Only shapes are computed."""
    size = 2 * network.stride
    twin = copy.deepcopy(network).to("meta").eval()
    try:
        with torch.no_grad():
            twin(torch.empty(1, 3, size, size, device="meta"))
    except RuntimeError:
        return False
    return True


def _fit_convolution(
    layer: nn.Conv2d | nn.ConvTranspose2d, shape: tuple[int, ...], groups: int, classifier: bool
) -> None:
    transposed = isinstance(layer, nn.ConvTranspose2d)
    outputs, inputs = (shape[1] * groups, shape[0]) if transposed else (shape[0], shape[1] * groups)
    if classifier:
        outputs = layer.out_channels
    layer.in_channels, layer.out_channels, layer.groups = inputs, outputs, groups
    first, second = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    _narrow(layer, "weight", (first, second, *layer.kernel_size))
    if layer.bias is not None:
        _narrow(layer, "bias", (outputs,))


def _fit_norm(layer: nn.BatchNorm2d, width: int) -> None:
    layer.num_features = width
    for name in ("weight", "bias"):
        _narrow(layer, name, (width,))
    for name in ("running_mean", "running_var"):
        layer.register_buffer(name, layer.get_buffer(name)[:width].clone())


def _narrow(layer: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Keep the first values of a parameter. Values that are not loaded later, such as a new classifier's, stay random.

    A parameter is never widened: wider weights do not fit.
    """
    values = layer.get_parameter(name).detach()
    for dimension, size in enumerate(shape):
        values = values.narrow(dimension, 0, min(size, values.shape[dimension]))
    setattr(layer, name, nn.Parameter(values.clone()))
