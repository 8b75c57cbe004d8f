"""The losses of the lightweight papers, each with its source, and SegmentationLoss, which adds them up.

Shapes and values, for every function: logits float (N, C, H, W); target int64 (N, H, W) with 0..C-1 classes, 254
outlier, 255 ignored. `weight`: float (C,) class weights or None. `void_class`: index of the void class K = C - 1, whose
pixels the data loader made of outliers, or None; the outlier terms take 254 and K for outliers, and see the logits of
the known classes alone (all C, or 0..K-1). Without a void class the classification losses ignore outliers.

Every loss is a float32 scalar (float64 for float64 logits), whatever autocast is on: the mean over its counted pixels,
weighted as torch's own cross-entropy weights it, and 0 with a gradient of 0 where no pixel is counted. A NaN in a
counted logit stays a NaN in the loss. A target outside the above raises DatasetError on the CPU (CUDA asserts).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.core.types import LabelImage
from anomseg_ros.errors import ConfigError, DatasetError, unknown_name

IGNORED, OUTLIER = 255, 254

KINDS = ("cross_entropy", "ohem", "focal")
Frequencies = npt.NDArray[np.float64]

ENET_C = 1.02
"""ENet, arXiv 1606.02147, section 5.1: with 1.02 the weights lie between 1.4 and 50.5."""
ENERGY_KNOWN_MARGIN, ENERGY_OUTLIER_MARGIN = -12.0, -6.0
"""PEBAL's published code (m_in, m_out), per pixel; for images Liu et al.'s code has -25 and -7."""
DISTILLATION_TEMPERATURE = 4.0
"""Hinton et al., arXiv 1503.02531, section 3: 2.5 to 4 served the smallest student best. Paper MiDE gives none."""
_SMALLEST_NORM = 1e-7  # LogitNorm's published code adds it to the norm; here it is the norm's least value.


def class_frequencies(labels: Iterable[LabelImage], num_classes: int) -> Frequencies:
    """Return the (num_classes,) share of each class among the labelled pixels of uint8 (H, W) label images.

    254 and 255 are not counted. Raises DatasetError for other values from `num_classes` up, or if nothing is labelled.
    """
    counts = np.zeros(256, np.int64)
    for image in labels:
        counts += np.bincount(image.reshape(-1), minlength=256)
    unknown = [value for value in range(num_classes, OUTLIER) if counts[value]]
    if unknown:
        raise DatasetError(f"label values {unknown} in the training labels; expected 0..{num_classes - 1}, 254 or 255")
    total = counts[:num_classes].sum()
    if total == 0:
        raise DatasetError("no labelled pixel in the training labels; class weights need some: check the dataset")
    return np.asarray(counts[:num_classes] / total, np.float64)


def enet_class_weights(frequencies: Frequencies, c: float = ENET_C) -> Tensor:
    """Return float32 (C,) weights 1 / ln(c + p) of class shares p: ENet, section 5.1; paper PTQ, equation 1.

    PTQ gives no c and calls it small: below or at 1 the weight of a rare class is infinite or negative. Raises
    ConfigError for that and for shares outside 0..1.
    """
    if not c > 1:
        raise ConfigError(f"class weights 1 / ln(c + p) with c {c!r}; expected above 1, ENet's is {ENET_C}")
    shares = np.asarray(frequencies, np.float64)
    if shares.ndim != 1 or not bool(((shares >= 0) & (shares <= 1)).all()):
        raise ConfigError(f"class frequencies {frequencies!r}; expected one share per class, each from 0 to 1")
    return torch.from_numpy((1.0 / np.log(c + shares)).astype(np.float32))


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Return the (weighted) cross-entropy. label_smoothing: mass spread over all classes, as torch's own does it."""
    logits, labels = _full_precision(logits), target.masked_fill(target == OUTLIER, IGNORED)
    total = _class_loss(logits, labels, weight, "sum", label_smoothing)
    if weight is None:
        return _mean(total, (labels != IGNORED).sum())
    return _mean(total, _pixel_weights(labels, weight, logits).sum())


def ohem_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, threshold: float = 0.7, min_share: float = 1 / 16
) -> Tensor:
    """Return the cross-entropy of the hard pixels: those whose own class has a probability below `threshold`.

    At least `min_share` of the counted pixels are kept, the hardest ones (equally hard ones all or none): threshold 1
    keeps all, a threshold near 0 only that share. Online hard example mining is Shrivastava et al., CVPR 2016; this
    rule, 0.7 and 1/16 are those of CoinCheung/BiSeNet's published code. Weights, which that code has not, count in the
    mean and not in the choice.
    """
    logits, labels = _full_precision(logits), target.masked_fill(target == OUTLIER, IGNORED)
    losses = _class_loss(logits, labels, None, "none")
    counted = labels != IGNORED
    with torch.no_grad():
        kept = losses > -math.log(threshold)
        hard_count, counted_count = torch.stack((kept.sum(), counted.sum())).tolist()
        least_count = int(counted_count * min_share)
        if hard_count < least_count:
            # Ignored pixels have loss 0: the easiest of all.
            kept = (losses >= _nth_largest(losses.flatten(), least_count)) & counted
    shares = kept if weight is None else kept * _pixel_weights(labels, weight, logits)
    return _mean((losses * shares).sum(), shares.sum())


