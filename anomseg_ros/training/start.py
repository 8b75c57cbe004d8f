"""The network at the start of a run: fresh, or with weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from anomseg_ros.errors import CheckpointError, ConfigError, closest_first
from anomseg_ros.networks import NETWORKS, build_network
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork, StagedMaskNetwork
from anomseg_ros.networks.widths import fit_widths, pruned_description

if TYPE_CHECKING:
    from anomseg_ros.training.config import InitialConfig, NetworkConfig

KEEP_ZEROS = "keep_zeros"
"""Key of a checkpoint's metadata: whether training keeps weights of 0 at 0, as after pruning."""


def start_network(
    config: NetworkConfig, num_classes: int, seed: int, checkpoint: Path | None, known_classes: int
) -> SegmentationNetwork:
    """Return the network in training mode, with weights drawn from `seed` or read from `checkpoint`.

    Args:
        config: the network's configuration.
        num_classes: outputs of the network.
        seed: of fresh weights.
        checkpoint: file of config.initial, None without it.
        known_classes: outputs of the checkpoint if config.initial.num_classes is None.

    Raises:
        ConfigError: the network does not have the options.
        CheckpointError: the weights do not fit.
    """
    torch.manual_seed(seed)
    options = dict(config.options)
    try:
        network = build_network(config.name, num_classes, **options)
    except TypeError as error:
        raise ConfigError(f"network.options {options!r} do not fit {config.name}: {error}") from None
    network.set_normalisation(config.mean, config.std)
    if config.backbone != "none":
        from anomseg_ros.training.backbones import load_imagenet_backbone

        load_imagenet_backbone(network, config.backbone)
    if config.initial is not None and checkpoint is not None:
        _take_initial(network, config.initial, checkpoint, config.initial.num_classes or known_classes)
    if config.trained == "classifier":
        network.requires_grad_(False)
        network.classifier_layer.requires_grad_(True)
    for name in config.frozen:
        submodule(network, name, "network.frozen").requires_grad_(False)
    return network.train()


def _take_initial(network: SegmentationNetwork, initial: InitialConfig, checkpoint: Path, classes: int) -> None:
    """Copy the weights of a checkpoint that has this number of classes."""
    encoder_only = initial.part == "encoder" and isinstance(network, StagedMaskNetwork)
    name = network.name if encoder_only else _source_name(network, initial.part)
    source = load_checkpoint(checkpoint, name, classes, encoder_only=encoder_only)
    if (source.mean, source.std) != (network.mean, network.std):
        raise CheckpointError(
            f"{checkpoint} was trained with mean {source.mean} and std {source.std}, not {network.mean} and "
            f"{network.std}; set network.mean and network.std to its values"
        )
    if initial.part in ("all", "features"):
        _take_widths(network, source)
        _take_all(network, source, initial.part == "features")
    elif isinstance(network, StagedMaskNetwork) and encoder_only:
        _take_parameters(network, source, network.encoder_parts)
    else:
        _take_part(network, source, initial.part)
    if source.checkpoint_metadata.get(KEEP_ZEROS):
        keep_zeros(network)


def submodule(network: nn.Module, name: str, key: str) -> nn.Module:
    """Return a part of a network by its name; otherwise raise ConfigError, which names the configuration's `key`."""
    try:
        return network.get_submodule(name)
    except AttributeError:
        closest = ", ".join(closest_first(name, [part for part, _ in network.named_modules() if part])[:5])
        raise ConfigError(f"{key} names {name!r}, which is no part of the network; the closest: {closest}") from None


