from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from loss_samples import CLASSES, VOID, Array, batch, log_softmax, rows  # noqa: E402
from torch import Tensor  # noqa: E402

from anomseg_ros.core.labels import KNOWN_UNCERTAIN  # noqa: E402
from anomseg_ros.errors import ConfigError, DatasetError  # noqa: E402
from anomseg_ros.training.losses import (  # noqa: E402
    IGNORED,
    OUTLIER,
    cross_entropy,
    distillation,
    energy_margin,
    enet_class_weights,
    entropy_maximisation,
    focal_loss,
    logit_norm,
    mean_probability,
    ohem_cross_entropy,
)

WEIGHT = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.25])


def own_log_p(logits: Tensor, target: Tensor) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return ln p of the own class and that class, of the pixels of a class."""
    labels = target.numpy().reshape(-1)
    counted = labels < logits.shape[1]
    return log_softmax(rows(logits))[counted, labels[counted]], labels[counted]


CLASSIFICATION: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "ohem": ohem_cross_entropy,
    "focal": focal_loss,
    "logit_norm": lambda logits, target, weight=None: cross_entropy(logit_norm(logits, 0.5), target, weight),
    "smoothed": lambda logits, target, weight=None: cross_entropy(logits, target, weight, 0.1),
}
OUTLIER_TERMS: dict[str, Callable[..., Tensor]] = {
    "entropy": entropy_maximisation,
    # The margins are in the middle of the energies of these logits, so that both sides contribute.
    "energy": lambda logits, target, void_class=None: energy_margin(logits, target, void_class, -4.0, -3.0),
}


# The formulas, in plain numpy


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_equals_the_weighted_mean_over_labelled_pixels(weight: Tensor | None) -> None:
    logits, target = batch()
    log_p, labels = own_log_p(logits, target)
    shares = np.ones(len(labels)) if weight is None else weight.numpy()[labels]
    assert cross_entropy(logits, target, weight).item() == pytest.approx((-log_p * shares).sum() / shares.sum())


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_label_smoothing_distributes_mass_over_all_classes(weight: Tensor | None) -> None:
    logits, target = batch()
    labels = target.numpy().reshape(-1)
    weights = np.ones(CLASSES) if weight is None else weight.double().numpy()
    counted = labels < CLASSES
    wanted = 0.9 * np.eye(CLASSES)[labels[counted]] + 0.1 / CLASSES
    expected = -(wanted * weights * log_softmax(rows(logits))[counted]).sum() / weights[labels[counted]].sum()
    assert cross_entropy(logits, target, weight, label_smoothing=0.1).item() == pytest.approx(expected)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("threshold", [0.02, 0.3, 0.7])
def test_ohem_keeps_hard_pixels_or_the_minimum_share(threshold: float, weight: Tensor | None) -> None:
    logits, target = batch()
    log_p, labels = own_log_p(logits, target)
    hard = np.exp(log_p) < threshold
    least = int(len(log_p) / 4)
    assert (hard.sum() < least) == (threshold == 0.02), "both branches must be tested"
    if hard.sum() < least:
        hard = np.isin(np.arange(len(log_p)), np.argsort(log_p)[:least])
    shares = (np.ones(CLASSES) if weight is None else weight.numpy())[labels] * hard
    loss = ohem_cross_entropy(logits, target, weight, threshold, min_share=1 / 4)
    assert loss.item() == pytest.approx((-log_p * shares).sum() / shares.sum())


def test_ohem_of_all_pixels_equals_cross_entropy() -> None:
    logits, target = batch()
    plain = cross_entropy(logits, target).item()
    assert ohem_cross_entropy(logits, target, threshold=1.0).item() == pytest.approx(plain)
    assert ohem_cross_entropy(logits, target, threshold=1e-9, min_share=1.0).item() == pytest.approx(plain)


@pytest.mark.parametrize("order", ["random", "rising", "falling", "sample easiest", "sample hardest"])
@pytest.mark.parametrize("size", [1, 63, 700, 20_000])
def test_ohem_finds_the_hardest_share_in_any_order(order: str, size: int) -> None:
    # The order of pixels, and whether every 64th is hard, must not change which are kept.
    margin = torch.linspace(-3, 3, size, dtype=torch.float64)
    margin = {
        "random": margin[torch.randperm(size, generator=torch.Generator().manual_seed(0))],
        "rising": margin,
        "falling": margin.flip(0),
        "sample easiest": torch.where(torch.arange(size) % 64 == 0, 3.0, margin),
        "sample hardest": torch.where(torch.arange(size) % 64 == 0, -3.0, margin),
    }[order]
    logits = torch.stack((margin, torch.zeros(size, dtype=torch.float64))).reshape(1, 2, 1, size)
    least = int(size / 16)
    losses = np.sort(np.log1p(np.exp(-margin.numpy())))[::-1][:least]
    loss = ohem_cross_entropy(logits, torch.zeros(1, 1, size, dtype=torch.long), threshold=1e-9)
    assert loss.item() == pytest.approx(losses.mean() if least else 0.0)


def test_ohem_excludes_ignored_pixels_from_the_share() -> None:
    logits = torch.zeros(1, 2, 1, 64)
    logits[:, 0] = 200.0
    logits[..., 0] = 0.0
    target = torch.zeros(1, 1, 64, dtype=torch.long)
    target[..., 32:] = IGNORED
    loss = ohem_cross_entropy(logits, target, threshold=0.3, min_share=1 / 4)
    assert loss.item() == pytest.approx(math.log(2) / 32), "31 pixels are equally certain: all of them are kept"


def test_ohem_gives_no_gradient_to_easy_pixels() -> None:
    logits, target = batch()
    ohem_cross_entropy(logits, target, threshold=0.3).backward()
    moved = rows(logits.grad).any(1)
    labels = target.numpy().reshape(-1)
    counted = labels < CLASSES
    assert np.array_equal(moved[counted], np.exp(own_log_p(logits, target)[0]) < 0.3)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_equals_the_formula(gamma: float, weight: Tensor | None) -> None:
    logits, target = batch()
    log_p, labels = own_log_p(logits, target)
    shares = np.ones(len(labels)) if weight is None else weight.numpy()[labels]
    expected = (-((1 - np.exp(log_p)) ** gamma) * log_p * shares).sum() / shares.sum()
    assert focal_loss(logits, target, weight, gamma).item() == pytest.approx(expected)


def test_focal_loss_with_gamma_0_is_cross_entropy() -> None:
    logits, target = batch()
    assert focal_loss(logits, target, WEIGHT, 0.0).item() == pytest.approx(cross_entropy(logits, target, WEIGHT).item())


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_of_certain_pixels_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.zeros(1, 3, 1, 2)
    logits[0, 0] = 200.0
    logits.requires_grad_()
    focal_loss(logits, torch.tensor([[[0, IGNORED]]]), gamma=gamma).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_logit_norm_sets_the_norm_and_keeps_the_direction() -> None:
    logits, _ = batch()
    normalised = logit_norm(logits, 0.04)
    assert torch.allclose(normalised.norm(dim=1), torch.full((2, 6, 7), 25.0, dtype=torch.float64))
    assert torch.allclose(normalised, logits / logits.norm(dim=1, keepdim=True) / 0.04)
    assert torch.allclose(logit_norm(1000 * logits, 0.04), normalised)


def test_logit_norm_of_zeros_is_zero_with_a_finite_gradient() -> None:
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    normalised = logit_norm(logits, 0.04)
    assert not normalised.any()
    cross_entropy(normalised, torch.zeros(1, 2, 2, dtype=torch.long)).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["cross_entropy", "ohem", "focal"])
def test_classification_ignores_uncertain_known_pixels(name: str) -> None:
    logits, target = batch(0)
    marked = target.clone()
    marked[target == IGNORED] = KNOWN_UNCERTAIN
    assert CLASSIFICATION[name](logits, marked).item() == CLASSIFICATION[name](logits, target).item()


def test_class_weights_equal_the_formula_of_the_paper() -> None:
    frequencies = np.array([6 / 8, 1 / 8, 1 / 8, 0])
    weights = enet_class_weights(frequencies)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([1 / math.log(1.02 + p) for p in frequencies])
    # ENet, section 5.1: the weights stay between 1 and 50.
    assert enet_class_weights(np.array([0.0])).item() == pytest.approx(50, abs=0.5)
    assert enet_class_weights(np.array([1.0])).item() >= 1


def test_invalid_frequencies_are_refused() -> None:
    with pytest.raises(ConfigError, match="above 1"):
        enet_class_weights(np.array([0.5, 0.5]), c=1.0)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        enet_class_weights(np.array([3.0, 0.5]))


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_target_out_of_range_error_names_it(name: str) -> None:
    logits, target = batch()
    target[0, 3, 1] = CLASSES
    with pytest.raises(DatasetError, match=r"Target 5.*expected 0\.\.4"):
        CLASSIFICATION[name](logits, target)


# Gradients and counted pixels


@pytest.mark.parametrize("name", [*CLASSIFICATION, *OUTLIER_TERMS, "distillation"])
def test_gradients_equal_numerical_gradients(name: str) -> None:
    logits, target = batch()
    teacher = mean_probability([batch(1)[0]])
    functions = {**CLASSIFICATION, **OUTLIER_TERMS, "distillation": lambda x, t: distillation(x, teacher, t)}
    assert torch.autograd.gradcheck(lambda x: functions[name](x, target), (logits,))


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("name", CLASSIFICATION)
def test_classification_excludes_ignored_pixels_and_outliers(name: str, weight: Tensor | None) -> None:
    logits, target = batch()
    loss = CLASSIFICATION[name](logits, target, weight)
    loss.backward()
    aside = target >= OUTLIER
    assert not logits.grad.movedim(1, -1)[aside].any()
    assert logits.grad.movedim(1, -1)[~aside].any()
    other = logits.detach().clone()
    other.movedim(1, -1)[aside] = 50.0
    assert CLASSIFICATION[name](other, target, weight).item() == pytest.approx(loss.item())


def test_void_pixels_are_classified_with_a_void_class() -> None:
    logits, target = batch()
    cross_entropy(logits, target.masked_fill(target == OUTLIER, VOID)).backward()
    assert (logits.grad[:, VOID][target == OUTLIER] < 0).all()


@pytest.mark.parametrize("name", OUTLIER_TERMS)
def test_outlier_terms_exclude_ignored_pixels_and_the_void_logit(name: str) -> None:
    logits, target = batch()
    OUTLIER_TERMS[name](logits, target, VOID).backward()
    assert not logits.grad.movedim(1, -1)[target == IGNORED].any()
    assert not logits.grad[:, VOID].any()
    assert logits.grad[:, :VOID].any()


@pytest.mark.parametrize("name", OUTLIER_TERMS)
def test_outlier_label_and_void_class_are_equivalent(name: str) -> None:
    logits, target = batch()
    renamed = target.masked_fill(target == OUTLIER, VOID)
    assert OUTLIER_TERMS[name](logits, target, VOID).item() == OUTLIER_TERMS[name](logits, renamed, VOID).item()


@pytest.mark.parametrize("name", [*CLASSIFICATION, *OUTLIER_TERMS, "distillation"])
def test_loss_and_gradient_are_zero_without_counted_pixels(name: str) -> None:
    logits, target = batch()
    functions = {
        **CLASSIFICATION,
        **OUTLIER_TERMS,
        "distillation": lambda x, t: distillation(x, mean_probability([2 * x]), t),
    }
    loss = functions[name](logits, torch.full_like(target, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", [*CLASSIFICATION, "energy", "distillation"])
def test_nan_logit_gives_nan_loss(name: str) -> None:
    logits, target = batch()
    functions = {**CLASSIFICATION, **OUTLIER_TERMS, "distillation": lambda x, t: distillation(x, x + 1, t)}
    spoiled = logits.detach().clone()
    spoiled[0, 1, 5, 6] = math.nan
    assert target[0, 5, 6] < CLASSES
    assert math.isnan(functions[name](spoiled, target).item())
