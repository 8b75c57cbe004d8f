"""Fine-tune a pruned network with a training configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from anomseg_ros.compression.prune import PruneConfig, checkpoint_metadata
from anomseg_ros.compression.reexport import export_config_of
from anomseg_ros.core.bundle import Contract, sha256_of
from anomseg_ros.core.labels import known_classes, same_classes
from anomseg_ros.errors import CheckpointError, ConfigError
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.training.chain import ReportRun, find_config, train_chain
from anomseg_ros.training.config import InitialConfig, NetworkConfig, TrainConfig, load_config
from anomseg_ros.training.folder import clear_folder
from anomseg_ros.training.loop import open_sets

START_FILE = "pruned.safetensors"
"""The weights that fine-tuning starts with, in the run's folder."""


@dataclass(frozen=True)
class FineTune:
    """How to fine-tune.

    config: file or shipped name of a training configuration. set: `key=value` changes to it. data: folder of its
    dataset, None for the configuration's.
    """

    config: str
    set: tuple[str, ...] = ()
    data: str | None = None

    @property
    def changes(self) -> list[str]:
        """All `key=value` changes to the configuration."""
        return [*self.set, *([f"data.path={self.data}"] if self.data else [])]


def fine_tune(
    pruned: SegmentationNetwork,
    config: PruneConfig,
    contract: Contract,
    tuning: FineTune,
    run: Path,
    report: ReportRun,
) -> tuple[SegmentationNetwork, dict[str, Any]]:
    """Return the fine-tuned network and a record of the run for the contract.

    Weights, widths, options and normalisation are those of the pruned network, not of the configuration.

    Args:
        pruned: the network to start with.
        config: how it was pruned.
        contract: of the bundle that the network is from.
        tuning: how to fine-tune.
        run: folder of the run. A killed run continues in it.
        report: is told the progress.

    Raises:
        ConfigError: the configuration trains another network or other classes.
    """
    recipe = load_config(find_config(tuning.config), tuning.changes)
    _require_same_task(recipe, contract)
    start = _write_start(run, pruned, config)
    initial = InitialConfig(checkpoint=str(start), num_classes=pruned.num_classes)
    network = NetworkConfig(
        pruned.name, pruned.options(), pruned.mean, pruned.std, initial, trained=recipe.network.trained
    )
    if breaks_bfloat16(pruned):
        recipe = replace(recipe, run=replace(recipe.run, precision="32-true"))
    result = train_chain(replace(recipe, network=network), run, tuning.changes, True, report)
    tuned = load_checkpoint(result.checkpoint, pruned.name, pruned.num_classes)
    tuned.fitted_scores = pruned.fitted_scores
    record = {"config": recipe.name, "set": list(tuning.set), "steps": result.steps, "validation_miou": result.miou}
    return tuned, {"fine_tune": record}


def breaks_bfloat16(network: SegmentationNetwork) -> bool:
    """Return whether torch cannot train the network in bfloat16.

    With torch 2.13 on AVX-512, weight gradients of dilated convolutions are not finite where the number of channels is
    not a multiple of 16.
    """
    dilated = (one for one in network.modules() if isinstance(one, nn.Conv2d) and max(one.dilation) > 1)
    return any(one.out_channels % 16 or one.in_channels % 16 for one in dilated)


def _write_start(run: Path, pruned: SegmentationNetwork, config: PruneConfig) -> Path:
    """Write the weights to start with. A run in the folder that started with other weights is removed."""
    run.mkdir(parents=True, exist_ok=True)
    start, beside = run / START_FILE, run / f"new-{START_FILE}"
    save_checkpoint(beside, pruned, checkpoint_metadata(config))
    if not start.is_file() or sha256_of(start) != sha256_of(beside):
        clear_folder(run)
    beside.replace(start)
    return start


def _require_same_task(recipe: TrainConfig, contract: Contract) -> None:
    """Raise ConfigError or CheckpointError unless the configuration trains this network for these classes."""
    if recipe.network.name != contract.network:
        raise ConfigError(
            f"configuration {recipe.name!r} trains {recipe.network.name!r}, the bundle is of {contract.network!r}; "
            "give one for that network"
        )
    training_set = open_sets(recipe.data)[0]
    if not same_classes(training_set.classes, known_classes(contract.classes, contract.void_class)):
        raise ConfigError(
            f"configuration {recipe.name!r} trains on the classes of {training_set.label_set!r}, the bundle has those "
            f"of {export_config_of(contract).label_set!r}; fine-tune on frames with the bundle's classes"
        )
    outputs, void = len(contract.classes), contract.void_class
    if (recipe.data.void == "none") != (void is None):
        word = "no void class" if void is None else "a void class"
        raise ConfigError(
            f"configuration {recipe.name!r} has data.void={recipe.data.void}, but the bundle has {word}; set "
            f"data.void={'none' if void is None else 'outliers, unlabelled or both'}"
        )
    if void is not None and void != outputs - 1:
        raise CheckpointError(f"the bundle's void class is output {void} of {outputs}; training wants it last")
