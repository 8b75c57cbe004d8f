"""ArcFace's margin equals the formula with angles, falls with the angle and has finite gradients everywhere."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from anomseg_ros.training.angular_margin import released_cosines, with_margin  # noqa: E402


def test_margin_is_added_to_the_angle_of_the_class_of_known_queries() -> None:
    cosine = torch.tensor([[[0.9, -0.2, 0.4], [0.1, 0.7, -0.3], [0.5, 0.2, 0.6]]])
    logits = torch.cat((30 * cosine, torch.full((1, 3, 1), 2.0)), -1)
    wanted = torch.tensor([[0, 2, 3]])  # a known class, the class of anomalies, no object
    expected = logits.clone()
    expected[0, 0, 0] = 30 * math.cos(math.acos(0.9) + 0.5)
    torch.testing.assert_close(with_margin(logits, wanted, 30.0, 0.5, 2), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(with_margin(logits, wanted, 30.0, 0.0, 2), logits, atol=1e-4, rtol=1e-5)


def test_logit_falls_with_the_angle_and_is_below_the_plain_one() -> None:
    cosine = torch.linspace(-1, 1, 201, dtype=torch.float32)
    logits = torch.stack((64 * cosine, torch.zeros(201)), -1)[None]
    harder = with_margin(logits, torch.zeros(1, 201, dtype=torch.long), 64.0, 0.5, 1)[0, :, 0]
    assert (harder.diff() > 0).all() and (harder < 64 * cosine + 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cosine", [-1.0, 0.0, 1.0])
def test_gradients_are_finite_where_the_angle_is_zero(dtype: torch.dtype, cosine: float) -> None:
    logits = torch.full((1, 1, 3), 30 * cosine, dtype=dtype, requires_grad=True)
    changed = with_margin(logits, torch.zeros(1, 1, dtype=torch.long), 30.0, 0.5, 2)
    assert changed.dtype == torch.float32
    changed.sum().backward()
    assert logits.grad.isfinite().all()


def test_released_cosines_are_logits_of_norm_s_and_a_raw_no_object() -> None:
    logits = torch.tensor([[[3.0, 4.0, 7.0]]])
    torch.testing.assert_close(released_cosines(logits, 30.0), torch.tensor([[[18.0, 24.0, 7.0]]]))
    zero = torch.zeros(1, 1, 3, dtype=torch.float16, requires_grad=True)
    released_cosines(zero, 30.0).sum().backward()
    assert zero.grad.isfinite().all()
