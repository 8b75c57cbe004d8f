"""ENet: published figures, both published variants, and max-unpooling by phases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from network_contract import NetworkFigures, random_images

from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.counting import count_multiply_adds, count_parameters
from anomseg_ros.networks.enet import DAVIDTVS, ENet, max_pool_with_phases, max_unpool_from_phases


class TestENet(NetworkFigures):
    name = "enet"
    num_classes = 20
    parameters = 0.354e6  # MiDE-Net report, Table 5; the ENet paper's Table 3 says 0.37 M
    multiply_adds = 4.140e9
    logit_stride = 1


def test_davidtvs_variant_has_the_published_counts():
    network = ENet(20, DAVIDTVS)
    assert count_parameters(network) == pytest.approx(0.35e6, rel=0.02)
    assert count_multiply_adds(network, 512, 1024) == pytest.approx(4.056e9, rel=0.005)


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 3, 8, 12), (1, 16, 64, 96)])
@pytest.mark.parametrize("levels", [1, 2, 4, 100000])
@pytest.mark.parametrize("by_comparison", [False, True])
def test_pooling_by_phases_equals_torch_also_with_ties(shape, levels, by_comparison):
    generator = torch.Generator().manual_seed(levels)
    # With few levels, most windows have ties. With 1, all four pixels are always equal.
    features = torch.randint(0, levels, shape, generator=generator).float() - levels / 2
    values = torch.randn(shape[0], shape[1], shape[2] // 2, shape[3] // 2, generator=generator)
    pooled, indices = F.max_pool2d(features, 2, return_indices=True)

    ours, phases = max_pool_with_phases(features, by_comparison)

    assert torch.equal(ours, pooled)
    assert torch.equal(torch.stack(phases).sum(0), torch.ones_like(ours, dtype=torch.int64))
    assert torch.equal(max_unpool_from_phases(values, phases), F.max_unpool2d(values, indices, [2, 2]))


def test_network_for_gpus_equals_the_network_and_leaves_it_alone():
    network = ENet(20).eval()
    changed = network.for_gpu()
    assert changed.down1.by_comparison and changed.down2.by_comparison and not network.down1.by_comparison
    with torch.no_grad():
        assert torch.equal(network(random_images(64, 96)), changed(random_images(64, 96)))


@pytest.mark.parametrize("file", ["enet_560_epochs.pth", "enet_560_epochs_finetuned.pth"])
def test_published_weights_give_finite_logits(shared_weights, file):
    network = load_checkpoint(shared_weights / file, "enet", 20)
    assert network.source_layout == "yassouali/pytorch-segmentation"
    with torch.no_grad():
        logits = network(random_images(64, 96))
    assert logits.isfinite().all()
    assert logits.std() > 0.1
