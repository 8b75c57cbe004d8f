from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.core.transposed_convolution import phase_kernels


def transposed(values: np.ndarray, weight: np.ndarray, stride: int, begin: int) -> np.ndarray:
    """Compute by definition: every input pixel (D, h, w) adds its kernel (D, C, k, k) to the output (C, s h, s w)."""
    _, height, width = values.shape
    classes, kernel = weight.shape[1:3]
    spread = np.zeros((classes, stride * (height + kernel), stride * (width + kernel)))
    for y in range(height):
        for x in range(width):
            stamp = np.einsum("d,dckl->ckl", values[:, y, x], weight)
            spread[:, stride * y : stride * y + kernel, stride * x : stride * x + kernel] += stamp
    return spread[:, begin : begin + stride * height, begin : begin + stride * width]


@pytest.mark.parametrize(("stride", "kernel", "begin"), [(2, 2, 0), (2, 3, 1), (2, 4, 1), (3, 5, 1), (4, 4, 0)])
def test_phase_kernels_give_the_transposed_convolution(stride: int, kernel: int, begin: int) -> None:
    generator = np.random.default_rng(kernel)
    values, weight = generator.standard_normal((3, 4, 5)), generator.standard_normal((3, 2, kernel, kernel))
    kernels = phase_kernels(weight, stride, (begin, begin))
    assert kernels is not None
    padded = np.pad(values, ((0, 0), (kernels.top, kernels.bottom), (kernels.left, kernels.right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernels.weight.shape[2:], (1, 2))
    phases = np.einsum("dhwkl,pdkl->phw", windows, kernels.weight)
    blocks = phases.reshape(stride, stride, 2, 4, 5).transpose(2, 3, 0, 4, 1).reshape(2, 4 * stride, 5 * stride)
    np.testing.assert_allclose(blocks, transposed(values, weight, stride, begin), atol=1e-5)


def test_phase_kernels_are_none_if_the_input_must_be_cropped() -> None:
    assert phase_kernels(np.zeros((1, 1, 2, 2), np.float32), 2, (2, 2)) is None
