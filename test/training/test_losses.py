from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from loss_samples import CLASSES, VOID, batch  # noqa: E402
from torch import Tensor  # noqa: E402

from anomseg_ros.core.labels import KNOWN_UNCERTAIN  # noqa: E402
from anomseg_ros.errors import ConfigError, DatasetError  # noqa: E402
from anomseg_ros.training.losses import (  # noqa: E402
    IGNORED,
    OUTLIER,
    class_frequencies,
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
)

WEIGHT = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.25])
Array = npt.NDArray[np.float64]


def rows(logits: Tensor) -> Array:
    """Return (pixels, C) logits, one row per pixel in the target's order."""
    return logits.detach().double().numpy().transpose(0, 2, 3, 1).reshape(-1, logits.shape[1])


def log_softmax(values: Array) -> Array:
    return np.asarray(values - np.log(np.exp(values).sum(1, keepdims=True)))


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
    # Margins in the middle of these logits' energies, so that both sides are at work.
    "energy": lambda logits, target, void_class=None: energy_margin(logits, target, void_class, -4.0, -3.0),
}


# The formulas, in plain numpy


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_is_the_weighted_mean_over_the_pixels_of_a_class(weight: Tensor | None) -> None:
    logits, target = batch()
    log_p, labels = own_log_p(logits, target)
    shares = np.ones(len(labels)) if weight is None else weight.numpy()[labels]
    assert cross_entropy(logits, target, weight).item() == pytest.approx((-log_p * shares).sum() / shares.sum())


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_label_smoothing_spreads_mass_over_all_classes(weight: Tensor | None) -> None:
    logits, target = batch()
    labels = target.numpy().reshape(-1)
    weights = np.ones(CLASSES) if weight is None else weight.double().numpy()
    counted = labels < CLASSES
    wanted = 0.9 * np.eye(CLASSES)[labels[counted]] + 0.1 / CLASSES
    expected = -(wanted * weights * log_softmax(rows(logits))[counted]).sum() / weights[labels[counted]].sum()
    assert cross_entropy(logits, target, weight, label_smoothing=0.1).item() == pytest.approx(expected)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("threshold", [0.02, 0.3, 0.7])
def test_ohem_keeps_the_hard_pixels_or_the_least_share(threshold: float, weight: Tensor | None) -> None:
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


def test_ohem_with_threshold_1_or_the_whole_share_is_cross_entropy() -> None:
    logits, target = batch()
    plain = cross_entropy(logits, target).item()
    assert ohem_cross_entropy(logits, target, threshold=1.0).item() == pytest.approx(plain)
    assert ohem_cross_entropy(logits, target, threshold=1e-9, min_share=1.0).item() == pytest.approx(plain)


@pytest.mark.parametrize("order", ["random", "rising", "falling", "sample easiest", "sample hardest"])
@pytest.mark.parametrize("size", [1, 63, 700, 20_000])
def test_ohem_finds_the_hardest_share_wherever_they_are(order: str, size: int) -> None:
    # Rows of hard pixels, a sample of every 64th among them or not, must not change which are kept.
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


def test_ohem_counts_no_ignored_pixel_among_certain_ones() -> None:
    logits = torch.zeros(1, 2, 1, 64)
    logits[:, 0] = 200.0
    logits[..., 0] = 0.0
    target = torch.zeros(1, 1, 64, dtype=torch.long)
    target[..., 32:] = IGNORED
    loss = ohem_cross_entropy(logits, target, threshold=0.3, min_share=1 / 4)
    assert loss.item() == pytest.approx(math.log(2) / 32), "31 pixels are equally certain: all of them are kept"


def test_ohem_gives_easy_pixels_no_gradient() -> None:
    logits, target = batch()
    ohem_cross_entropy(logits, target, threshold=0.3).backward()
    moved = rows(logits.grad).any(1)
    labels = target.numpy().reshape(-1)
    counted = labels < CLASSES
    assert np.array_equal(moved[counted], np.exp(own_log_p(logits, target)[0]) < 0.3)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_weakens_easy_pixels(gamma: float, weight: Tensor | None) -> None:
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


