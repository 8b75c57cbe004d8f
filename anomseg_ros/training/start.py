"""The network that a run starts from: fresh, from a checkpoint of as many or fewer classes, or with a trained part."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from anomseg_ros.errors import CheckpointError, ConfigError, closest_first
from anomseg_ros.networks import NETWORKS, network_class
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.widths import fit_widths, pruned_description
from anomseg_ros.training.config import NetworkConfig

KEEP_ZEROS = "keep_zeros"
"""Key of a checkpoint's metadata: whether weights that are 0 stay 0 in training, as pruning wants it."""


def start_network(
    config: NetworkConfig, num_classes: int, seed: int, checkpoint: Path | None, known_classes: int
) -> SegmentationNetwork:
    """Return the network in training mode, its first weights drawn from `seed` or taken from `checkpoint`.

    known_classes: what the checkpoint has where config.initial.num_classes does not say. Raises ConfigError for
    options that the network does not have and CheckpointError for weights that do not fit.
    """
    torch.manual_seed(seed)
    options = dict(config.options)
    try:
        network = network_class(config.name)(num_classes, **options)
    except TypeError as error:
        raise ConfigError(f"network.options {options!r} do not fit {config.name}: {error}") from None
    network.set_normalisation(config.mean, config.std)
    if config.backbone != "none":
        from anomseg_ros.training.backbones import load_imagenet_backbone

        load_imagenet_backbone(network, config.backbone)
    if config.initial is not None and checkpoint is not None:
        classes = config.initial.num_classes or known_classes
        source = load_checkpoint(checkpoint, _source_name(network, config.initial.part), classes)
        if (source.mean, source.std) != (network.mean, network.std):
            raise CheckpointError(
                f"{checkpoint} was trained with mean {source.mean} and std {source.std}, not {network.mean} and "
                f"{network.std}; set network.mean and network.std to its values"
            )
        if config.initial.part in ("all", "features"):
            _take_widths(network, source)
            _take_all(network, source, config.initial.part == "features")
        else:
            _take_part(network, source, config.initial.part)
        if source.checkpoint_metadata.get(KEEP_ZEROS):
            keep_zeros(network)
    if config.trained == "classifier":
        freeze_all_but_classifier(network)
    for name in config.frozen:
        submodule(network, name, "network.frozen").requires_grad_(False)
    return network.train()


def submodule(network: nn.Module, name: str, key: str) -> nn.Module:
    """Return a part of a network by its name; raise ConfigError, which names the configuration's key, for others."""
    try:
        return network.get_submodule(name)
    except AttributeError:
        known = ", ".join(closest_first(name, [known for known, _ in network.named_modules() if known])[:5])
        raise ConfigError(f"{key} names {name!r}, which is no part of the network; the closest: {known}") from None


def keep_zeros(network: nn.Module) -> None:
    """Let no gradient reach convolution weights that are 0, so that every optimizer here leaves them so."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            weight.register_hook(lambda gradient, weight=weight: gradient * (weight != 0))  # type: ignore[no-untyped-call]


def freeze_all_but_classifier(network: SegmentationNetwork) -> None:
    """Let gradients reach the last layer only (paper MiDE, section 4.3)."""
    last = network.class_parameter[0].rpartition(".")[0]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(last + "."))


def set_training_mode(network: nn.Module, frozen_norms: bool = False) -> None:
    """Put a network into training mode, but its frozen parts, with their norms and dropouts, into evaluation mode.

    A frozen norm would otherwise go on adapting its mean and variance, and the layer would not be frozen at all.
    frozen_norms: whether norms whose scale and shift learn keep their mean and variance, too.
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
    """Make a network as narrow as a pruned one whose weights it is to take."""
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
    """Copy every weight; class dimensions that grew keep their fresh weights for the new classes.

    features_only: leave the classifiers fresh, as their classes are others.
    """
    ours, theirs = network.state_dict(), source.state_dict()
    if features_only:
        classifiers = (network.class_parameter[0].rpartition(".")[0] + ".", "auxiliary_heads.")
        ours, theirs = ({k: v for k, v in state.items() if not k.startswith(classifiers)} for state in (ours, theirs))
    missing = sorted(set(ours) - set(theirs)) + sorted(set(theirs) - set(ours))
    # Auxiliary heads exist only in training; either side may lack them.
    missing = [key for key in missing if not key.startswith("auxiliary_heads.")]
    if missing:
        raise CheckpointError(f"initial weights of {source.name} do not fit: {', '.join(missing[:3])}; check options")
    with torch.no_grad():
        for key, value in theirs.items():
            if key in ours:
                _copy(ours[key], value, key, network.num_classes)


def _copy(ours: torch.Tensor, theirs: torch.Tensor, key: str, num_classes: int) -> None:
    if ours.shape == theirs.shape:
        ours.copy_(theirs)
        return
    grown = [d for d, (a, b) in enumerate(zip(ours.shape, theirs.shape, strict=True)) if a != b]
    if len(grown) != 1 or ours.shape[grown[0]] != num_classes or theirs.shape[grown[0]] > num_classes:
        raise CheckpointError(f"initial weight {key} is {tuple(theirs.shape)}; {tuple(ours.shape)} is needed")
    ours.narrow(grown[0], 0, theirs.shape[grown[0]]).copy_(theirs)


def _source_name(network: SegmentationNetwork, part: str) -> str:
    """Return the network that a checkpoint must hold: for a part the one that is made to train it, if there is one."""
    if part in ("all", "features"):
        return network.name
    modules = dict(network.named_children())
    if part not in modules:
        known = ", ".join(closest_first(part, ["all", "features", *modules]))
        raise ConfigError(f"initial.part {part!r} is no part of {network.name}; known: {known}")
    own = f"{network.name}_{part}"
    return own if own in NETWORKS else network.name


def _take_part(network: SegmentationNetwork, source: SegmentationNetwork, part: str) -> None:
    """Copy one submodule, whole and strictly, from a network that has it, too."""
    try:
        network.get_submodule(part).load_state_dict(source.get_submodule(part).state_dict(), strict=True)
    except (AttributeError, RuntimeError) as error:
        raise CheckpointError(f"initial weights of {source.name} hold no {part!r} that fits: {error}") from error