def focal_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Return -(1 - p)^gamma log p of the target's probability p: Lin et al., ICCV 2017, equations 4 and 5.

    gamma 2 is the paper's; its alpha is `weight`. Deviation: the paper divides by the number of anchors with an object
    in them; a segmentation has no such count, so this is the mean over pixels.
    """
    logits, labels = _full_precision(logits), target.masked_fill(target == OUTLIER, IGNORED)
    losses = _class_loss(logits, labels, None, "none")
    # The clamp keeps the gradient of the power finite at p = 1 for gamma below 1.
    misses = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
    focal = misses**gamma * losses
    if weight is None:
        return _mean(focal.sum(), (labels != IGNORED).sum())
    shares = _pixel_weights(labels, weight, logits)
    return _mean((focal * shares).sum(), shares.sum())


def logit_norm(logits: Tensor, temperature: float) -> Tensor:
    """Return logits / (norm over the classes * temperature), to feed to a classification loss.

    LogitNorm: Wei et al., ICML 2022, arXiv 2205.09310; their tau is 0.04 on CIFAR-10 and 0.01 in the
    published code's example. Paper ArcLoRA, equation 3, is the same for features on a sphere. Only for training: the
    deployed graph scores the plain logits.
    """
    logits = _full_precision(logits)
    squares = (logits * logits).sum(1, keepdim=True).clamp_min(_SMALLEST_NORM**2)
    return logits * (squares.rsqrt() / temperature)


def entropy_maximisation(logits: Tensor, target: Tensor, void_class: int | None = None) -> Tensor:
    """Return the mean over outlier pixels of -(1 / K) sum_k log p_k, p the softmax over the K known classes.

    Chan, Rottmann and Gottschalk, ICCV 2021, arXiv 2012.06575, section 3: cross-entropy against the uniform
    distribution, which is ln K at the least, where the entropy is greatest. The paper minimises (1 - lambda) * known +
    lambda * this, lambda 0.9: weight 9 here, but for the scale. Its code divides both sums by the same pixel count;
    this is the mean over outliers, as in its equation, so that the size of the objects does not set the weight.
    """
    logits = _full_precision(logits)
    image, row, column = _outliers(target, void_class).nonzero(as_tuple=True)
    # Few pixels are outliers: gathering them costs a third of a dense softmax.
    known = logits[:, :void_class][image, :, row, column]
    return _mean((known.logsumexp(1) - known.mean(1)).sum(), torch.tensor(len(image), device=logits.device))


def energy_margin(
    logits: Tensor,
    target: Tensor,
    void_class: int | None = None,
    known_margin: float = ENERGY_KNOWN_MARGIN,
    outlier_margin: float = ENERGY_OUTLIER_MARGIN,
    temperature: float = 1.0,
) -> Tensor:
    """Return mean max(0, E - known_margin)^2 over known pixels + mean max(0, outlier_margin - E)^2 over outliers.

    E = -T logsumexp(z / T) over the known classes: Liu et al., NeurIPS 2020, arXiv 2010.03759, equations 7 and 8, whose
    code weights it 0.1. Per pixel, with these margins: PEBAL (Tian et al., ECCV 2022, arXiv 2111.12264), whose code
    takes half the sum and adds smoothness and sparsity terms that are not here.
    """
    logits = _full_precision(logits)
    outliers = _outliers(target, void_class)
    known = target < (logits.shape[1] if void_class is None else void_class)
    energy = -temperature * _log_sum_exp(logits[:, :void_class] / temperature)
    too_high = F.relu(energy - known_margin).square() * known
    too_low = F.relu(outlier_margin - energy).square() * outliers
    return _mean(too_high.sum(), known.sum()) + _mean(too_low.sum(), outliers.sum())


def distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    temperature: float = DISTILLATION_TEMPERATURE,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Return T^2 times the mean over pixels of KL(teacher || student), both softened by T; the teacher is a constant.

    Paper MiDE, equation 6 (T 1, for it names none); softening and T^2: Hinton et al., section 2. With a target, only
    the pixels of a class count: of outliers a teacher without a void class knows nothing worth teaching. With weights
    of the target's classes, (C,), it is the weighted mean, as in `cross_entropy`. Raises ConfigError where the two
    differ in shape.
    """
    if student_logits.shape != teacher_logits.shape:
        shapes = f"{tuple(teacher_logits.shape)}, the student's {tuple(student_logits.shape)}"
        raise ConfigError(f"the teacher's logits are {shapes}; distillation needs the same classes and size")
    with torch.no_grad():
        teacher = F.log_softmax(_full_precision(teacher_logits) / temperature, 1)
        probability = teacher.exp()
    student = F.log_softmax(_full_precision(student_logits) / temperature, 1)
    divergence = (probability * (teacher - student)).sum(1)
    if target is None:
        return divergence.mean() * temperature**2
    counted = (target < student.shape[1]).to(divergence.dtype)
    if class_weight is not None:
        counted = counted * class_weight[target.clamp(max=student.shape[1] - 1).long()]
    return _mean((divergence * counted).sum(), counted.sum()) * temperature**2


