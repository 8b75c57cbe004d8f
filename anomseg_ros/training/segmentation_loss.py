"""The objective "segmentation": a weighted sum of the losses in losses.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anomseg_ros.core.labels import KNOWN_UNCERTAIN
from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.training.losses import (
    DISTILLATION_TEMPERATURE,
    ENERGY_KNOWN_MARGIN,
    ENERGY_OUTLIER_MARGIN,
    cross_entropy,
    distillation,
    energy_margin,
    enet_class_weights,
    entropy_maximisation,
    focal_loss,
    logit_norm,
    mean_probability,
    not_void,
    ohem_cross_entropy,
    resized,
)
from anomseg_ros.training.objectives import Answer, Needs, Objective, Options, Task

KINDS = ("cross_entropy", "ohem", "focal")


@dataclass(frozen=True)
class LossConfig(Options):
    """Options of SegmentationLoss. A weight of 0 leaves a term out.

    The outlier terms and the distillation use the main head's plain logits.
    """

    kind: str = "cross_entropy"  # cross_entropy, ohem or focal
    class_weights_c: float | None = None  # c of the class weights 1 / ln(c + p), None for no weights
    void_weight: float | None = None
    """The void class's weight, None for the one of its frequency (paper PTQ); paper MiDE has 1.0."""
    label_smoothing: float = 0.0
    logit_norm_temperature: float | None = None
    focal_gamma: float = 2.0
    ohem_threshold: float = 0.7
    ohem_min_share: float = 0.0625
    auxiliary_weight: float = 1.0
    auxiliary_stride: int = 1
    """Auxiliary heads learn at every n-th pixel. Above 1 it deviates from BiSeNet and saves most of their cost."""
    entropy_weight: float = 0.0
    energy_weight: float = 0.0
    energy_known_margin: float = ENERGY_KNOWN_MARGIN
    energy_outlier_margin: float = ENERGY_OUTLIER_MARGIN
    not_void_weight: float = 1.0  # of the term for pixels that are known without a class, if there is a void class
    distillation_weight: float = 0.0
    distillation_temperature: float = DISTILLATION_TEMPERATURE
    distillation_class_weights: bool = False
    """Whether pixels have their class's weight in the distillation, too. Otherwise frequent classes dominate it, and
    rare ones are learnt late. Deviates from paper MiDE."""

    distillation_of_outliers: bool = False
    """Whether the teacher sees pasted objects and teaches the void class, too: for a teacher with an anomaly class."""

    distillation_where_right: bool = False
    """Whether the teacher teaches only where its most probable class is the label, and where there is none (252).
    Otherwise its errors outweigh the labels of rare classes. Deviates from paper MiDE."""

    @property
    def needs(self) -> Needs:
        return Needs(
            auxiliary=self.auxiliary_weight > 0,
            teachers=self.distillation_weight > 0,
            teachers_see_outliers=self.distillation_of_outliers,
            outliers=self.entropy_weight > 0 or self.energy_weight > 0,
        )

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown kind and values out of range."""
        if self.kind not in KINDS:
            raise ConfigError(unknown_name("loss kind", self.kind, KINDS))
        weights = ("auxiliary_weight", "entropy_weight", "energy_weight", "not_void_weight", "distillation_weight")
        for name in (*weights, "focal_gamma"):
            self._expect(name, 0 <= getattr(self, name) < math.inf, "a finite number from 0 up")
        for name, least in (("class_weights_c", 1), ("logit_norm_temperature", 0)):
            value = getattr(self, name)
            self._expect(name, value is None or least < value < math.inf, f"a finite number above {least}, or null")
        void_weight = 0 if self.void_weight is None else self.void_weight
        self._expect("void_weight", 0 <= void_weight < math.inf, "a finite number from 0 up, or null")
        self._expect("label_smoothing", 0 <= self.label_smoothing < 1, "a number from 0 up, below 1")
        self._expect("ohem_threshold", 0 < self.ohem_threshold <= 1, "a probability above 0, 1 at most")
        self._expect("ohem_min_share", 0 <= self.ohem_min_share <= 1, "a share from 0 to 1")
        self._expect("auxiliary_stride", self.auxiliary_stride >= 1, "a whole number of pixels, 1 at least")
        self._expect("distillation_temperature", 0 < self.distillation_temperature < math.inf, "a number above 0")
        if self.label_smoothing and self.kind != "cross_entropy":
            raise ConfigError(f"label_smoothing is for kind cross_entropy, not {self.kind}; leave it at 0")
        known, outlier = self.energy_known_margin, self.energy_outlier_margin
        if not -math.inf < known < outlier < math.inf:
            order = f"energy_known_margin {known!r} must be below energy_outlier_margin {outlier!r}"
            raise ConfigError(f"{order}: known pixels have the lower energy; exchange or change them")

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")


class SegmentationLoss(Objective):
    """The weighted sum of a LossConfig's terms. Class weights are not part of its state."""

    options_type = LossConfig
    class_weight: Tensor | None

    def __init__(self, options: LossConfig, task: Task) -> None:
        """Compute the class weights. Raises ConfigError if they cannot be computed."""
        super().__init__(options, task)
        self.config, self.void_class = options, task.void_class
        self.register_buffer("class_weight", _class_weight(options, task), persistent=False)

    def terms(self, answer: Answer, target: Tensor, teachers: Sequence[Tensor], step: int) -> dict[str, Tensor]:
        """Return the terms that have a weight, of logits resized to the target's size.

        Their names: classification, not_void, auxiliary, entropy, energy, distillation.
        """
        config = self.config
        main = resized(answer.prediction.pixel_logits(), target.shape[-2:])
        self._check(main, teachers)
        terms = {"classification": self._classify(main, target)}
        if self.void_class is not None and config.not_void_weight and bool((target == KNOWN_UNCERTAIN).any()):
            terms["not_void"] = config.not_void_weight * not_void(main, target, self.void_class)
        if answer.auxiliary and config.auxiliary_weight:
            terms["auxiliary"] = config.auxiliary_weight * self._auxiliary(answer.auxiliary, target)
        if config.entropy_weight:
            terms["entropy"] = config.entropy_weight * entropy_maximisation(main, target, self.void_class)
        if config.energy_weight:
            margins = (config.energy_known_margin, config.energy_outlier_margin)
            terms["energy"] = config.energy_weight * energy_margin(main, target, self.void_class, *margins)
        if config.distillation_weight:
            with torch.no_grad():
                teacher = resized(mean_probability(teachers, config.distillation_temperature), target.shape[-2:])
            weight = self.class_weight if config.distillation_class_weights else None
            where_right = config.distillation_where_right
            term = distillation(main, teacher, target, config.distillation_temperature, weight, where_right)
            terms["distillation"] = config.distillation_weight * term
        return terms

    def _classify(self, logits: Tensor, target: Tensor) -> Tensor:
        config, weight = self.config, self.class_weight
        if config.logit_norm_temperature is not None:
            logits = logit_norm(logits, config.logit_norm_temperature)
        if config.kind == "ohem":
            return ohem_cross_entropy(logits, target, weight, config.ohem_threshold, config.ohem_min_share)
        if config.kind == "focal":
            return focal_loss(logits, target, weight, config.focal_gamma)
        return cross_entropy(logits, target, weight, config.label_smoothing)

    def _auxiliary(self, heads: tuple[Tensor, ...], target: Tensor) -> Tensor:
        stride = self.config.auxiliary_stride
        # Bilinear resizing puts a small logit at the middle of its stride x stride block.
        sampled = target[:, stride // 2 :: stride, stride // 2 :: stride].contiguous()
        return torch.stack([self._classify(resized(head, sampled.shape[-2:]), sampled) for head in heads]).sum()

    def _check(self, logits: Tensor, teachers: Sequence[Tensor]) -> None:
        outputs = logits.shape[1]
        if self.void_class is not None and outputs != self.void_class + 1:
            raise ConfigError(f"the network has {outputs} outputs, the void class is {self.void_class}: not the last")
        if self.class_weight is not None and outputs != len(self.class_weight):
            raise ConfigError(
                f"the network has {outputs} outputs, but there are {len(self.class_weight)} class weights"
            )
        if self.config.distillation_weight and not teachers:
            raise ConfigError("distillation_weight is above 0, but there are no teacher's logits; give a teacher")


def _class_weight(config: LossConfig, task: Task) -> Tensor | None:
    frequencies, void_class = task.frequencies, task.void_class
    if config.void_weight is not None and void_class is None:
        raise ConfigError(f"void_weight is {config.void_weight!r}, but there is no void class; leave it out")
    if config.class_weights_c is not None:
        if frequencies is None:
            raise ConfigError("class_weights_c needs the class frequencies of the training labels; give them")
        weight = enet_class_weights(frequencies, config.class_weights_c)
    elif config.void_weight is not None and void_class is not None:
        weight = torch.ones(void_class + 1)
    else:
        return None
    if void_class is not None and len(weight) != void_class + 1:
        raise ConfigError(f"{len(weight)} class frequencies; expected {void_class + 1}, the void class being the last")
    if config.void_weight is not None:
        weight[-1] = config.void_weight
    return weight
