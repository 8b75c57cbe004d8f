"""A test objective for networks that predict masks: queries are matched to classes, rates depend on the layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.networks.prediction import MaskPrediction
from anomseg_ros.training.config import OptimizerConfig
from anomseg_ros.training.objectives import Answer, Objective, Options, Task
from anomseg_ros.training.schedule import Group


@dataclass(frozen=True)
class MatchingOptions(Options):
    """mask_weight: of the term of masks. layer_decay: factor of the rate per transformer block, from last to first."""

    mask_weight: float = 5.0
    layer_decay: float = 0.5


class MatchingObjective(Objective):
    """The query that fits a class of the image best learns this class. The other queries learn "no object"."""

    options_type = MatchingOptions

    def __init__(self, options: MatchingOptions, task: Task) -> None:
        super().__init__(options, task)
        self.options = options

    def prepare(self, network: SegmentationNetwork) -> None:
        super().prepare(network)
        if network.kind is not MaskPrediction:
            raise ConfigError(f"the objective matching needs masks, which {network.name} has not; take eomt")

    def groups(self, network: SegmentationNetwork, config: OptimizerConfig) -> list[Group]:
        blocks = list(network.get_submodule("blocks").children())
        grouped = [[p for p in block.parameters() if p.requires_grad] for block in blocks]
        held = {id(parameter) for parameters in grouped for parameter in parameters}
        others = [p for p in network.parameters() if p.requires_grad and id(p) not in held]
        factors = [self.options.layer_decay ** (len(blocks) - number) for number in range(len(blocks))]
        return [Group(others), *(Group(p, 0.0, factor) for p, factor in zip(grouped, factors, strict=True))]

    def terms(self, answer: Answer, target: Tensor, teachers: Sequence[Tensor], step: int) -> dict[str, Tensor]:
        prediction = answer.prediction
        assert isinstance(prediction, MaskPrediction)
        masks, classes = prediction.enlarge(prediction.mask_logits.float()), prediction.class_logits.float()
        wanted = torch.full(classes.shape[:2], classes.shape[2] - 1, device=target.device)
        apart = [0.0 * masks.sum()]
        for image, labels in enumerate(target):
            present = [int(value) for value in labels.unique() if value < classes.shape[2] - 1]
            truth = torch.stack([labels == value for value in present]).float() if present else labels.new_zeros(0)
            for row, query in match(masks[image], classes[image], present, truth):
                wanted[image, query] = present[row]
                apart.append(F.binary_cross_entropy_with_logits(masks[image, query], truth[row]))
        mask = self.options.mask_weight * torch.stack(apart).sum() / len(apart)
        return {"class": F.cross_entropy(classes.flatten(0, 1), wanted.flatten()), "mask": mask}


@torch.no_grad()
def match(masks: Tensor, classes: Tensor, present: list[int], truth: Tensor) -> list[tuple[int, int]]:
    """Return (position of the class, query) pairs, matched greedily by cost instead of with the Hungarian algorithm."""
    if not present:
        return []
    pixels = masks.flatten(1)
    cost = F.softplus(pixels).mean(1) - truth.flatten(1) @ pixels.T / pixels.shape[1]
    cost = cost - classes.softmax(-1)[:, present].T
    pairs = []
    for _ in range(min(cost.shape)):
        row, query = divmod(int(cost.argmin()), cost.shape[1])
        pairs.append((row, query))
        cost[row], cost[:, query] = torch.inf, torch.inf
    return pairs
