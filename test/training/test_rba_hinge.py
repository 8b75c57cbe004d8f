"""RbA's hinge equals its formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from anomseg_ros.training.rba_hinge import rba_hinge  # noqa: E402


def test_loss_equals_the_formula() -> None:
    generator = np.random.default_rng(0)
    semantic = generator.normal(size=(2, 4, 5, 6)).astype(np.float32)  # below 0 as well, so that both hinges count
    target = generator.choice([0, 1, 2, 3, 254, 255], size=(2, 5, 6))
    score = -np.tanh(semantic[:, :3]).sum(1)
    known, outlier = score[target < 3], score[(target == 3) | (target == 254)]
    expected = 0.5 * ((np.maximum(known, 0) ** 2).mean() + (np.maximum(2 - outlier, 0) ** 2).mean())
    labels = torch.from_numpy(target)
    loss = rba_hinge(torch.from_numpy(semantic), labels, (labels == 3) | (labels == 254), 3, 2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_target_is_taken_at_the_size_of_the_masks() -> None:
    semantic = torch.zeros(1, 2, 2, 2)
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    outliers = torch.zeros(1, 8, 8, dtype=torch.bool)
    outliers[:, :, 4:] = True
    assert rba_hinge(semantic, target.masked_fill(outliers, 254), outliers, 2, 5.0).item() == pytest.approx(12.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frames_without_outliers_or_known_pixels_have_finite_gradients(dtype: torch.dtype) -> None:
    semantic = (100 * torch.randn(1, 3, 4, 4)).to(dtype).requires_grad_()
    target = torch.full((1, 4, 4), 255)
    loss = rba_hinge(semantic, target, target == 254, 3, 5.0)
    loss.backward()
    assert loss == 0 and semantic.grad.isfinite().all()