def known_and_outliers(logits: Tensor, target: Tensor, void_class: int | None) -> tuple[Array, Array, Array]:
    """Return known logits per pixel, and which pixels are known and outliers."""
    labels = target.numpy().reshape(-1)
    known_count = CLASSES if void_class is None else void_class
    outliers = (labels == OUTLIER) | (labels == (-1 if void_class is None else void_class))
    return rows(logits)[:, :known_count], labels < known_count, outliers


@pytest.mark.parametrize("void_class", [None, VOID])
def test_entropy_maximisation_is_cross_entropy_against_the_uniform_distribution(void_class: int | None) -> None:
    logits, target = batch()
    values, _, outliers = known_and_outliers(logits, target, void_class)
    expected = -log_softmax(values)[outliers].mean(1).mean()
    assert entropy_maximisation(logits, target, void_class).item() == pytest.approx(expected)


@pytest.mark.parametrize("known_count", [3, 12])
def test_entropy_maximisation_is_least_where_the_classes_are_level(known_count: int) -> None:
    target = torch.full((1, 2, 2), OUTLIER)
    assert entropy_maximisation(torch.full((1, known_count, 2, 2), 7.0), target).item() == pytest.approx(
        math.log(known_count)
    )


@pytest.mark.parametrize("void_class", [None, VOID])
def test_a_step_on_the_entropy_term_raises_the_entropy_of_outliers_alone(void_class: int | None) -> None:
    logits, target = batch()
    entropy_maximisation(logits, target, void_class).backward()
    stepped = logits - logits.grad
    before, _, outliers = known_and_outliers(logits, target, void_class)
    after = log_softmax(known_and_outliers(stepped, target, void_class)[0])
    before = log_softmax(before)
    gains = -(np.exp(after) * after).sum(1) + (np.exp(before) * before).sum(1)
    assert (gains[outliers] > 0).all()
    assert np.array_equal(rows(stepped)[~outliers], rows(logits)[~outliers])


@pytest.mark.parametrize("void_class", [None, VOID])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_energy_margin_is_a_squared_hinge_on_both_sides(void_class: int | None, temperature: float) -> None:
    logits, target = batch()
    values, known, outliers = known_and_outliers(logits, target, void_class)
    energy = -temperature * np.log(np.exp(values / temperature).sum(1))
    parts = (np.maximum(0, energy + 4)[known] ** 2, np.maximum(0, -3 - energy)[outliers] ** 2)
    assert all(part.any() and not part.all() for part in parts), "both sides of both hinges must be tested"
    loss = energy_margin(logits, target, void_class, -4.0, -3.0, temperature)
    assert loss.item() == pytest.approx(parts[0].mean() + parts[1].mean())


def test_energy_margin_is_zero_when_both_margins_hold() -> None:
    target = torch.tensor([[[0, OUTLIER, IGNORED]]])
    logits = torch.zeros(1, 3, 1, 3, dtype=torch.float64)
    logits[0, :, 0, 0] = 11.5  # energy -12.6, below -12
    logits[0, :, 0, 1] = 4.0  # energy -5.1, above -6
    logits.requires_grad_()
    loss = energy_margin(logits, target)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    assert energy_margin(logits, target, known_margin=-13.0).item() == pytest.approx((13 - 11.5 - math.log(3)) ** 2)
    assert energy_margin(logits, target, outlier_margin=-5.0).item() == pytest.approx((4 + math.log(3) - 5) ** 2)


