"""What a run minimises: LossConfig's terms of losses.py, weighted and added up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anomseg_ros.core.labels import KNOWN_UNCERTAIN
from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.training.losses import (
    DISTILLATION_TEMPERATURE,
    ENERGY_KNOWN_MARGIN,
    ENERGY_OUTLIER_MARGIN,
    Frequencies,
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

KINDS = ("cross_entropy", "ohem", "focal")


@dataclass(frozen=True)
class LossConfig:
    """What SegmentationLoss adds up. A weight of 0 leaves a term out.

    kind: cross_entropy, ohem or focal. class_weights_c: c of 1 / ln(c + p), None for no weights. void_weight: the void
    class's weight, None for its frequency's like the others (paper PTQ), 1.0 in paper MiDE. auxiliary_stride: every
    n-th pixel in which the auxiliary heads are judged; above 1 is a deviation from BiSeNet that saves most of what
    they cost. The outlier terms and the distillation are of the main head's plain logits. not_void_weight: of the term
    for pixels that are known without a class, where there is a void class. distillation_class_weights: whether a pixel
    weighs in the divergence as it does in the cross-entropy: without that, the teacher speaks mostly of what there is
    most of, and rare classes are learned late (a deviation from paper MiDE).
    """

    kind: str = "cross_entropy"
    class_weights_c: float | None = None
    void_weight: float | None = None
    label_smoothing: float = 0.0
    logit_norm_temperature: float | None = None
    focal_gamma: float = 2.0
    ohem_threshold: float = 0.7
    ohem_min_share: float = 0.0625
    auxiliary_weight: float = 1.0
    auxiliary_stride: int = 1
    entropy_weight: float = 0.0
    energy_weight: float = 0.0
    energy_known_margin: float = ENERGY_KNOWN_MARGIN
    energy_outlier_margin: float = ENERGY_OUTLIER_MARGIN
    not_void_weight: float = 1.0
    distillation_weight: float = 0.0
    distillation_temperature: float = DISTILLATION_TEMPERATURE
    distillation_class_weights: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown kind and values that no loss can use."""
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
        self._expect_sense()

    def _expect_sense(self) -> None:
        if self.label_smoothing and self.kind != "cross_entropy":
            raise ConfigError(f"label_smoothing is for kind cross_entropy, not {self.kind}; leave it at 0")
        known, outlier = self.energy_known_margin, self.energy_outlier_margin
        if not -math.inf < known < outlier < math.inf:
            order = f"energy_known_margin {known!r} must be below energy_outlier_margin {outlier!r}"
            raise ConfigError(f"{order}: known pixels have the lower energy; exchange or change them")

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")


class SegmentationLoss(nn.Module):
    """The weighted sum of a LossConfig's terms. Class weights move with the module and are not in its state."""

    class_weight: Tensor | None

    def __init__(self, config: LossConfig, frequencies: Frequencies | None, void_class: int | None) -> None:
        """Compute the class weights. frequencies: `class_frequencies`, the void class's included, None if not needed.

        Raises ConfigError where weights are asked for that cannot be computed.
        """
        super().__init__()
        self.config = config
        self.void_class = void_class
        self.register_buffer("class_weight", _class_weight(config, frequencies, void_class), persistent=False)

    def forward(
        self, logits: tuple[Tensor, ...], target: Tensor, teachers_logits: Sequence[Tensor] = ()
    ) -> dict[str, Tensor]:
        """Return the terms by name (classification, auxiliary, …, distillation), weighted, and total.

        logits: the main head's, then the auxiliary heads', (N, C, h, w) at any size; they are upsampled to the target's
        (N, H, W). teachers_logits: one (N, C or K, h, w) per teacher, needed for distillation. Raises ConfigError where
        they do not fit.
        """
        config = self.config
        with torch.autocast(target.device.type, enabled=False):
            main = resized(logits[0], target.shape[-2:])
            self._check(main, teachers_logits)
            terms = {"classification": self._classify(main, target)}
            if self.void_class is not None and config.not_void_weight and bool((target == KNOWN_UNCERTAIN).any()):
                terms["not_void"] = config.not_void_weight * not_void(main, target, self.void_class)
            if len(logits) > 1 and config.auxiliary_weight:
                terms["auxiliary"] = config.auxiliary_weight * self._auxiliary(logits[1:], target)
            if config.entropy_weight:
                terms["entropy"] = config.entropy_weight * entropy_maximisation(main, target, self.void_class)
            if config.energy_weight:
                margins = (config.energy_known_margin, config.energy_outlier_margin)
                terms["energy"] = config.energy_weight * energy_margin(main, target, self.void_class, *margins)
            if config.distillation_weight:
                with torch.no_grad():
                    teacher = resized(
                        mean_probability(teachers_logits, config.distillation_temperature), target.shape[-2:]
                    )
                weight = self.class_weight if config.distillation_class_weights else None
                term = distillation(main, teacher, target, config.distillation_temperature, weight)
                terms["distillation"] = config.distillation_weight * term
            return {**terms, "total": torch.stack(list(terms.values())).sum()}

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
        # The middle of each stride x stride block is where bilinear resizing puts the small logit.
        sampled = target[:, stride // 2 :: stride, stride // 2 :: stride].contiguous()
        return torch.stack([self._classify(resized(head, sampled.shape[-2:]), sampled) for head in heads]).sum()

    def _check(self, logits: Tensor, teachers_logits: Sequence[Tensor]) -> None:
        outputs = logits.shape[1]
        if self.void_class is not None and outputs != self.void_class + 1:
            raise ConfigError(f"the network has {outputs} outputs, the void class is {self.void_class}: not the last")
        if self.class_weight is not None and outputs != len(self.class_weight):
            raise ConfigError(
                f"the network has {outputs} outputs, but there are {len(self.class_weight)} class weights"
            )
        if self.config.distillation_weight and not teachers_logits:
            raise ConfigError("distillation_weight is above 0, but there are no teacher's logits; give a teacher")


def _class_weight(config: LossConfig, frequencies: Frequencies | None, void_class: int | None) -> Tensor | None:
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
