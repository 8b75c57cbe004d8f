"""The mask contrastive loss equals its formula in numpy, and the published code's on request."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from anomseg_ros.training.mask_contrastive import mask_contrastive  # noqa: E402


@pytest.mark.parametrize("released", [False, True])
def test_loss_equals_the_formula(released: bool) -> None:
    generator = np.random.default_rng(0)
    semantic = generator.uniform(0, 1.5, size=(2, 4, 5, 6)).astype(np.float32)
    target = generator.choice([0, 1, 2, 3, 254, 255], size=(2, 5, 6))
    score = (0 if released else 1) - semantic[:, :3].max(1)
    known, outlier = score[target < 3], score[(target == 3) | (target == 254)]
    expected = 0.5 * ((known**2).mean() + (np.maximum(0.8 - outlier, 0) ** 2).mean())
    labels = torch.from_numpy(target)
    outliers = (labels == 3) | (labels == 254)
    loss = mask_contrastive(torch.from_numpy(semantic), labels, outliers, 3, 0.8, released)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_only_the_published_form_pushes_known_pixels_to_no_class() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    for released in (False, True):
        semantic = torch.full((1, 2, 2, 2), 0.5, requires_grad=True)
        mask_contrastive(semantic, target, target == 254, 2, 1.0, released).backward()
        assert (semantic.grad.sum() > 0) == released


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frames_without_outliers_or_known_pixels_have_finite_gradients(dtype: torch.dtype) -> None:
    semantic = (100 * torch.rand(1, 3, 4, 4)).to(dtype).requires_grad_()
    target = torch.full((1, 4, 4), 255)
    loss = mask_contrastive(semantic, target, target == 254, 3, 1.0)
    loss.backward()
    assert loss == 0 and semantic.grad.isfinite().all()
