"""Manual counts of single layers, and the figures of a published table in the convention of fvcore."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anomseg_ros.networks import build_network
from anomseg_ros.networks.counting import count_multiply_adds
from anomseg_ros.networks.network import SegmentationNetwork


class OneLayer(SegmentationNetwork):
    name = "one_layer"
    stride = 1
    feature_names = ("images",)
    class_parameter = ("layer.weight", 0)

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(1)
        self.layer = layer

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"images": images}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 8 * 3 * 9 * 16 * 24),
        (nn.Conv2d(3, 8, (3, 1), padding=(1, 0)), 8 * 3 * 3 * 16 * 24),
        (nn.Conv2d(3, 8, (1, 5), stride=(1, 2), padding=(0, 2)), 8 * 3 * 5 * 16 * 12),
        (nn.Conv2d(3, 8, 3, padding=4, dilation=4), 8 * 3 * 9 * 16 * 24),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 6 * 1 * 9 * 16 * 24),
        (nn.Conv2d(3, 8, 3), 8 * 3 * 9 * 14 * 22),
        (nn.ConvTranspose2d(3, 8, 3, stride=2, padding=1, output_padding=1), 3 * 8 * 9 * 16 * 24),
        (nn.ConvTranspose2d(3, 6, 2, stride=2, groups=3), 3 * 2 * 4 * 16 * 24),
        (nn.Linear(24, 5), 24 * 5 * 3 * 16),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), 0),
    ],
)
def test_multiply_adds_of_one_layer_equal_the_manual_count(layer, expected):
    assert count_multiply_adds(OneLayer(layer), 16, 24) == expected


def test_counting_does_not_change_the_network():
    network = build_network("bisenet_v2", 19).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    count_multiply_adds(network, 64, 96)
    assert network.training
    assert all(not module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("name", "published"), [("erfnet", 26.74e9), ("enet", 4.27e9), ("mide_net", 2.45e9)])
def test_multiply_adds_equal_table_5_of_the_mide_net_report(name, published):
    network = build_network(name, 20).to("meta").eval()
    operations = count_multiply_adds(network, 512, 1024)
    normalised: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, inputs, output: normalised.append(output.numel()))
    network(torch.empty(1, 3, 512, 1024, device="meta"))
    operations += 2 * sum(normalised)
    if name == "mide_net":
        # The report upsamples 128 channels (4 operations per value) and classifies every pixel, not every 64th.
        operations += 4 * 128 * 512 * 1024 + 128 * 20 * (512 * 1024 - 64 * 128)
    assert operations == pytest.approx(published, abs=0.005e9)
