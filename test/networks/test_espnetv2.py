"""ESPNetv2: published figures, its scales, its pooling and the published weights."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from network_contract import NetworkFigures, random_images
from torch.nn import functional as F

from anomseg_ros.core.image_files import read_image
from anomseg_ros.errors import CheckpointError, ConfigError
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.counting import count_multiply_adds, count_parameters
from anomseg_ros.networks.espnetv2 import WIDTHS, ESPNetv2, _PyramidPooling
from anomseg_ros.networks.layers import adaptive_average_pool
from anomseg_ros.networks.network import IMAGENET_MEAN, IMAGENET_STD

PUBLISHED = {1.0: (0.23e6, 1.08659e9), 2.0: (0.79e6, 2.69905e9)}
"""Scale -> parameters and multiply-adds of the model zoo of EdgeNets."""


class TestESPNetv2(NetworkFigures):
    name = "espnetv2"
    num_classes = 20
    parameters, multiply_adds = PUBLISHED[2.0]
    parameters_tolerance = 0.005
    logit_stride = 2


@pytest.mark.parametrize("scale", WIDTHS)
def test_options_store_the_scale(scale):
    network = ESPNetv2(3, scale=scale)
    assert network.options() == {"scale": scale}
    with torch.no_grad():
        assert network.eval()(random_images(33, 50)).shape == (1, 3, 33, 50)


@pytest.mark.parametrize("scale", [0, 3.0, "wide"])
def test_other_scales_are_refused(scale):
    with pytest.raises(ConfigError, match=rf"scale is {scale!r}; an ESPNetv2 has one of 0.5, 1.0, 1.25, 1.5, 2.0"):
        ESPNetv2(20, scale=scale)


@pytest.mark.parametrize("given", [(1, 1), (7, 9), (64, 96), (48, 96), (26, 52)])
@pytest.mark.parametrize("wanted", [(5, 5), (32, 64), (26, 52), (3, 2), (24, 12)])
def test_adaptive_pooling_equals_torch(given, wanted):
    features = torch.rand(2, 3, *given, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.adaptive_avg_pool2d(features, wanted)
    torch.testing.assert_close(adaptive_average_pool(features, wanted), expected, atol=1e-12, rtol=0)


def test_pyramid_pooling_groups_branches_by_channel():
    """The group of channel 3 contains channel 3 of the branches 0 to 4, in the order of their sizes."""
    pooling = _PyramidPooling(10).eval()
    features = torch.rand(1, 10, 20, 30)
    taken = []
    pooling.fuse.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    with torch.no_grad():
        for branch in pooling.branches:
            branch.weight.zero_()
        pooling.branches[4].weight[3, 0, 1, 1] = 1.0
        pooling(features)
    assert taken[0].abs().sum((0, 2, 3)).nonzero().flatten().tolist() == [3 * 5 + 4]


@pytest.mark.parametrize("scale", PUBLISHED)
def test_published_weights_load_with_their_scale(scale, shared_weights):
    network = load_checkpoint(shared_weights / f"espnetv2/espnetv2_s_{scale}_city_1024x512.pth", "espnetv2", 20)
    assert network.source_layout == f"sacmehta/EdgeNets, scale {scale}"
    assert network.options() == {"scale": scale}
    assert (network.mean, network.std) == (IMAGENET_MEAN, IMAGENET_STD)
    parameters, multiply_adds = PUBLISHED[scale]
    assert count_parameters(network) == pytest.approx(parameters, rel=0.02)
    assert count_multiply_adds(network, 512, 1024) == pytest.approx(multiply_adds, rel=0.002)


def test_error_names_the_number_of_classes(shared_weights):
    with pytest.raises(CheckpointError, match="trained for 20 classes, not 19; ask for num_classes=20"):
        load_checkpoint(shared_weights / "espnetv2/espnetv2_s_2.0_city_1024x512.pth", "espnetv2", 19)


@pytest.mark.slow
def test_published_weights_segment_the_road_of_camvid(shared_weights: Path, shared_data: Path):
    """The weights were not trained on CamVid. The IoU of the road on 26 validation frames is 95.6 %."""
    network = load_checkpoint(shared_weights / "espnetv2/espnetv2_s_2.0_city_1024x512.pth", "espnetv2", 20)
    intersection, union = 0, 0
    for path in sorted((shared_data / "CamVid" / "val").iterdir())[::34]:
        image = torch.from_numpy(cv2.resize(read_image(path), (1024, 512)))
        with torch.no_grad():
            label = network(image.permute(2, 0, 1)[None].float() / 255)[0, :19].argmax(0).byte().numpy()
        truth = cv2.imread(str(shared_data / "CamVid" / "valannot" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        road = cv2.resize(label, truth.shape[::-1], interpolation=cv2.INTER_NEAREST)[truth < 11] == 0
        true_road = truth[truth < 11] == 3
        intersection += int(np.sum(road & true_road))
        union += int(np.sum(road | true_road))
    assert intersection / union > 0.93
