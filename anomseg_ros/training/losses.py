"""The losses of the lightweight papers, each with its source; segmentation_loss.py adds them up.

Arguments of every function:

- logits: float (N, C, H, W).
- target: int64 (N, H, W), classes 0..C-1, 252 known without a class, 254 outlier, 255 ignored.
- weight: float (C,) class weights or None.
- void_class: index of the void class K = C - 1, or None. The data loader gives outliers this class. The outlier terms
  count 254 and K as outliers, and use the logits of the known classes alone (all C, or 0..K-1).

The classification losses ignore 252, and 254 if there is no void class. `not_void` and `distillation` learn from 252.

Every loss is a float32 scalar (float64 for float64 logits), also under autocast. It is the mean over its counted
pixels, weighted as in torch's cross-entropy; 0, with a gradient of 0, if no pixel is counted. A NaN in a counted logit
makes the loss NaN. Other values in a target raise DatasetError on the CPU (CUDA asserts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from anomseg_ros.core.labels import KNOWN_UNCERTAIN
from anomseg_ros.errors import ConfigError, DatasetError

IGNORED, OUTLIER = 255, 254

Frequencies = npt.NDArray[np.float64]

ENET_C = 1.02
"""ENet, arXiv 1606.02147, section 5.1: weights then lie between 1.4 and 50.5."""
ENERGY_KNOWN_MARGIN, ENERGY_OUTLIER_MARGIN = -12.0, -6.0
"""m_in and m_out of PEBAL's published code, per pixel. For images, Liu et al.'s code has -25 and -7."""
DISTILLATION_TEMPERATURE = 4.0
"""Hinton et al., arXiv 1503.02531, section 3: 2.5 to 4 was best for the smallest student. Paper MiDE gives none."""
_SMALLEST_NORM = 1e-7  # LogitNorm's published code adds it to the norm; here the norm is at least this.


def enet_class_weights(frequencies: Frequencies, c: float = ENET_C) -> Tensor:
    """Return float32 (C,) weights 1 / ln(c + p) of class shares p: ENet, section 5.1; paper PTQ, equation 1.

    PTQ gives no c and calls it small. Raises ConfigError for a c of at most 1, for which a rare class's weight is
    infinite or negative, and for shares outside 0..1.
    """
    if not c > 1:
        raise ConfigError(f"class weights 1 / ln(c + p) with c {c!r}; expected above 1, ENet's is {ENET_C}")
    shares = np.asarray(frequencies, np.float64)
    if shares.ndim != 1 or not bool(((shares >= 0) & (shares <= 1)).all()):
        raise ConfigError(f"class frequencies {frequencies!r}; expected one share per class, each from 0 to 1")
    return torch.from_numpy((1.0 / np.log(c + shares)).astype(np.float32))


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Return the (weighted) cross-entropy. label_smoothing: mass spread over all classes, as in torch."""
    logits, labels = _full_precision(logits), target.masked_fill(target >= KNOWN_UNCERTAIN, IGNORED)
    total = _class_loss(logits, labels, weight, "sum", label_smoothing)
    if weight is None:
        return _mean(total, (labels != IGNORED).sum())
    return _mean(total, _pixel_weights(labels, weight, logits).sum())


def ohem_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, threshold: float = 0.7, min_share: float = 1 / 16
) -> Tensor:
    """Return the cross-entropy of hard pixels, whose true class has a probability below `threshold`.

    At least the hardest `min_share` of the counted pixels is kept; equally hard pixels are kept all or none. So
    threshold 1 keeps all pixels, and a threshold near 0 keeps only that share. Source: online hard example mining,
    Shrivastava et al., CVPR 2016; this rule, 0.7 and 1/16: CoinCheung/BiSeNet's published code.

    Args:
        logits, target: see the module.
        weight: see the module. It counts in the mean, not in the choice; the published code has no weights.
        threshold: probability.
        min_share: least share of pixels.
    """
    logits, labels = _full_precision(logits), target.masked_fill(target >= KNOWN_UNCERTAIN, IGNORED)
    losses = _class_loss(logits, labels, None, "none")
    counted = labels != IGNORED
    with torch.no_grad():
        hard = losses > -math.log(threshold)
        hard_count, counted_count = torch.stack((hard.sum(), counted.sum())).tolist()
        least_count = int(counted_count * min_share)
        if hard_count < least_count:
            # Ignored pixels have loss 0, like the easiest ones.
            hard = (losses >= _nth_largest(losses.flatten(), least_count)) & counted
    shares = hard if weight is None else hard * _pixel_weights(labels, weight, logits)
    return _mean((losses * shares).sum(), shares.sum())


