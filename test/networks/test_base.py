"""The table of networks, and what an exported graph holds of forward's steps."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from network_contract import random_images
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks import NETWORKS, build_network
from anomseg_ros.networks.base import SegmentationNetwork


class Pooler(SegmentationNetwork):
    """Averages 4x4 pixels and calls the channels classes."""

    name = "pooler"
    stride = 4
    class_parameter = ("none", 0)

    def classify(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 4)


def operators(network: nn.Module, images: Tensor) -> list[str]:
    program = torch.export.export(network, (images,))
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_every_name_of_the_table_builds_its_network():
    for name in NETWORKS:
        network = build_network(name, 5)
        assert (network.name, network.num_classes, network.source_layout) == (name, 5, None)


def test_an_unknown_network_lists_the_closest_names_first():
    with pytest.raises(ConfigError, match="unknown network 'ennet'; known: enet"):
        build_network("ennet", 20)


def test_no_classes_is_an_error():
    with pytest.raises(ConfigError, match="num_classes is 0"):
        build_network("enet", 0)


def test_the_table_does_not_import_torch():
    code = "import sys, anomseg_ros.networks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sizes_that_fit_export_without_padding_or_cropping():
    assert operators(Pooler(3).eval(), random_images(8, 12)) == [
        "aten.avg_pool2d.default",
        "aten.upsample_bilinear2d.vec",
    ]


def test_sizes_that_do_not_fit_are_padded_upsampled_and_cropped():
    names = operators(Pooler(3).eval(), random_images(9, 12))
    assert names[0].startswith("aten.pad")
    assert any(name.startswith("aten.slice") for name in names)


def test_images_smaller_than_the_stride_still_give_their_own_size():
    assert Pooler(3)(random_images(2, 3)).shape == (1, 3, 2, 3)


def test_a_std_of_zero_is_an_error():
    with pytest.raises(ConfigError, match="above 0"):
        Pooler(3).set_normalisation((0, 0, 0), (1, 0, 1))