@dataclass(frozen=True)
class LossConfig:
    """What SegmentationLoss adds up. A weight of 0 leaves a term out.

    kind: cross_entropy, ohem or focal. class_weights_c: c of 1 / ln(c + p), None for no weights. void_weight: the void
    class's weight, None for its frequency's like the others (paper PTQ), 1.0 in paper MiDE. auxiliary_stride: every
    n-th pixel in which the auxiliary heads are judged; above 1 is a deviation from BiSeNet that saves most of what
    they cost. The outlier terms and the distillation are of the main head's plain logits. distillation_class_weights:
    whether a pixel weighs in the divergence as it does in the cross-entropy: without that, the teacher speaks mostly of
    what there is most of, and rare classes are learned late (a deviation from paper MiDE).
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
    distillation_weight: float = 0.0
    distillation_temperature: float = DISTILLATION_TEMPERATURE
    distillation_class_weights: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown kind and values that no loss can use."""
        if self.kind not in KINDS:
            raise ConfigError(unknown_name("loss kind", self.kind, KINDS))
        for name in ("auxiliary_weight", "entropy_weight", "energy_weight", "distillation_weight", "focal_gamma"):
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
        self, logits: tuple[Tensor, ...], target: Tensor, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the terms by name (classification, auxiliary, entropy, energy, distillation), weighted, and total.

        logits: the main head's, then the auxiliary heads', (N, C, h, w) at any size; they are upsampled to the target's
        (N, H, W). teacher_logits: of the same C, needed for distillation. Raises ConfigError where they do not fit.
        """
        config = self.config
        with torch.autocast(target.device.type, enabled=False):
            main = _resize(logits[0], target)
            self._check(main, teacher_logits)
            terms = {"classification": self._classify(main, target)}
            if len(logits) > 1 and config.auxiliary_weight:
                terms["auxiliary"] = config.auxiliary_weight * self._auxiliary(logits[1:], target)
            if config.entropy_weight:
                terms["entropy"] = config.entropy_weight * entropy_maximisation(main, target, self.void_class)
            if config.energy_weight:
                margins = (config.energy_known_margin, config.energy_outlier_margin)
                terms["energy"] = config.energy_weight * energy_margin(main, target, self.void_class, *margins)
            if config.distillation_weight and teacher_logits is not None:
                teacher = _resize(teacher_logits, target)
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
        return torch.stack([self._classify(_resize(head, sampled), sampled) for head in heads]).sum()

    def _check(self, logits: Tensor, teacher_logits: Tensor | None) -> None:
        outputs = logits.shape[1]
        if self.void_class is not None and outputs != self.void_class + 1:
            raise ConfigError(f"the network has {outputs} outputs, the void class is {self.void_class}: not the last")
        if self.class_weight is not None and outputs != len(self.class_weight):
            raise ConfigError(
                f"the network has {outputs} outputs, but there are {len(self.class_weight)} class weights"
            )
        if self.config.distillation_weight and teacher_logits is None:
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


def _full_precision(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _resize(logits: Tensor, target: Tensor) -> Tensor:
    logits, size = _full_precision(logits), target.shape[-2:]
    return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _outliers(target: Tensor, void_class: int | None) -> Tensor:
    outliers = target == OUTLIER
    return outliers if void_class is None else outliers | (target == void_class)


def _class_loss(
    logits: Tensor, labels: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float = 0.0
) -> Tensor:
    weight = None if weight is None else weight.to(logits.dtype)
    try:
        return F.cross_entropy(
            logits, labels, weight, ignore_index=IGNORED, reduction=reduction, label_smoothing=label_smoothing
        )
    except IndexError as error:
        expected = f"expected 0..{logits.shape[1] - 1}, {OUTLIER} or {IGNORED}; check the dataset's labels"
        raise DatasetError(f"a target value is out of range ({error}); {expected}") from error


def _pixel_weights(labels: Tensor, weight: Tensor, logits: Tensor) -> Tensor:
    return F.pad(weight.to(logits.dtype), (0, 256 - len(weight)))[labels]  # 0 for ignored pixels


def _nth_largest(values: Tensor, n: int) -> Tensor:
    # A sample tells which values can be it; selecting among those alone takes a third of the time.
    sample = values[::64]
    likely = min(len(sample), math.ceil(len(sample) * n / len(values) * 1.2) + 8)
    candidates = values[values >= sample.kthvalue(len(sample) - likely + 1).values]
    candidates = candidates if len(candidates) >= n else values
    return candidates.kthvalue(len(candidates) - n + 1).values


def _log_sum_exp(logits: Tensor) -> Tensor:
    # torch.logsumexp over channels, in two thirds of its time; the maximum cancels, so it needs no gradient.
    highest = logits.detach().amax(1, keepdim=True)
    return (logits - highest).exp_().sum(1).log() + highest[:, 0]


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / count.to(total.dtype).where(count > 0, 1.0)
