"""Distillation losses compared with plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from loss_samples import CLASSES, VOID, batch, log_softmax, rows  # noqa: E402

from anomseg_ros.core.labels import KNOWN_UNCERTAIN  # noqa: E402
from anomseg_ros.errors import ConfigError  # noqa: E402
from anomseg_ros.training.losses import IGNORED, distillation, mean_probability  # noqa: E402


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_distillation_equals_the_divergence_of_softened_outputs(temperature: float, masked: bool) -> None:
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


def test_distillation_with_class_weights_is_the_weighted_mean() -> None:
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


def test_uncertain_known_pixels_get_the_mean_class_weight() -> None:
    student, target = batch(0)
    teacher, weight = mean_probability([batch(1)[0]]), torch.linspace(1, 3, CLASSES)
    one = torch.full_like(target, IGNORED)
    one[0, 0, 0], one[0, 0, 1] = KNOWN_UNCERTAIN, 0
    alone = [torch.full_like(target, IGNORED) for _ in range(2)]
    alone[0][0, 0, 0], alone[1][0, 0, 1] = KNOWN_UNCERTAIN, 0
    uncertain, first = (distillation(student, teacher, labels, 1.0, weight).item() for labels in alone)
    expected = (2.0 * uncertain + 1.0 * first) / 3.0
    assert distillation(student, teacher, one, 1.0, weight).item() == pytest.approx(expected)


def test_a_teacher_that_counts_where_it_is_right_teaches_these_and_uncertain_pixels() -> None:
    student, target = batch(0)
    teacher = mean_probability([batch(1, scale=5.0)[0]])
    target[0, 0] = KNOWN_UNCERTAIN
    wrong = (target < CLASSES) & (teacher.argmax(1) != target)
    assert 0 < int(wrong.sum()) < target.numel() - int((target == IGNORED).sum())
    expected = distillation(student, teacher, target.masked_fill(wrong, IGNORED), 1.0)
    assert distillation(student, teacher, target, 1.0, where_right=True).item() == pytest.approx(expected.item())
    assert distillation(student, teacher, target, 1.0).item() != pytest.approx(expected.item())


def test_teacher_without_void_class_ignores_void_pixels() -> None:
    student, target = batch(0)
    known = mean_probability([batch(1)[0][:, :VOID]])
    whole = torch.cat([known, torch.zeros_like(known[:, :1])], 1)
    labels = target.masked_fill(target == VOID, IGNORED)
    assert bool((target == VOID).any())
    expected = distillation(student, whole, labels, 1.0)
    assert distillation(student, known, target, 1.0).item() == pytest.approx(expected.item())


def test_mean_of_teachers_has_softened_probabilities_and_the_first_size() -> None:
    first, second = batch(0)[0], batch(1)[0]
    p, q = (np.exp(log_softmax(rows(logits) / 3)) for logits in (first, second))
    assert np.allclose(rows(mean_probability([first, second], 3.0)), (p + q) / 2)
    assert mean_probability([first, second[..., ::2, ::2]]).shape == first.shape
    with pytest.raises(ConfigError, match="5, 4 outputs"):
        mean_probability([first, second[:, :4]])


def test_distillation_at_a_large_temperature_matches_logits() -> None:
    # Hinton et al., section 2.1: with centred logits the gradient tends to (z - v) / C per pixel.
    student, _ = batch(0)
    teacher, _ = batch(1)
    centred = [values.detach() - values.detach().mean(1, keepdim=True) for values in (student, teacher)]
    distillation(student, mean_probability([teacher], 1e4), temperature=1e4).backward()
    assert torch.allclose(student.grad, (centred[0] - centred[1]) / CLASSES / (2 * 6 * 7), rtol=1e-2, atol=1e-6)


def test_distillation_of_equal_outputs_is_zero_and_other_shapes_are_refused() -> None:
    student, _ = batch()
    same = mean_probability([student], 4.0)
    assert distillation(student, same, temperature=4.0).item() == pytest.approx(0, abs=1e-12)
    for other in (same[:, :-2], same[..., :-1]):
        with pytest.raises(ConfigError, match="same classes"):
            distillation(student, other)
