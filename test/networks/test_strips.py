from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.strips import STRIP_ROWS, StripClassifier, StripUpsampler, bilinear_weights


@pytest.mark.parametrize(
    ("scale", "height", "width"),
    [(8, 16, 32), (8, 9, 17), (8, 1, 1), (4, 37, 5), (2, 33, 16), (1, 70, 20), (128, 2, 3)],
)
def test_upsampling_in_strips_equals_bilinear_interpolation(scale: int, height: int, width: int) -> None:
    logits = torch.randn((1, 5, height, width), generator=torch.Generator().manual_seed(height))
    layer = StripUpsampler(scale, height, width)
    strips = list(layer(logits))
    assert len(strips) == -(-height // max(1, STRIP_ROWS // scale))
    expected = F.interpolate(logits, scale_factor=float(scale), mode="bilinear", align_corners=False)
    for channel in range(5):
        joined = layer.join([strip[:, channel] for strip in strips])
        torch.testing.assert_close(joined, expected[0, channel], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(6, 5, 2, stride=2),
        nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1, bias=False),
        nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1),
        nn.ConvTranspose2d(6, 5, 3, stride=1, padding=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("height", [3, 33, 64])
def test_classifier_in_strips_equals_the_whole_layer(layer: nn.ConvTranspose2d, height: int) -> None:
    features = torch.randn((1, 6, height, 7), generator=torch.Generator().manual_seed(1))
    strips_layer = StripClassifier(layer)
    with torch.inference_mode():
        expected = layer(features)[0]
        strips = list(strips_layer(features))
        joined = torch.stack([strips_layer.join([strip[:, c] for strip in strips]) for c in range(5)])
    torch.testing.assert_close(joined, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(4, 4, 3, stride=2),
        nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2),
        nn.ConvTranspose2d(4, 4, 2, stride=(2, 1)),
        nn.ConvTranspose2d(4, 4, 3, stride=2, dilation=2, output_padding=1),
    ],
    ids=str,
)
def test_unsupported_transposed_convolutions_are_refused(layer: nn.ConvTranspose2d) -> None:
    with pytest.raises(ConfigError, match="no transposed convolution that enlarges by its stride"):
        StripClassifier(layer)


def test_bilinear_weights_sum_to_one() -> None:
    weights = bilinear_weights(8, 3)
    assert weights.shape == (5, 24)
    assert torch.equal(weights.sum(0), torch.ones(24))
    assert weights[1:3, 8].tolist() == [7 / 16, 9 / 16]