def keep_zeros(network: nn.Module) -> None:
    """Block the gradients of convolution weights that are 0, so that the optimizers keep them at 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            weight.register_hook(lambda gradient, weight=weight: gradient * (weight != 0))  # type: ignore[no-untyped-call]


def set_training_mode(network: nn.Module, frozen_norms: bool = False) -> None:
    """Put a network into training mode and its frozen parts, with norms and dropouts, into evaluation mode.

    In training mode, a frozen norm would still adapt its mean and variance. frozen_norms: whether all norms keep their
    mean and variance.
    """
    network.train()
    for module in network.modules():
        if frozen_norms and isinstance(module, nn.BatchNorm2d):
            module.eval()
        parameters = list(module.parameters())
        holds_something = bool(parameters) or next(module.buffers(), None) is not None
        if holds_something and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _take_widths(network: SegmentationNetwork, source: SegmentationNetwork) -> None:
    """Narrow a network to the widths of a pruned `source`."""
    pruned = pruned_description(source)
    if pruned is None:
        return
    if network.auxiliary_heads and not source.auxiliary_heads:
        raise CheckpointError(
            f"the initial weights are those of a pruned {source.name} without auxiliary heads, which fit none; set "
            "network.options={auxiliary_heads: false} and loss.auxiliary_weight=0"
        )
    fit_widths(network, source.state_dict(), pruned["groups"])


def _take_all(network: SegmentationNetwork, source: SegmentationNetwork, features_only: bool) -> None:
    """Copy every weight. Further classes keep their fresh weights.

    features_only: do not copy the classifiers, because their classes are others.
    """
    ours, theirs = network.state_dict(), network.weights_of(source)
    if features_only:
        classifiers = (network.class_parameter[0].rpartition(".")[0] + ".", "auxiliary_heads.")
        ours, theirs = ({k: v for k, v in state.items() if not k.startswith(classifiers)} for state in (ours, theirs))
    missing = sorted(set(ours) - set(theirs)) + sorted(set(theirs) - set(ours))
    # Auxiliary heads are for training only, so either side may lack them.
    missing = [key for key in missing if not key.startswith("auxiliary_heads.")]
    if missing:
        raise CheckpointError(f"initial weights of {source.name} do not fit: {', '.join(missing[:3])}; check options")
    with torch.no_grad():
        for key, value in theirs.items():
            if key in ours:
                _copy(ours[key], value, key, network)


def _take_parameters(network: SegmentationNetwork, source: SegmentationNetwork, parts: tuple[str, ...]) -> None:
    """Copy the weights whose names begin with one of `parts`."""
    ours, theirs = network.state_dict(), network.weights_of(source)
    keys = [key for key in ours if key.startswith(parts)]
    others = sorted(set(keys) ^ {key for key in theirs if key.startswith(parts)})
    if others:
        raise CheckpointError(f"initial weights of {source.name} do not fit: {', '.join(others[:3])}; check options")
    with torch.no_grad():
        for key in keys:
            _copy(ours[key], theirs[key], key, network)


def _copy(ours: torch.Tensor, theirs: torch.Tensor, key: str, network: SegmentationNetwork) -> None:
    """Copy a weight. One of fewer classes fills the first ones; outputs that are no class stay the last."""
    if ours.shape == theirs.shape:
        ours.copy_(theirs)
        return
    grown = [d for d, (a, b) in enumerate(zip(ours.shape, theirs.shape, strict=False)) if a != b]
    dimension = grown[0] if len(grown) == 1 and ours.dim() == theirs.dim() else None
    outputs = 0 if dimension is None else ours.shape[dimension]
    if dimension is None or network.class_count(outputs, network.options()) != network.num_classes:
        raise _misshapen(ours, theirs, key)
    others = outputs - network.num_classes
    classes = theirs.shape[dimension] - others
    is_classifier = key.startswith(network.class_parameter[0].rpartition(".")[0] + ".")
    if not 0 <= classes <= network.num_classes or (others and not is_classifier):
        raise _misshapen(ours, theirs, key)
    ours.narrow(dimension, 0, classes).copy_(theirs.narrow(dimension, 0, classes))
    ours.narrow(dimension, network.num_classes, others).copy_(theirs.narrow(dimension, classes, others))


def _misshapen(ours: torch.Tensor, theirs: torch.Tensor, key: str) -> CheckpointError:
    return CheckpointError(f"initial weight {key} is {tuple(theirs.shape)}; {tuple(ours.shape)} is needed")


def _source_name(network: SegmentationNetwork, part: str) -> str:
    """Return the network that a checkpoint must hold. A part may have its own network, such as erfnet_encoder."""
    if part in ("all", "features"):
        return network.name
    modules = dict(network.named_children())
    if part not in modules:
        options = ", ".join(closest_first(part, ["all", "features", *modules]))
        raise ConfigError(f"initial.part {part!r} is no part of {network.name}; known: {options}")
    network_of_part = f"{network.name}_{part}"
    return network_of_part if network_of_part in NETWORKS else network.name


def _take_part(network: SegmentationNetwork, source: SegmentationNetwork, part: str) -> None:
    """Copy one submodule strictly from a network that also has it."""
    try:
        network.get_submodule(part).load_state_dict(source.get_submodule(part).state_dict(), strict=True)
    except (AttributeError, RuntimeError) as error:
        raise CheckpointError(f"initial weights of {source.name} hold no {part!r} that fits: {error}") from error
