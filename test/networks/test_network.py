"""The table of networks, and the operators of forward in an exported graph."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from network_contract import random_images
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks import NETWORKS, build_network
from anomseg_ros.networks.network import SegmentationNetwork


class Pooler(SegmentationNetwork):
    """A network that averages 4x4 pixels and returns the channels as classes."""

    name = "pooler"
    stride = 4
    feature_names = ("pooled",)
    class_parameter = ("classifier.weight", 0)

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.classifier = nn.Identity()

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"pooled": nn.functional.avg_pool2d(images, 4)}


def operators(network: nn.Module, images: Tensor) -> list[str]:
    program = torch.export.export(network, (images,))
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_every_network_of_the_table_is_built():
    for name in NETWORKS:
        network = build_network(name, 5)
        assert (network.name, network.num_classes, network.source_layout) == (name, 5, None)


def test_unknown_network_error_suggests_the_closest():
    with pytest.raises(ConfigError, match="unknown network 'ennet'; known: enet"):
        build_network("ennet", 20)


def test_zero_classes_are_refused():
    with pytest.raises(ConfigError, match="num_classes is 0"):
        build_network("enet", 0)


def test_importing_the_table_does_not_import_torch():
    code = "import sys, anomseg_ros.networks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_multiples_of_the_stride_export_without_padding():
    assert operators(Pooler(3).eval(), random_images(8, 12)) == [
        "aten.avg_pool2d.default",
        "aten.upsample_bilinear2d.vec",
    ]


def test_other_sizes_are_padded_upsampled_and_cropped():
    names = operators(Pooler(3).eval(), random_images(9, 12))
    assert names[0].startswith("aten.pad")
    assert any(name.startswith("aten.slice") for name in names)


def test_images_smaller_than_the_stride_give_logits_of_their_size():
    assert Pooler(3)(random_images(2, 3)).shape == (1, 3, 2, 3)


def test_std_of_zero_is_refused():
    with pytest.raises(ConfigError, match="above 0"):
        Pooler(3).set_normalisation((0, 0, 0), (1, 0, 1))