def test_energy_of_large_logits_does_not_overflow() -> None:
    logits = torch.full((1, 3, 1, 1), 500.0)
    loss = energy_margin(logits, torch.tensor([[[OUTLIER]]]))
    assert loss.item() == pytest.approx((500 + math.log(3) - 6) ** 2, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_distillation_is_the_divergence_of_softened_outputs(temperature: float, masked: bool) -> None:
    student, target = batch(0)
    target[1, 1] = KNOWN_UNCERTAIN
    teacher, _ = batch(1, scale=5.0)
    p, q = log_softmax(rows(teacher) / temperature), log_softmax(rows(student) / temperature)
    divergence = (np.exp(p) * (p - q)).sum(1) * temperature**2
    if masked:
        labels = target.numpy().reshape(-1)
        divergence = divergence[(labels < CLASSES) | (labels == KNOWN_UNCERTAIN)]
    probability = mean_probability([teacher], temperature)
    loss = distillation(student, probability, target if masked else None, temperature)
    assert loss.item() == pytest.approx(divergence.mean())
    loss.backward()
    assert teacher.grad is None


def test_distillation_by_class_weights_is_the_weighted_mean() -> None:
    student, target = batch(0)
    teacher, _ = batch(1, scale=5.0)
    weight = torch.linspace(1, 3, CLASSES)
    p, q = log_softmax(rows(teacher) / 2), log_softmax(rows(student) / 2)
    divergence = (np.exp(p) * (p - q)).sum(1) * 4
    labels = target.numpy().reshape(-1)
    known = labels < CLASSES
    expected = np.average(divergence[known], weights=weight.numpy()[labels[known]])
    probability = mean_probability([teacher], 2.0)
    assert distillation(student, probability, target, 2.0, weight).item() == pytest.approx(expected)


def test_distillation_weighs_what_is_known_without_a_class_as_the_mean_class() -> None:
    student, target = batch(0)
    teacher, weight = mean_probability([batch(1)[0]]), torch.linspace(1, 3, CLASSES)
    one = torch.full_like(target, IGNORED)
    one[0, 0, 0], one[0, 0, 1] = KNOWN_UNCERTAIN, 0
    alone = [torch.full_like(target, IGNORED) for _ in range(2)]
    alone[0][0, 0, 0], alone[1][0, 0, 1] = KNOWN_UNCERTAIN, 0
    uncertain, first = (distillation(student, teacher, labels, 1.0, weight).item() for labels in alone)
    expected = (2.0 * uncertain + 1.0 * first) / 3.0
    assert distillation(student, teacher, one, 1.0, weight).item() == pytest.approx(expected)


def test_a_teacher_without_the_void_class_gives_it_no_probability_and_says_nothing_of_void_pixels() -> None:
    student, target = batch(0)
    known = mean_probability([batch(1)[0][:, :VOID]])
    whole = torch.cat([known, torch.zeros_like(known[:, :1])], 1)
    labels = target.masked_fill(target == VOID, IGNORED)
    assert bool((target == VOID).any())
    expected = distillation(student, whole, labels, 1.0)
    assert distillation(student, known, target, 1.0).item() == pytest.approx(expected.item())


def test_the_mean_of_teachers_is_that_of_their_softened_probabilities_at_the_first_ones_size() -> None:
    first, second = batch(0)[0], batch(1)[0]
    p, q = (np.exp(log_softmax(rows(logits) / 3)) for logits in (first, second))
    assert np.allclose(rows(mean_probability([first, second], 3.0)), (p + q) / 2)
    assert mean_probability([first, second[..., ::2, ::2]]).shape == first.shape
    with pytest.raises(ConfigError, match="5, 4 outputs"):
        mean_probability([first, second[:, :4]])


def test_not_void_is_the_cross_entropy_of_the_union_of_the_known_classes() -> None:
    logits, target = batch(0)
    target[1, 1] = KNOWN_UNCERTAIN
    labels = target.numpy().reshape(-1)
    void = np.exp(log_softmax(rows(logits)))[:, VOID]
    uncertain = labels == KNOWN_UNCERTAIN
    expected = -np.log1p(-void[uncertain]).sum() / (uncertain | (labels < CLASSES)).sum()
    assert not_void(logits, target, VOID).item() == pytest.approx(expected)
    nothing, _ = batch(0)
    assert not_void(nothing, torch.full_like(target, IGNORED), VOID).item() == 0.0


@pytest.mark.parametrize("name", ["cross_entropy", "ohem", "focal"])
def test_classification_ignores_what_is_known_without_a_class(name: str) -> None:
    logits, target = batch(0)
    marked = target.clone()
    marked[target == IGNORED] = KNOWN_UNCERTAIN
    assert CLASSIFICATION[name](logits, marked).item() == CLASSIFICATION[name](logits, target).item()


def test_distillation_at_a_large_temperature_matches_logits() -> None:
    # Hinton et al., section 2.1: with centred logits the gradient tends to (z - v) / C per pixel.
    student, _ = batch(0)
    teacher, _ = batch(1)
    centred = [values.detach() - values.detach().mean(1, keepdim=True) for values in (student, teacher)]
    distillation(student, mean_probability([teacher], 1e4), temperature=1e4).backward()
    assert torch.allclose(student.grad, (centred[0] - centred[1]) / CLASSES / (2 * 6 * 7), rtol=1e-2, atol=1e-6)


def test_distillation_of_equals_is_zero_and_of_other_shapes_an_error() -> None:
    student, _ = batch()
    same = mean_probability([student], 4.0)
    assert distillation(student, same, temperature=4.0).item() == pytest.approx(0, abs=1e-12)
    for other in (same[:, :-2], same[..., :-1]):
        with pytest.raises(ConfigError, match="same classes"):
            distillation(student, other)


def test_class_frequencies_and_weights_follow_the_papers() -> None:
    first = np.array([[0, 0, 1], [255, 254, 2]], np.uint8)
    second = np.array([[0, 0, 0, 0]], np.uint8)
    frequencies = class_frequencies([first, second], 4)
    assert frequencies.tolist() == [6 / 8, 1 / 8, 1 / 8, 0]
    weights = enet_class_weights(frequencies)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([1 / math.log(1.02 + p) for p in frequencies])
    # ENet, section 5.1: the weights stay between 1 and 50.
    assert enet_class_weights(np.array([0.0])).item() == pytest.approx(50, abs=0.5)
    assert enet_class_weights(np.array([1.0])).item() >= 1


def test_bad_labels_and_frequencies_are_named() -> None:
    with pytest.raises(DatasetError, match=r"\[7, 30\]"):
        class_frequencies([np.array([[0, 7, 30]], np.uint8)], 4)
    with pytest.raises(DatasetError, match="no labelled pixel"):
        class_frequencies([np.full((2, 2), 255, np.uint8)], 4)
    with pytest.raises(ConfigError, match="above 1"):
        enet_class_weights(np.array([0.5, 0.5]), c=1.0)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        enet_class_weights(np.array([3.0, 0.5]))


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_a_target_out_of_range_is_named(name: str) -> None:
    logits, target = batch()
    target[0, 3, 1] = CLASSES
    with pytest.raises(DatasetError, match=r"Target 5.*expected 0\.\.4"):
        CLASSIFICATION[name](logits, target)


# Gradients and counted pixels


@pytest.mark.parametrize("name", [*CLASSIFICATION, *OUTLIER_TERMS, "distillation"])
def test_gradients_are_those_of_the_formula(name: str) -> None:
    logits, target = batch()
    teacher = mean_probability([batch(1)[0]])
    functions = {**CLASSIFICATION, **OUTLIER_TERMS, "distillation": lambda x, t: distillation(x, teacher, t)}
    assert torch.autograd.gradcheck(lambda x: functions[name](x, target), (logits,))


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("name", CLASSIFICATION)
def test_ignored_pixels_and_outliers_have_no_part_in_classification(name: str, weight: Tensor | None) -> None:
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
def test_outlier_terms_leave_ignored_pixels_and_the_void_logit_alone(name: str) -> None:
    logits, target = batch()
    OUTLIER_TERMS[name](logits, target, VOID).backward()
    assert not logits.grad.movedim(1, -1)[target == IGNORED].any()
    assert not logits.grad[:, VOID].any()
    assert logits.grad[:, :VOID].any()


@pytest.mark.parametrize("name", OUTLIER_TERMS)
def test_outliers_are_the_same_by_either_name(name: str) -> None:
    logits, target = batch()
    renamed = target.masked_fill(target == OUTLIER, VOID)
    assert OUTLIER_TERMS[name](logits, target, VOID).item() == OUTLIER_TERMS[name](logits, renamed, VOID).item()


@pytest.mark.parametrize("name", [*CLASSIFICATION, *OUTLIER_TERMS, "distillation"])
def test_with_nothing_to_count_the_loss_is_zero_and_so_is_its_gradient(name: str) -> None:
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


def test_energy_without_outliers_still_pulls_known_pixels_down() -> None:
    logits, target = batch()
    assert energy_margin(logits, target.masked_fill(target == OUTLIER, IGNORED)).item() > 0


@pytest.mark.parametrize("name", [*CLASSIFICATION, "energy", "distillation"])
def test_nan_is_not_hidden(name: str) -> None:
    logits, target = batch()
    functions = {**CLASSIFICATION, **OUTLIER_TERMS, "distillation": lambda x, t: distillation(x, x + 1, t)}
    spoiled = logits.detach().clone()
    spoiled[0, 1, 5, 6] = math.nan
    assert target[0, 5, 6] < CLASSES
    assert math.isnan(functions[name](spoiled, target).item())
