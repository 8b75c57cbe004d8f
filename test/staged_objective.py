"""A test objective that uses all features of the training loop: see training/test_a_new_objective.py."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.training.config import OptimizerConfig
from anomseg_ros.training.losses import cross_entropy
from anomseg_ros.training.objectives import Answer, Needs, Objective, Options, Task
from anomseg_ros.training.schedule import Group


@dataclass(frozen=True)
class StagedOptions(Options):
    """rank: of the adapter. warmup_steps: of the last stage. masked: initial share of masked columns."""

    rank: int = 2
    warmup_steps: int = 4
    masked: float = 0.5
    feature: str = "encoder"
    feature_channels: int = 128

    @property
    def needs(self) -> Needs:
        return Needs(features=(self.feature,))


class Adapted(nn.Module):
    """A frozen 1x1 convolution with a trained update of low rank (LoRA, Hu et al. 2022)."""

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        assert isinstance(layer, nn.Conv2d)
        self.layer = layer.requires_grad_(False)
        self.down = nn.Conv2d(layer.in_channels, rank, 1, bias=False)
        self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, features: Tensor) -> Tensor:
        adapted: Tensor = self.layer(features) + self.up(self.down(features))
        return adapted

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        layer = copy.deepcopy(self.layer)
        layer.weight += (self.up.weight.flatten(1) @ self.down.weight.flatten(1)).reshape(layer.weight.shape)
        return layer


class StagedObjective(Objective):
    """Cross-entropy and the distance of features from the centres of their classes, which are learned, too.

    An adapter of the classifier trains at a falling rate and the last stage after a warm-up. All other parts are
    frozen. Columns of the images are masked, fewer at each step.
    """

    options_type = StagedOptions

    def __init__(self, options: StagedOptions, task: Task) -> None:
        super().__init__(options, task)
        self.options = options

    def prepare(self, network: SegmentationNetwork) -> None:
        super().prepare(network)
        network.requires_grad_(False)
        network.get_submodule("stage2").requires_grad_(True)
        network.classifier = Adapted(network.get_submodule("classifier"), self.options.rank)
        self.centres = nn.Parameter(torch.zeros(network.num_classes, self.options.feature_channels))

    def groups(self, network: SegmentationNetwork, config: OptimizerConfig) -> list[Group]:
        stage = list(network.get_submodule("stage2").parameters())
        adapter = [value for value in network.get_submodule("classifier").parameters() if value.requires_grad]
        warm = self.options.warmup_steps
        return [
            Group([*adapter, self.centres], factor=lambda step: 1 - step / self.task.steps),
            Group(stage, config.weight_decay, lambda step: min(1.0, step / warm)),
        ]

    def ask(self, network: SegmentationNetwork, images: Tensor, step: int) -> Answer:
        masked = self.options.masked * (1 - step / self.task.steps)
        columns = torch.arange(images.shape[-1], device=images.device) >= masked * images.shape[-1]
        return super().ask(network, images * columns, step)

    def terms(self, answer: Answer, target: Tensor, teachers: Sequence[Tensor], step: int) -> dict[str, Tensor]:
        features = answer.prediction.features[self.options.feature].float()
        small = F.interpolate(target[:, None].float(), features.shape[-2:])[:, 0].long()
        image, row, column = (small < len(self.centres)).nonzero(as_tuple=True)
        apart = features[image, :, row, column] - self.centres[small[image, row, column]]
        distance = apart.square().sum() / max(1, apart.numel())
        return {"classification": cross_entropy(answer.prediction.pixel_logits(), target), "distance": distance}

    def merged(self, network: SegmentationNetwork) -> SegmentationNetwork:
        plain = copy.deepcopy(network)
        plain.classifier = plain.get_submodule("classifier").merged()
        return plain
