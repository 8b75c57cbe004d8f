"""The table of objectives, and the interface between an objective and the training loop.

An objective decides which outputs of the network it needs, the loss of a batch at a step, which parameters train at
which rates, and which parts of the network are frozen or wrapped during training. The loop knows no objective by name.
A new objective is one file and one line of the table. Its options are the keys of the configuration's `loss`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from anomseg_ros.core.table import class_of
from anomseg_ros.networks.network import AuxiliarySegmentationNetwork, SegmentationNetwork
from anomseg_ros.networks.prediction import Prediction
from anomseg_ros.training.schedule import Group, groups_by_part

if TYPE_CHECKING:
    from anomseg_ros.training.config import OptimizerConfig

OBJECTIVES: dict[str, str] = {
    "segmentation": "anomseg_ros.training.segmentation_loss:SegmentationLoss",
    "masks": "anomseg_ros.training.mask_objective:MaskObjective",
    "dual_stream": "anomseg_ros.training.dual_stream_objective:DualStreamObjective",
}
"""Objective name -> "module:Class". The modules are imported on first use."""
DEFAULT_OBJECTIVE = "segmentation"


@dataclass(frozen=True)
class Needs:
    """The inputs of an objective beside labels and prediction."""

    auxiliary: bool = False  # logits of the auxiliary heads, if the network has any that train
    features: tuple[str, ...] = ()  # feature maps by name
    teachers: bool = False  # whether it needs a teacher
    teachers_see_outliers: bool = False  # whether teachers get the frames with pasted objects, and teach the void class
    outliers: bool = False  # whether it needs outliers in the frames


@dataclass(frozen=True)
class Options:
    """Base of an objective's options: a frozen dataclass whose fields, each with a default, are the keys of `loss`."""

    @property
    def needs(self) -> Needs:
        """The inputs of the objective with these options."""
        return Needs()


@dataclass(frozen=True, eq=False)
class Task:
    """Facts about a run that an objective may use."""

    frequencies: npt.NDArray[np.float64] | None
    """float64 (C,): share of each class, void included, among the counted pixels of the training frames."""
    void_class: int | None
    steps: int  # optimizer steps of the whole run


@dataclass(frozen=True, eq=False)
class Answer:
    """The network's outputs for a batch. auxiliary: logits of the auxiliary heads, each at its own size."""

    prediction: Prediction
    auxiliary: tuple[Tensor, ...] = ()


class Objective(nn.Module, ABC):
    """Base of objectives. The loop calls the methods in the order in which they are defined.

    An objective's own parameters train with the network's. They and its buffers are saved in the run's state, not in
    checkpoints.
    """

    options_type: ClassVar[type[Options]]
    """The class of the options."""

    def __init__(self, options: Any, task: Task) -> None:
        """options: of `options_type`. Subclasses raise ConfigError if the options do not fit the task."""
        super().__init__()
        self.needs: Needs = options.needs
        self.task = task

    def prepare(self, network: SegmentationNetwork) -> None:
        """Freeze and wrap parts of a network, in place, before a state is restored.

        The parts that `network.trained` and `network.frozen` of the configuration freeze are frozen already.
        """
        if not self.needs.auxiliary:  # training unused heads would only take time
            network.auxiliary_heads.requires_grad_(False)

    def groups(self, network: SegmentationNetwork, config: OptimizerConfig) -> list[Group]:
        """Return all parameters that train, in groups of one rate; by default those of optimizer.rates.

        Raises ConfigError.
        """
        return groups_by_part(config, network, self.named_parameters())

    def ask(self, network: SegmentationNetwork, images: Tensor, step: int) -> Answer:
        """Run the network on float32 (N, 3, H, W) images, RGB in 0..1. step: number of the optimizer step, from 0."""
        trains = any(parameter.requires_grad for parameter in network.auxiliary_heads.parameters())
        if trains and isinstance(network, AuxiliarySegmentationNetwork):
            prediction = network.predict(images, (*self.needs.features, *network.auxiliary_features))
            return Answer(prediction, tuple(network.auxiliary_logits(prediction.features)))
        return Answer(network.predict(images, self.needs.features))

    @abstractmethod
    def terms(self, answer: Answer, target: Tensor, teachers: Sequence[Tensor], step: int) -> dict[str, Tensor]:
        """Return the weighted terms of a batch's loss by name: scalars whose sum is minimised.

        Args:
            answer: result of `ask`, in the precision of the network.
            target: int64 (N, H, W): classes, 252 known without a class, 254 outlier, 255 ignored.
            teachers: float logits (N, C or K, h, w) of each teacher, for the frames without pasted objects.
            step: number of the optimizer step, from 0 to `task.steps` - 1.

        Raises:
            ConfigError: the arguments do not fit together.
        """

    def loss(self, answer: Answer, target: Tensor, teachers: Sequence[Tensor], step: int) -> dict[str, Tensor]:
        """Return `terms`, computed without autocast, and their sum as "total"."""
        with torch.autocast(target.device.type, enabled=False):
            terms = self.terms(answer, target, teachers, step)
        return {**terms, "total": torch.stack(list(terms.values())).sum()}

    def merged(self, network: SegmentationNetwork) -> SegmentationNetwork:
        """Return a prepared network without its wrappings, for checkpoints. `network` itself is not changed."""
        return network

    def save_beside(self, checkpoint: Path, network: SegmentationNetwork, metadata: Mapping[str, Any]) -> None:
        """Write further files beside a checkpoint that was written; by default none.

        network: prepared, not merged. metadata: the checkpoint's.
        """


def objective_class(name: str) -> type[Objective]:
    """Return the class of an objective of the table; ConfigError for an unknown name, closest names first."""
    objective: type[Objective] = class_of("objective", name, OBJECTIVES)
    return objective
