"""UBNA: the statistics of the norms follow the frames by the paper's equation, and nothing else changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_bundles import small_network, street_frames
from torch import Tensor, nn

from anomseg_ros.adaptation.norms import NormConfig, adapt_norms, norms_of, require_norms
from anomseg_ros.errors import ConfigError
from anomseg_ros.networks import build_network
from anomseg_ros.networks.network import SegmentationNetwork, pixels_to_input


def first_norm_input(network: SegmentationNetwork, frames: list[np.ndarray]) -> tuple[nn.BatchNorm2d, Tensor]:
    """Return the first norm and what it gets from a batch; the layers before it have no norm."""
    norm, seen = norms_of(network)[0], []
    handle = norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    with torch.no_grad():
        network.predict(pixels_to_input(torch.from_numpy(np.stack(frames))))
    handle.remove()
    return norm, seen[0]


def test_statistics_are_mixed_with_a_decaying_momentum() -> None:
    network, frames = small_network("mide_net"), street_frames(2)
    norm, inputs = first_norm_input(network, frames)
    assert norm.running_mean is not None and norm.running_var is not None
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    batch_mean, batch_variance = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3))
    for step in range(3):
        momentum = 0.4 * math.exp(-0.5 * step)
        mean = (1 - momentum) * mean + momentum * batch_mean
        variance = (1 - momentum) * variance + momentum * batch_variance
    adapted = norms_of(adapt_norms(network, frames, NormConfig(0.4, 0.5, steps=3, batch_size=2)))[0]
    torch.testing.assert_close(adapted.running_mean, mean)
    torch.testing.assert_close(adapted.running_var, variance)


def test_only_statistics_of_a_copy_change() -> None:
    network, frames = small_network("mide_net"), street_frames(3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adapted = adapt_norms(network, frames, NormConfig(steps=2, batch_size=2))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    changed = {name for name, value in adapted.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.rpartition(".")[2].startswith(("running", "num_batches")) for name in changed)
    assert not any(module.training for module in adapted.modules())
    assert {norm.momentum for norm in norms_of(adapted)} == {norm.momentum for norm in norms_of(network)}


def test_a_seed_repeats_the_batches() -> None:
    network, frames = small_network("mide_net"), street_frames(4)
    one, same, other = (
        norms_of(adapt_norms(network, frames, NormConfig(steps=2, batch_size=3), seed))[0].running_mean
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_defaults_keep_a_quarter_of_the_statistics() -> None:
    assert NormConfig().kept == pytest.approx(0.269, abs=1e-3)
    assert NormConfig(momentum=1).kept == 0


def test_what_cannot_work_is_refused() -> None:
    for changes in ({"momentum": 0}, {"momentum": 1.1}, {"decay": -1}, {"decay": math.inf}, {"decay": math.nan}):
        with pytest.raises(ConfigError, match="expected a momentum above 0"):
            NormConfig(**changes)
    for changes in ({"steps": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match="expected at least 1 each"):
            NormConfig(**changes)
    with pytest.raises(ConfigError, match="there is no frame"):
        adapt_norms(small_network("mide_net"), [], NormConfig())


def test_a_network_without_batch_normalisation_is_refused() -> None:
    network = build_network("mide_net", 3)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    with pytest.raises(ConfigError, match=r"'mide_net' has no batch normalisation .*--stages self"):
        require_norms(network)
