"""Matching and losses of masks equal those of transformers' EoMT, and are finite for every input."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy", reason="the extra `heavy` is not installed")

from anomseg_ros.training.mask_matching import (  # noqa: E402
    MatchingConfig,
    Truth,
    mask_losses,
    match,
    truths,
    wanted_classes,
)

CONFIG = MatchingConfig(mask=5.0, dice=5.0, classes=2.0, points=200, oversample=3.0, importance=0.75)


def example(images: int = 2, queries: int = 7, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    masks = 3 * torch.randn(images, queries, 8, 12, generator=generator)
    logits = torch.randn(images, queries, classes + 1, generator=generator)
    target = torch.randint(0, classes, (images, 4, 6), generator=generator).repeat_interleave(8, 1)
    return masks, logits, target.repeat_interleave(8, 2)


def test_losses_equal_those_of_transformers() -> None:
    modeling = pytest.importorskip("transformers.models.eomt.modeling_eomt")
    from transformers import EomtConfig

    masks, logits, target = example()
    target[1, :8] = 255
    found = truths(target, 4)
    config = EomtConfig(train_num_points=200, class_weight=2.0, mask_weight=5.0, dice_weight=5.0)
    config.num_labels = 4
    criterion = modeling.EomtLoss(config, {})
    torch.manual_seed(1)
    theirs = criterion(masks, logits, [one.masks for one in found], [one.classes for one in found])
    torch.manual_seed(1)
    pairs = [match(*one, CONFIG) for one in zip(masks, logits, found, strict=True)]
    matched = torch.cat([masks[image, queries] for image, (queries, _) in enumerate(pairs)])
    true = torch.cat([one.masks[chosen] for one, (_, chosen) in zip(found, pairs, strict=True)])
    bce, dice = mask_losses(matched, true, sum(len(one.classes) for one in found), CONFIG)
    wanted = wanted_classes(logits, pairs, found)
    weight = torch.tensor([1.0, 1, 1, 1, config.no_object_weight])
    classes = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight)
    for ours, name in ((bce, "mask"), (dice, "dice"), (classes, "cross_entropy")):
        torch.testing.assert_close(ours, theirs[f"loss_{name}"], atol=1e-6, rtol=1e-5)


def test_truths_are_the_classes_that_an_image_shows() -> None:
    target = torch.tensor([[[0, 2, 255], [2, 254, 252]], [[255, 255, 255], [254, 252, 255]]])
    first, second = truths(target, 3)
    assert first.classes.tolist() == [0, 2]
    assert first.masks.tolist() == [[[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [1, 0, 0]]]
    assert second.masks.shape == (0, 2, 3)


def test_query_that_is_right_is_matched() -> None:
    target = torch.zeros(1, 32, 48, dtype=torch.long)
    target[:, :, 24:] = 1
    (truth,) = truths(target, 2)
    masks = torch.full((4, 8, 12), -9.0)
    masks[3, :, :6], masks[1, :, 6:] = 9.0, 9.0
    queries, chosen = match(masks, torch.zeros(4, 3), truth, CONFIG)
    assert dict(zip(queries.tolist(), chosen.tolist(), strict=True)) == {3: 0, 1: 1}
    bce, dice = mask_losses(masks[queries], truth.masks[chosen], 2, CONFIG)
    assert bce < 0.3 and dice < 0.1
    assert wanted_classes(torch.zeros(1, 4, 3), [(queries, chosen)], [truth]).tolist() == [[2, 1, 2, 0]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 6e4])
def test_matching_survives_values_that_are_not_finite(value: float) -> None:
    masks, logits, target = example(images=1)
    masks[0, 0], logits[0, 1] = value, value
    queries, chosen = match(masks[0], logits[0], truths(target, 4)[0], CONFIG)
    assert len(queries) == len(chosen) == 4
    assert not {0, 1} & set(queries.tolist()) or value == 6e4


def test_image_without_masks_has_a_loss_of_zero() -> None:
    masks = torch.randn(0, 8, 12, requires_grad=True)
    bce, dice = mask_losses(masks, torch.zeros(0, 32, 48), 0, CONFIG)
    assert bce == dice == 0
    queries, _ = match(
        torch.randn(3, 8, 12), torch.randn(3, 5), Truth(torch.zeros(0, 8, 8), torch.zeros(0).long()), CONFIG
    )
    assert queries.tolist() == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_logits_of_half_precision_give_finite_gradients(dtype: torch.dtype) -> None:
    _, _, target = example(images=1)
    (truth,) = truths(target, 4)
    masks = (torch.randn(4, 8, 12) * 1e4).to(dtype).requires_grad_()
    bce, dice = mask_losses(masks.float(), truth.masks, 4, CONFIG)
    (bce + dice).backward()
    assert bce.isfinite() and dice.isfinite() and masks.grad.isfinite().all()


def test_missing_scipy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from anomseg_ros.errors import ConfigError

    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    masks, logits, target = example(images=1)
    with pytest.raises(ConfigError, match=r"needs scipy, which is not installed: pip install 'anomseg_ros\[heavy\]'"):
        match(masks[0], logits[0], truths(target, 4)[0], CONFIG)
