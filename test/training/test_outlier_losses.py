"""Loss terms of outliers and of pixels without a known class, compared with plain numpy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from loss_samples import CLASSES, VOID, Array, batch, log_softmax, rows  # noqa: E402
from torch import Tensor  # noqa: E402

from anomseg_ros.core.labels import KNOWN_UNCERTAIN  # noqa: E402
from anomseg_ros.training.losses import IGNORED, OUTLIER, energy_margin, entropy_maximisation, not_void  # noqa: E402

Mask = npt.NDArray[np.bool_]


def known_and_outliers(logits: Tensor, target: Tensor, void_class: int | None) -> tuple[Array, Mask, Mask]:
    """Return the known logits per pixel, the mask of known pixels and the mask of outliers."""
    labels = target.numpy().reshape(-1)
    known_count = CLASSES if void_class is None else void_class
    outliers = (labels == OUTLIER) | (labels == (-1 if void_class is None else void_class))
    return rows(logits)[:, :known_count], labels < known_count, outliers


@pytest.mark.parametrize("void_class", [None, VOID])
def test_entropy_maximisation_equals_cross_entropy_with_uniform_targets(void_class: int | None) -> None:
    logits, target = batch()
    values, _, outliers = known_and_outliers(logits, target, void_class)
    expected = -log_softmax(values)[outliers].mean(1).mean()
    assert entropy_maximisation(logits, target, void_class).item() == pytest.approx(expected)


@pytest.mark.parametrize("known_count", [3, 12])
def test_entropy_maximisation_is_minimal_for_equal_logits(known_count: int) -> None:
    target = torch.full((1, 2, 2), OUTLIER)
    assert entropy_maximisation(torch.full((1, known_count, 2, 2), 7.0), target).item() == pytest.approx(
        math.log(known_count)
    )


@pytest.mark.parametrize("void_class", [None, VOID])
def test_entropy_step_raises_only_the_entropy_of_outliers(void_class: int | None) -> None:
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
def test_energy_margin_is_a_squared_hinge_on_both_sides(void_class: int | None) -> None:
    logits, target = batch()
    values, known, outliers = known_and_outliers(logits, target, void_class)
    energy = -np.log(np.exp(values).sum(1))
    parts = (np.maximum(0, energy + 4)[known] ** 2, np.maximum(0, -3 - energy)[outliers] ** 2)
    assert all(part.any() and not part.all() for part in parts), "both sides of both hinges must be tested"
    loss = energy_margin(logits, target, void_class, -4.0, -3.0)
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


def test_not_void_equals_the_cross_entropy_of_all_known_classes() -> None:
    logits, target = batch(0)
    target[1, 1] = KNOWN_UNCERTAIN
    labels = target.numpy().reshape(-1)
    void = np.exp(log_softmax(rows(logits)))[:, VOID]
    uncertain = labels == KNOWN_UNCERTAIN
    expected = -np.log1p(-void[uncertain]).sum() / (uncertain | (labels < CLASSES)).sum()
    assert not_void(logits, target, VOID).item() == pytest.approx(expected)
    nothing, _ = batch(0)
    assert not_void(nothing, torch.full_like(target, IGNORED), VOID).item() == 0.0


def test_energy_margin_without_outliers_counts_known_pixels() -> None:
    logits, target = batch()
    assert energy_margin(logits, target.masked_fill(target == OUTLIER, IGNORED)).item() > 0