def focal_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Return -(1 - p)^gamma log p of the target's probability p: Lin et al., ICCV 2017, equations 4 and 5.

    gamma 2 and the class weights (alpha) are the paper's. Deviation: the paper divides by the number of anchors with an
    object; a segmentation has none, so this is the mean over pixels.
    """
    logits, labels = _full_precision(logits), target.masked_fill(target >= KNOWN_UNCERTAIN, IGNORED)
    losses = _class_loss(logits, labels, None, "none")
    # The clamp keeps the gradient of the power finite at p = 1 for gamma below 1.
    misses = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
    focal = misses**gamma * losses
    if weight is None:
        return _mean(focal.sum(), (labels != IGNORED).sum())
    shares = _pixel_weights(labels, weight, logits)
    return _mean((focal * shares).sum(), shares.sum())


def logit_norm(logits: Tensor, temperature: float) -> Tensor:
    """Return logits / (norm over the classes * temperature), for a classification loss.

    LogitNorm: Wei et al., ICML 2022, arXiv 2205.09310; tau is 0.04 on CIFAR-10 and 0.01 in the published code's
    example. Equation 3 of paper ArcLoRA is the same for features on a sphere. Deployed graphs score plain logits.
    """
    logits = _full_precision(logits)
    squares = (logits * logits).sum(1, keepdim=True).clamp_min(_SMALLEST_NORM**2)
    return logits * (squares.rsqrt() / temperature)


def entropy_maximisation(logits: Tensor, target: Tensor, void_class: int | None = None) -> Tensor:
    """Return the mean over outlier pixels of -(1 / K) sum_k log p_k, p the softmax over the K known classes.

    Chan, Rottmann and Gottschalk, ICCV 2021, arXiv 2012.06575, section 3: cross-entropy against the uniform
    distribution. Its least value is ln K, where the entropy is greatest. The paper minimises (1 - lambda) * known +
    lambda * this with lambda 0.9, which is a weight of 9 up to a scale. Its code divides both sums by the same pixel
    count. This is the mean over outliers, as in the paper's equation, so the weight does not depend on objects' size.
    """
    logits = _full_precision(logits)
    image, row, column = _outliers(target, void_class).nonzero(as_tuple=True)
    # Few pixels are outliers, so gathering them costs a third of a dense softmax.
    known = logits[:, :void_class][image, :, row, column]
    return _mean((known.logsumexp(1) - known.mean(1)).sum(), torch.tensor(len(image), device=logits.device))


def energy_margin(
    logits: Tensor,
    target: Tensor,
    void_class: int | None = None,
    known_margin: float = ENERGY_KNOWN_MARGIN,
    outlier_margin: float = ENERGY_OUTLIER_MARGIN,
) -> Tensor:
    """Return mean max(0, E - known_margin)^2 over known pixels + mean max(0, outlier_margin - E)^2 over outliers.

    E = -logsumexp(z) over the known classes: Liu et al., NeurIPS 2020, arXiv 2010.03759, equations 7 and 8, with
    a weight of 0.1 in their code. Per pixel and with these margins: PEBAL (Tian et al., ECCV 2022, arXiv 2111.12264),
    whose code takes half the sum and adds smoothness and sparsity terms, which are left out here.

    Args:
        logits, target, void_class: see the module.
        known_margin: the energy of known pixels should be below it.
        outlier_margin: the energy of outliers should be above it.
    """
    logits = _full_precision(logits)
    outliers = _outliers(target, void_class)
    known = target < (logits.shape[1] if void_class is None else void_class)
    energy = -_log_sum_exp(logits[:, :void_class])
    too_high = F.relu(energy - known_margin).square() * known
    too_low = F.relu(outlier_margin - energy).square() * outliers
    return _mean(too_high.sum(), known.sum()) + _mean(too_low.sum(), outliers.sum())


def not_void(logits: Tensor, target: Tensor, void_class: int) -> Tensor:
    """Return the sum of -log(1 - p_void) over pixels of 252, over the number of pixels of 252 or a class.

    It is the cross-entropy of the union of the known classes: a label without a class still means "not void".
    """
    logits = _full_precision(logits)
    uncertain = target == KNOWN_UNCERTAIN
    image, row, column = uncertain.nonzero(as_tuple=True)
    values = logits[image, :, row, column]
    total = (values.logsumexp(1) - values[:, :void_class].logsumexp(1)).sum()
    return _mean(total, (uncertain | (target < logits.shape[1])).sum())


def mean_probability(teacher_logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Return the teachers' mean probabilities (N, C, h, w), softened by T, at the size of the first teacher's logits.

    Source: Hinton et al., arXiv 1503.02531, section 3. Raises ConfigError if teachers have different classes.
    """
    first = teacher_logits[0]
    if any(logits.shape[1] != first.shape[1] for logits in teacher_logits):
        counts = ", ".join(str(logits.shape[1]) for logits in teacher_logits)
        raise ConfigError(f"the teachers have {counts} outputs; distillation needs the same classes")
    each = [F.softmax(resized(logits, first.shape[-2:]) / temperature, 1) for logits in teacher_logits]
    return torch.stack(each).mean(0) if len(each) > 1 else each[0]


