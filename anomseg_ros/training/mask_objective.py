"""The objective "masks": networks that predict masks learn by matching, in stages, with LoRA and angular margins.

EoMT's training (Kerssies et al., CVPR 2025), and what "Efficient Anomaly Segmentation via Angular Margins and Low-Rank
Adaptation" adds. The losses are in mask_matching.py, angular_margin.py, rba_hinge.py and losses.py (LogitNorm). The
class loss is the cross-entropy over classes and "no object", whose weight is small because most queries have no class.
Networks that refine queries block by block (StagedMaskNetwork) are trained on the predictions before each block, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.networks.adapters import save_adapter
from anomseg_ros.networks.lora import LoraConfig, add_lora, merged_lora
from anomseg_ros.networks.network import SegmentationNetwork, StagedMaskNetwork
from anomseg_ros.networks.prediction import MaskPrediction
from anomseg_ros.training.angular_margin import released_cosines, with_margin
from anomseg_ros.training.config import OptimizerConfig
from anomseg_ros.training.layer_rates import layer_groups
from anomseg_ros.training.losses import OUTLIER, logit_norm
from anomseg_ros.training.mask_matching import (
    MatchingConfig,
    Truth,
    mask_losses,
    match,
    truths,
    wanted_classes,
)
from anomseg_ros.training.objectives import Answer, Needs, Objective, Options, Task
from anomseg_ros.training.rba_hinge import rba_hinge
from anomseg_ros.training.schedule import Group

CLASS_LOSSES = ("cross_entropy", "arcface", "logit_norm", "released_arcface")
ANNEALING_POWER = 0.9
RBA_MARGIN = 5.0


@dataclass(frozen=True)
class MaskOptions(Options):
    """Options of MaskObjective. The defaults are those of EoMT on Cityscapes."""

    mask_weight: float = 5.0
    dice_weight: float = 5.0
    class_weight: float = 2.0
    no_object_weight: float = 0.1
    points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75
    class_loss: str = "cross_entropy"
    """cross_entropy; arcface, for a network with cosine_scale; logit_norm; or released_arcface, see angular_margin."""
    margin: float = 0.5  # m of arcface and released_arcface, in radians
    released_scale: float = 30.0  # s of released_arcface
    logit_norm_temperature: float = 0.04
    rba_weight: float = 0.0
    rba_margin: float = RBA_MARGIN
    released_outlier_weight: float = 0.0
    """Of the released code's "outlier loss": the largest class probability of queries without a match, averaged."""
    masked_attention: bool = True
    annealing: tuple[tuple[float, float], ...] = ()
    """For each block with queries, the shares of the run between which its masks disappear; empty: spread evenly, as
    in EoMT-L: from i / (B + 2) to (i + 1) / (B + 2) for block i of B, from 1."""
    layer_decay: float = 1.0
    warmup_steps: tuple[int, int] = (0, 0)  # of heads, then of the encoder: layer_rates.py
    lora: LoraConfig | None = None

    @property
    def needs(self) -> Needs:
        return Needs(outliers=self.rba_weight > 0)

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        if self.class_loss not in CLASS_LOSSES:
            raise ConfigError(unknown_name("class loss", self.class_loss, CLASS_LOSSES))
        for name in ("mask_weight", "dice_weight", "class_weight", "rba_weight", "released_outlier_weight"):
            self._expect(name, 0 <= getattr(self, name) < math.inf, "a finite number from 0 up")
        for name in ("no_object_weight", "released_scale", "logit_norm_temperature", "rba_margin"):
            self._expect(name, 0 < getattr(self, name) < math.inf, "a finite number above 0")
        self._expect("points", self.points >= 1, "1 or more")
        self._expect("oversample", 1 <= self.oversample < math.inf, "a number from 1 up")
        self._expect("importance", 0 <= self.importance <= 1, "a share from 0 to 1")
        self._expect("margin", 0 <= self.margin < math.pi / 2, "an angle from 0 up, below pi / 2")
        self._expect("layer_decay", 0 < self.layer_decay <= 1, "a factor above 0, 1 at most")
        self._expect("warmup_steps", min(self.warmup_steps) >= 0, "two numbers of steps from 0 up")
        ordered = all(0 <= begin < end for begin, end in self.annealing)
        self._expect("annealing", ordered, "pairs of a begin and a later end, as shares of the run")

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    def matching(self) -> MatchingConfig:
        return MatchingConfig(
            mask=self.mask_weight,
            dice=self.dice_weight,
            classes=self.class_weight,
            points=self.points,
            oversample=self.oversample,
            importance=self.importance,
        )


