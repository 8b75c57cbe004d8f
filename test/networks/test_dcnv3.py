"""DCNv3 equals its formula, computed place by place in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomseg_ros.networks.dcnv3 import DCNv3, deformable_sum


def double_loop(values, offsets, weights, offset_scale):
    """Return y (H, W, C) of values (H, W, C), offsets (H, W, G, 9, 2) and weights (H, W, G, 9), by equation 2."""
    height, width, channels = values.shape
    groups = offsets.shape[2]
    each = channels // groups
    result = np.zeros_like(values)
    for row in range(height):
        for column in range(width):
            for group in range(groups):
                part = slice(group * each, (group + 1) * each)
                for point in range(9):
                    step_x, step_y = point // 3 - 1, point % 3 - 1  # x changes slowly
                    x = column + offset_scale * (step_x + offsets[row, column, group, point, 0])
                    y = row + offset_scale * (step_y + offsets[row, column, group, point, 1])
                    result[row, column, part] += weights[row, column, group, point] * bilinear(values[..., part], x, y)
    return result


def bilinear(values, x, y):
    """Return the value at a place; pixels outside are 0."""
    left, top = int(np.floor(x)), int(np.floor(y))
    total = np.zeros(values.shape[2])
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < values.shape[0] and 0 <= column < values.shape[1]:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * values[row, column]
    return total


@pytest.mark.parametrize("offset_scale", [1.0, 2.0])
@pytest.mark.parametrize("size", [(5, 7), (1, 3), (6, 4)])
def test_sum_equals_the_double_loop(offset_scale, size):
    """Offsets of 3 pixels leave the frame on all sides."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(*size, 8))
    offsets = generator.normal(scale=3.0, size=(*size, 2, 9, 2))
    weights = generator.random((*size, 2, 9))
    expected = double_loop(values, offsets, weights, offset_scale)
    batch = [torch.from_numpy(one)[None] for one in (values, offsets, weights)]
    got = deformable_sum(batch[0], batch[1], batch[2], offset_scale)
    np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("point", "place"), [(0, (3, 2)), (1, (4, 2)), (3, (3, 3)), (5, (5, 3)), (8, (5, 4))])
def test_points_are_in_x_major_order(point, place):
    values = torch.zeros(1, 9, 7, 1)
    values[0, place[0], place[1], 0] = 1.0
    weights = torch.zeros(1, 9, 7, 1, 9)
    weights[..., point] = 1.0
    sampled = deformable_sum(values, torch.zeros(1, 9, 7, 1, 9, 2), weights, 1.0)
    assert sampled[0, 4, 3, 0] == pytest.approx(1.0)


def random_layer(channels=8, groups=4, offset_scale=2.0):
    torch.manual_seed(0)
    layer = DCNv3(channels, groups, offset_scale).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def test_layer_equals_its_parts_in_numpy():
    layer = random_layer()
    features = torch.randn(1, 5, 6, 8)
    with torch.no_grad():
        local = layer.depthwise(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).double().numpy()
        mean, var = local.mean(-1, keepdims=True), local.var(-1, keepdims=True)
        normed = (local - mean) / np.sqrt(var + 1e-6) * layer.norm.weight.numpy() + layer.norm.bias.numpy()
        active = torch.nn.functional.gelu(torch.from_numpy(normed)).float()
        offsets = layer.offset(active).reshape(5, 6, 4, 9, 2).numpy()
        raw = np.exp(layer.mask(active).reshape(5, 6, 4, 9).double().numpy())
        values = layer.input_proj(features)[0].double().numpy()
        summed = double_loop(values, offsets, raw / raw.sum(-1, keepdims=True), 2.0)
        expected = layer.output_proj(torch.from_numpy(summed).float())
        torch.testing.assert_close(layer(features)[0], expected, atol=2e-4, rtol=2e-4)


def test_fresh_layer_averages_nine_neighbours():
    layer = DCNv3(4, 2).eval()
    torch.nn.init.eye_(layer.input_proj.weight)
    torch.nn.init.eye_(layer.output_proj.weight)
    features = torch.randn(1, 5, 5, 4)
    with torch.no_grad():
        expected = torch.nn.functional.avg_pool2d(features.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
        torch.testing.assert_close(layer(features), expected)