def distillation(
    student_logits: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,
    temperature: float = DISTILLATION_TEMPERATURE,
    class_weight: Tensor | None = None,
    where_right: bool = False,
) -> Tensor:
    """Return T^2 times the mean over pixels of KL(teacher || student), the student softened by T.

    Sources: paper MiDE, equation 6 (which has no T); softening and T^2: Hinton et al., section 2.

    Args:
        student_logits: (N, C, H, W).
        teacher: constant softened probabilities (N, C, H, W), or (N, C - 1, H, W) without the student's void class,
            whose probability is then 0.
        target: see the module; if given, only pixels of the teacher's classes and of 252 count.
        temperature: T.
        class_weight: (C,) weights of pixels by target, as in `cross_entropy`; 252 weighs as much as the mean class.
        where_right: whether pixels with a class count only where it is the teacher's most probable one.

    Raises:
        ConfigError: classes or sizes do not fit.
    """
    outputs = student_logits.shape[1]
    fits = teacher.shape[1] in (outputs, outputs - 1)
    if not fits or (len(teacher), *teacher.shape[2:]) != (len(student_logits), *student_logits.shape[2:]):
        shapes = f"{tuple(teacher.shape)}, the student's logits {tuple(student_logits.shape)}"
        raise ConfigError(f"the teacher's probabilities are {shapes}; distillation needs the same classes and size")
    teacher = _full_precision(teacher.detach())
    student = F.log_softmax(_full_precision(student_logits) / temperature, 1)[:, : teacher.shape[1]]
    divergence = (torch.xlogy(teacher, teacher) - teacher * student).sum(1)
    if target is None:
        return divergence.mean() * temperature**2
    labelled = target < teacher.shape[1]
    if where_right:
        labelled = target == teacher.argmax(1)
    counted = (labelled | (target == KNOWN_UNCERTAIN)).to(divergence.dtype)
    if class_weight is not None:
        by_label = F.pad(class_weight, (0, 256 - outputs), value=float(class_weight.mean()))
        counted = counted * by_label[target]
    return _mean((divergence * counted).sum(), counted.sum()) * temperature**2


def _full_precision(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def resized(values: Tensor, size: torch.Size) -> Tensor:
    """Return logits or probabilities (N, C, h, w) at another size (H, W), bilinearly, in full precision."""
    values = _full_precision(values)
    return values if values.shape[-2:] == size else F.interpolate(values, size, mode="bilinear", align_corners=False)


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
    # A sample bounds the value; selecting among the values above the bound takes a third of the time.
    sample = values[::64]
    likely = min(len(sample), math.ceil(len(sample) * n / len(values) * 1.2) + 8)
    candidates = values[values >= sample.kthvalue(len(sample) - likely + 1).values]
    candidates = candidates if len(candidates) >= n else values
    return candidates.kthvalue(len(candidates) - n + 1).values


def _log_sum_exp(logits: Tensor) -> Tensor:
    # As torch.logsumexp over channels, in two thirds of its time. The maximum cancels, so it needs no gradient.
    highest = logits.detach().amax(1, keepdim=True)
    return (logits - highest).exp_().sum(1).log() + highest[:, 0]


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / count.to(total.dtype).where(count > 0, 1.0)