@dataclass(frozen=True, eq=False)
class _StagedAnswer(Answer):
    """earlier: the predictions before the blocks with queries."""

    earlier: tuple[MaskPrediction, ...] = ()


class MaskObjective(Objective):
    """See the module."""

    options_type = MaskOptions

    def __init__(self, options: MaskOptions, task: Task) -> None:
        super().__init__(options, task)
        self.options, self.matching = options, options.matching()
        self.void_class = task.void_class
        self.scale = options.released_scale

    def prepare(self, network: SegmentationNetwork) -> None:
        """Raise ConfigError if the options do not fit the network."""
        super().prepare(network)
        options = self.options
        if network.kind is not MaskPrediction:
            raise ConfigError(f"the objective masks needs masks, which {network.name} has not; take eomt")
        if options.class_loss == "arcface":
            scale = getattr(network, "cosine_scale", None)
            if scale is None:
                raise ConfigError(
                    "class_loss arcface needs a classifier of cosines; set network.options.cosine_scale, such as 30"
                )
            self.scale = float(scale)
        staged = isinstance(network, StagedMaskNetwork)
        if isinstance(network, StagedMaskNetwork):
            if not network.anneals_masks and (options.annealing or not options.masked_attention):
                raise ConfigError(
                    f"{network.name} keeps the masks of attention, in training and later; leave loss.annealing and "
                    "loss.masked_attention out"
                )
            if options.annealing and len(options.annealing) != network.stages:
                raise ConfigError(
                    f"annealing has {len(options.annealing)} pairs, but {network.stages} blocks have queries; give a "
                    "pair for each"
                )
            if options.lora is not None:
                add_lora(network, options.lora)
        if not staged and (options.lora or options.layer_decay < 1 or any(options.warmup_steps)):
            raise ConfigError(f"lora, layer_decay and warmup_steps are for networks of blocks, not for {network.name}")

    def groups(self, network: SegmentationNetwork, config: OptimizerConfig) -> list[Group]:
        options = self.options
        if not isinstance(network, StagedMaskNetwork) or (options.layer_decay == 1 and not any(options.warmup_steps)):
            return super().groups(network, config)
        if config.rates:
            raise ConfigError("optimizer.rates and loss.layer_decay or loss.warmup_steps both set rates; leave one out")
        return layer_groups(network, config, self.parameters(), options.layer_decay, options.warmup_steps)

    def ask(self, network: SegmentationNetwork, images: Tensor, step: int) -> Answer:
        if not isinstance(network, StagedMaskNetwork):
            return super().ask(network, images, step)
        shares = [self._masked_share(block, network.stages, step) for block in range(network.stages)]
        *earlier, last = network.predict_stages(images, shares, self.needs.features)
        return _StagedAnswer(last, earlier=tuple(one for one in earlier if isinstance(one, MaskPrediction)))

    def _masked_share(self, block: int, blocks: int, step: int) -> float:
        """Return the share of queries with masked attention before a block, from 1 to 0 (EoMT, section 3.3)."""
        if not self.options.masked_attention:
            return 0.0
        begin, end = (block + 1) / (blocks + 2), (block + 2) / (blocks + 2)
        if self.options.annealing:
            begin, end = self.options.annealing[block]
        done = (step / self.task.steps - begin) / (end - begin)
        return float((1.0 - min(1.0, max(0.0, done))) ** ANNEALING_POWER)

    def terms(self, answer: Answer, target: Tensor, teachers: Sequence[Tensor], step: int) -> dict[str, Tensor]:
        """Return the terms, summed over the stages: class, mask, dice, and rba and outlier where they have a weight."""
        earlier = answer.earlier if isinstance(answer, _StagedAnswer) else ()
        found: list[Truth] | None = None
        total: dict[str, Tensor] = {}
        for prediction in (*earlier, answer.prediction):
            assert isinstance(prediction, MaskPrediction)
            found = found or truths(_padded(target, prediction.padded_px), prediction.class_logits.shape[2] - 1)
            for name, value in self._stage(prediction, found).items():
                total[name] = total[name] + value if name in total else value
        if self.options.rba_weight:
            hinge = rba_hinge(*self._semantic(answer.prediction, target), self.options.rba_margin)
            total["rba"] = self.options.rba_weight * hinge
        return total

    def _stage(self, prediction: MaskPrediction, found: Sequence[Truth]) -> dict[str, Tensor]:
        options = self.options
        masks, classes = prediction.mask_logits.float(), prediction.class_logits.float()
        pairs = [
            match(mask, logits, truth, self.matching) for mask, logits, truth in zip(masks, classes, found, strict=True)
        ]
        matched = torch.cat([masks[image, queries] for image, (queries, _) in enumerate(pairs)])
        true = torch.cat([truth.masks[chosen] for truth, (_, chosen) in zip(found, pairs, strict=True)])
        bce, dice = mask_losses(matched, true, sum(len(truth.classes) for truth in found), self.matching)
        wanted = wanted_classes(classes, pairs, found)
        terms = {"mask": options.mask_weight * bce, "dice": options.dice_weight * dice}
        logits = self._class_logits(classes, wanted)
        terms["class"] = options.class_weight * self._class_loss(logits, wanted)
        if options.released_outlier_weight:
            largest = logits[..., :-1].softmax(-1).amax(-1)
            free = wanted == classes.shape[2] - 1
            mean = (largest * free).sum() / free.sum().clamp_min(1)
            terms["outlier"] = options.class_weight * options.released_outlier_weight * mean
        return terms

    def _class_logits(self, classes: Tensor, wanted: Tensor) -> Tensor:
        """Return the logits (N, Q, C + 1) of the class loss."""
        options, outputs = self.options, classes.shape[2] - 1
        if options.class_loss == "logit_norm":
            return logit_norm(classes.transpose(1, 2), options.logit_norm_temperature).transpose(1, 2)
        if options.class_loss == "arcface":
            known = outputs if self.void_class is None else self.void_class
            return with_margin(classes, wanted, self.scale, options.margin, known)
        if options.class_loss == "released_arcface":  # the margin holds for the class of anomalies, too
            return with_margin(released_cosines(classes, self.scale), wanted, self.scale, options.margin, outputs)
        return classes

    def _class_loss(self, logits: Tensor, wanted: Tensor) -> Tensor:
        weight = torch.ones(logits.shape[2], device=logits.device)
        weight[-1] = self.options.no_object_weight
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight)

    def _semantic(self, prediction: object, target: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return S (N, C, h, w), the padded target and its outliers (N, H, W), and the number of known classes."""
        assert isinstance(prediction, MaskPrediction)
        plain = MaskPrediction(
            size_px=prediction.size_px,
            padded_px=prediction.padded_px,
            mask_logits=prediction.mask_logits.float(),
            class_logits=prediction.class_logits.float(),
        )
        target = _padded(target, prediction.padded_px)
        known = plain.class_logits.shape[2] - 1 if self.void_class is None else self.void_class
        outliers = (target == OUTLIER) | (target == -1 if self.void_class is None else target == self.void_class)
        return plain.semantic(plain.maps), target, outliers, known

    def merged(self, network: SegmentationNetwork) -> SegmentationNetwork:
        if self.options.lora is None or not isinstance(network, StagedMaskNetwork):
            return network
        return merged_lora(network)

    def save_beside(self, checkpoint: Path, network: SegmentationNetwork, metadata: Mapping[str, Any]) -> None:
        """Write the adapter of a run with LoRA, as NAME.adapter.safetensors."""
        if self.options.lora is not None and isinstance(network, StagedMaskNetwork):
            save_adapter(checkpoint.with_suffix(".adapter.safetensors"), network, self.options.lora, metadata)


def _padded(target: Tensor, padded_px: tuple[int, int]) -> Tensor:
    """Return a target with the pixels that the network pads the images by, as ignored."""
    bottom, right = padded_px[0] - target.shape[1], padded_px[1] - target.shape[2]
    return F.pad(target, (0, right, 0, bottom), value=255) if bottom or right else target
