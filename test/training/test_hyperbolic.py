"""Losses of two streams: geoopt's exponential map, the formulas in numpy, half precision, and which tokens count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from anomseg_ros.training.hyperbolic import (  # noqa: E402
    KNOWN,
    STREAM_LOSSES,
    UNCOUNTED,
    VOID,
    exponential_map,
    mapped_norm,
    stream_loss,
)

CURVATURES = (1.0, 0.1, 0.01, 0.001)


def vectors() -> Any:
    torch.manual_seed(0)
    lengths = torch.tensor([0.0, 1e-6, 0.01, 0.5, 2.0], dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(5, 24, dtype=torch.float64), dim=1)
    return lengths[:, None] * directions


@pytest.mark.parametrize("curvature", CURVATURES)
def test_exponential_map_equals_geoopt(curvature: float) -> None:
    geoopt = pytest.importorskip("geoopt", reason="geoopt is not installed")
    ball = geoopt.PoincareBall(c=torch.tensor(curvature, dtype=torch.float64))  # of a number, float32 is left
    expected = ball.expmap0(vectors(), project=False)
    ours = exponential_map(vectors(), curvature)
    torch.testing.assert_close(ours, expected, atol=1e-8, rtol=0)
    norms = mapped_norm(vectors().norm(dim=1), curvature)
    torch.testing.assert_close(norms, expected.norm(dim=1), atol=1e-8, rtol=0)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_exponential_map_equals_equation_8(curvature: float) -> None:
    found = exponential_map(vectors(), curvature).numpy()
    assert not found[0].any()
    for vector, mapped in zip(vectors().numpy()[1:], found[1:], strict=True):
        length = np.sqrt(curvature) * np.linalg.norm(vector)
        np.testing.assert_allclose(mapped, np.tanh(length) * vector / length, atol=1e-12)


def test_distance_from_the_origin_depends_on_the_curvature_as_a_norm_alone() -> None:
    """The geodesic distance of E(x) is 2 |x| for every curvature, so that table 7 would have equal rows."""
    norms = torch.tensor([0.5, 3.0], dtype=torch.float64)
    for curvature in CURVATURES:
        root = curvature**0.5
        geodesic = 2 / root * torch.atanh(root * mapped_norm(norms, curvature))
        torch.testing.assert_close(geodesic, 2 * norms)
    assert mapped_norm(torch.tensor(1e4), 0.01) == pytest.approx(10.0)


@pytest.mark.parametrize("cells", ["labels", "all"])
@pytest.mark.parametrize("kind", STREAM_LOSSES)
def test_loss_equals_the_formulas(kind: str, cells: str) -> None:
    generator = np.random.default_rng(0)
    target = generator.choice([KNOWN, VOID, UNCOUNTED], size=(2, 4, 6))
    levels = [generator.normal(size=(2, 6, *size)).astype(np.float32) / 3 for size in ((4, 6), (2, 3))]
    small = [target, target[:, 1::2, 1::2]]
    means = []
    for maps, labels in zip(levels, small, strict=True):
        known, other = np.linalg.norm(maps[:, :3], axis=1), np.linalg.norm(maps[:, 3:], axis=1)
        if kind == "hyperbolic":
            losses = -np.tanh(0.3 * known) / 0.3, np.tanh(0.3 * other) / 0.3
        elif kind == "bce":
            losses = -np.log(1 - np.exp(-known)), other
        else:
            losses = 0.5 * np.maximum(0, 0.7 - known) ** 2, 0.5 * other**2
        counted = (labels != UNCOUNTED,) * 2 if cells == "all" else (labels == KNOWN, labels == VOID)
        values = np.concatenate([loss[where] for loss, where in zip(losses, counted, strict=True)])
        means.append(values.mean())
    tensors = [torch.from_numpy(maps) for maps in levels]
    found = stream_loss(tensors, torch.from_numpy(target), kind, cells, 0.09, 0.7)
    assert found.item() == pytest.approx(np.mean(means), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", STREAM_LOSSES)
def test_half_precision_is_as_good_as_its_values(kind: str, dtype: torch.dtype) -> None:
    """Norms above 256 overflow when they are squared in half precision, and a token of zeros has no direction."""
    torch.manual_seed(0)
    maps = (100 * torch.randn(1, 64, 4, 4)).to(dtype)
    maps[0, :, 0], maps[0, :, 1] = 0.0, maps[0, :, 1] / 1e4
    target = torch.tensor([KNOWN, VOID, VOID, KNOWN]).expand(1, 4, 4)
    halves = maps.clone().requires_grad_()
    loss = stream_loss([halves], target, kind, "labels", 0.01, 1.0)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and halves.grad.isfinite().all()
    torch.testing.assert_close(loss, stream_loss([maps.double()], target, kind, "labels", 0.01, 1.0), check_dtype=False)


@pytest.mark.parametrize("kind", STREAM_LOSSES)
def test_descent_moves_known_tokens_out_and_others_in(kind: str) -> None:
    torch.manual_seed(0)
    maps = (0.05 * torch.randn(1, 16, 4, 4)).requires_grad_()
    target = torch.tensor([KNOWN, VOID]).repeat(2).expand(1, 4, 4)
    loss = stream_loss([maps], target, kind, "labels", 0.01, 1.0)
    loss.backward()
    moved = maps.detach() - 1e-3 * maps.grad
    before, after = (one.unflatten(1, (2, 8)).norm(dim=2)[0] for one in (maps.detach(), moved))
    changed = after - before
    known, void = target[0] == KNOWN, target[0] == VOID
    assert (changed[0][known] > 0).all() and (changed[1][void] < 0).all()
    assert (changed[0][void] == 0).all() and (changed[1][known] == 0).all(), "the other cells do not count"


def test_level_without_tokens_that_count_gives_zero() -> None:
    maps = torch.randn(1, 4, 2, 2, requires_grad=True)
    loss = stream_loss([maps], torch.full((1, 8, 8), UNCOUNTED), "hyperbolic", "labels", 0.01, 1.0)
    loss.backward()
    assert loss == 0 and not maps.grad.any()
