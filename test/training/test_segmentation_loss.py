"""The objective `segmentation`: its terms and their sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from loss_samples import CLASSES, VOID, batch  # noqa: E402
from torch import Tensor  # noqa: E402

from anomseg_ros.core.labels import KNOWN_UNCERTAIN  # noqa: E402
from anomseg_ros.errors import ConfigError  # noqa: E402
from anomseg_ros.networks.prediction import PixelPrediction  # noqa: E402
from anomseg_ros.training.losses import (  # noqa: E402
    OUTLIER,
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
from anomseg_ros.training.objectives import Answer, Task  # noqa: E402
from anomseg_ros.training.segmentation_loss import LossConfig, SegmentationLoss  # noqa: E402

EVERYTHING = LossConfig(
    class_weights_c=1.02,
    auxiliary_weight=0.4,
    entropy_weight=0.5,
    energy_weight=0.1,
    not_void_weight=3.0,
    distillation_weight=2.0,
)
FREQUENCIES = np.array([0.4, 0.3, 0.2, 0.08, 0.02])


class PlainLoss(SegmentationLoss):
    """The objective, called with the logits of all heads instead of a network."""

    def __init__(self, config: LossConfig, frequencies: Any, void_class: int | None) -> None:
        super().__init__(config, Task(frequencies, void_class, steps=1))

    def __call__(
        self, logits: tuple[Tensor, ...], target: Tensor, teachers: Sequence[Tensor] = ()
    ) -> dict[str, Tensor]:
        size = (logits[0].shape[-2], logits[0].shape[-1])
        prediction = PixelPrediction(size_px=size, padded_px=size, logits=logits[0])
        return self.loss(Answer(prediction, logits[1:]), target, teachers, step=0)


def heads(logits: Tensor) -> tuple[Tensor, ...]:
    return (logits, logits[..., ::2, ::2] + 1, logits[..., ::3, ::3] - 1)


def test_total_is_the_sum_of_the_weighted_terms() -> None:
    logits, target = batch()
    target[0, 1] = KNOWN_UNCERTAIN
    teacher, second = (batch(seed)[0] for seed in (1, 2))
    terms = PlainLoss(EVERYTHING, FREQUENCIES, VOID)(heads(logits), target, [teacher, second])
    mean = mean_probability([teacher, second], EVERYTHING.distillation_temperature)
    weight = enet_class_weights(FREQUENCIES)
    upsampled = [
        torch.nn.functional.interpolate(head, size=(6, 7), mode="bilinear", align_corners=False)
        for head in heads(logits)[1:]
    ]
    expected = {
        "classification": cross_entropy(logits, target, weight),
        "not_void": 3.0 * not_void(logits, target, VOID),
        "auxiliary": 0.4 * sum(cross_entropy(head, target, weight) for head in upsampled),
        "entropy": 0.5 * entropy_maximisation(logits, target, VOID),
        "energy": 0.1 * energy_margin(logits, target, VOID),
        "distillation": 2.0 * distillation(logits, mean, target),
    }
    assert list(terms) == [*expected, "total"]
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item()), name
    assert terms["total"].item() == pytest.approx(math.fsum(value.item() for value in expected.values()))
    terms["total"].backward()
    assert logits.grad.isfinite().all()
    assert teacher.grad is None


@pytest.mark.parametrize("options", [{"distillation_class_weights": True}, {"distillation_where_right": True}])
def test_options_of_the_distillation_are_used(options: dict[str, Any]) -> None:
    logits, target = batch()
    teacher = batch(1)[0]
    config = LossConfig(class_weights_c=1.02, distillation_weight=1.0, **options)
    term = PlainLoss(config, FREQUENCIES, VOID)((logits,), target, [teacher])["distillation"]
    temperature = config.distillation_temperature
    weight = enet_class_weights(FREQUENCIES, 1.02) if config.distillation_class_weights else None
    mean = mean_probability([teacher], temperature)
    expected = distillation(logits, mean, target, temperature, weight, config.distillation_where_right)
    assert term.item() == pytest.approx(expected.item())
    assert term.item() != pytest.approx(distillation(logits, mean, target, temperature).item())


@pytest.mark.parametrize(
    ("config", "function"),
    [
        (LossConfig(label_smoothing=0.2), lambda x, t: cross_entropy(x, t, label_smoothing=0.2)),
        (LossConfig(kind="ohem", ohem_threshold=0.5), lambda x, t: ohem_cross_entropy(x, t, None, 0.5)),
        (LossConfig(kind="focal", focal_gamma=1.5), lambda x, t: focal_loss(x, t, None, 1.5)),
        (LossConfig(logit_norm_temperature=0.04), lambda x, t: cross_entropy(logit_norm(x, 0.04), t)),
    ],
)
def test_loss_kind_and_options_are_used(config: LossConfig, function: Callable[..., Tensor]) -> None:
    logits, target = batch()
    terms = PlainLoss(config, None, None)((logits,), target)
    assert list(terms) == ["classification", "total"]
    assert terms["total"].item() == pytest.approx(function(logits, target).item())
    assert terms["total"].item() != pytest.approx(cross_entropy(logits, target).item())


def test_auxiliary_stride_samples_every_nth_pixel() -> None:
    target = torch.arange(4).reshape(1, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2)
    small = torch.nn.functional.one_hot(target[:, ::4, ::4], 4).movedim(-1, 1) * 20.0
    terms = PlainLoss(LossConfig(auxiliary_stride=4), None, None)((small, small), target)
    assert terms["auxiliary"].item() < 1e-6, "each sampled pixel belongs to its own block"
    assert terms["classification"].item() > 1e-3, "blurred class borders, once upsampled"


def test_auxiliary_stride_samples_the_middle_of_a_block() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    target[:, 2::4, 2::4] = 1
    small = torch.tensor([0.0, 20.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    terms = PlainLoss(LossConfig(auxiliary_stride=4), None, None)((small, small), target)
    assert terms["auxiliary"].item() < 1e-6 < 1 < terms["classification"].item()


def test_auxiliary_weight_0_omits_the_auxiliary_term() -> None:
    logits, target = batch()
    assert "auxiliary" not in PlainLoss(LossConfig(auxiliary_weight=0.0), None, None)(heads(logits), target)


@pytest.mark.parametrize(
    ("config", "last"),
    [
        (LossConfig(class_weights_c=1.02), 1 / math.log(1.04)),  # paper PTQ: by its frequency
        (LossConfig(class_weights_c=1.02, void_weight=1.0), 1.0),  # paper MiDE
    ],
)
def test_void_class_weight_is_from_frequency_or_fixed(config: LossConfig, last: float) -> None:
    weight = PlainLoss(config, FREQUENCIES, VOID).class_weight
    assert weight.tolist() == pytest.approx([1 / math.log(1.02 + p) for p in FREQUENCIES[:-1]] + [last])


def test_only_the_void_class_can_be_weighted() -> None:
    loss = PlainLoss(LossConfig(void_weight=0.5), None, VOID)
    assert loss.class_weight.tolist() == [1, 1, 1, 1, 0.5]
    assert not loss.state_dict(), "weights are configuration, not state"
    assert PlainLoss(LossConfig(), FREQUENCIES, VOID).class_weight is None


@pytest.mark.parametrize("kind", ["cross_entropy", "ohem", "focal"])
@pytest.mark.parametrize("temperature", [None, 0.04])
def test_losses_are_computed_in_float32_under_bfloat16_autocast(kind: str, temperature: float | None) -> None:
    settings: Any = {"entropy_weight": 0.5, "energy_weight": 0.1, "distillation_weight": 1.0, "class_weights_c": 1.02}
    loss = PlainLoss(LossConfig(kind=kind, logit_norm_temperature=temperature, **settings), FREQUENCIES, VOID)
    _, target = batch()
    torch.manual_seed(0)
    classifier = torch.nn.Conv2d(3, CLASSES, 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(torch.rand(2, 3, 6, 7))
        assert logits.dtype == torch.bfloat16
        terms = loss((logits, logits[..., ::2, ::2]), target, [logits * 2])
    assert all(term.dtype == torch.float32 for term in terms.values())
    exact = loss((logits.float(), logits[..., ::2, ::2].float()), target, [logits.float() * 2])
    assert terms["total"].item() == pytest.approx(exact["total"].item(), rel=1e-6)
    terms["total"].backward()
    assert classifier.weight.grad.isfinite().all()
    assert classifier.weight.grad.any()


def test_training_separates_outliers_from_known_pixels() -> None:
    _, target = batch()
    logits = torch.zeros(2, CLASSES, 6, 7, requires_grad=True)
    loss = PlainLoss(LossConfig(entropy_weight=0.5, energy_weight=0.1), None, None)
    optimizer = torch.optim.Adam([logits], 0.2)
    for _ in range(200):
        optimizer.zero_grad()
        loss((logits,), target)["total"].backward()
        optimizer.step()
    energy = -logits.detach().logsumexp(1)
    known = target < CLASSES
    assert (logits.argmax(1)[known] == target[known]).all()
    assert energy[known].max() < energy[target == OUTLIER].min() - 3


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "focale"}, "unknown loss kind 'focale'; known: focal, "),
        ({"class_weights_c": 1.0}, "class_weights_c is 1.0; expected a finite number above 1"),
        ({"void_weight": -1.0}, "void_weight is -1.0; expected a finite number from 0 up"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": 0.1, "kind": "ohem"}, "label_smoothing is for kind cross_entropy"),
        ({"logit_norm_temperature": 0.0}, "logit_norm_temperature is 0.0; expected a finite number above 0"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
        ({"ohem_threshold": 0.0}, "ohem_threshold"),
        ({"ohem_min_share": 1.5}, "ohem_min_share"),
        ({"auxiliary_weight": math.nan}, "auxiliary_weight"),
        ({"auxiliary_stride": 0}, "auxiliary_stride"),
        ({"entropy_weight": -0.1}, "entropy_weight"),
        ({"energy_weight": math.inf}, "energy_weight"),
        ({"energy_known_margin": -5.0}, "must be below energy_outlier_margin"),
        ({"distillation_weight": -1.0}, "distillation_weight"),
        ({"distillation_temperature": 0.0}, "distillation_temperature"),
    ],
)
def test_invalid_setting_error_names_it(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LossConfig(**settings)


def test_inconsistent_settings_are_refused() -> None:
    logits, target = batch()
    weighted = LossConfig(class_weights_c=1.02)
    with pytest.raises(ConfigError, match="no void class"):
        PlainLoss(LossConfig(void_weight=1.0), None, None)
    with pytest.raises(ConfigError, match="needs the class frequencies"):
        PlainLoss(weighted, None, None)
    with pytest.raises(ConfigError, match="5 class frequencies; expected 6"):
        PlainLoss(weighted, FREQUENCIES, 5)
    with pytest.raises(ConfigError, match="5 outputs, the void class is 5"):
        PlainLoss(LossConfig(), None, 5)((logits,), target)
    with pytest.raises(ConfigError, match="5 outputs, but there are 4"):
        PlainLoss(weighted, np.full(4, 0.25), None)((logits,), target)
    with pytest.raises(ConfigError, match="give a teacher"):
        PlainLoss(LossConfig(distillation_weight=1.0), None, None)((logits,), target)
