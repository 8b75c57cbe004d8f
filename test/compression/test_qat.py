"""Fine-tuning for int8: the result is a normal checkpoint whose int8 form is closer to the parent."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_bundles import camvid_frames, street_frames

from anomseg_ros.compression.qat import (
    FineTuneConfig,
    RoundedInput,
    RoundedWeight,
    fine_tune,
    layers_in_int8,
)
from anomseg_ros.compression.quantize_onnx import QuantizeConfig, quantize
from anomseg_ros.compression.ranges import plain_session
from anomseg_ros.compression.reexport import export_config_of
from anomseg_ros.core.bundle import Provenance, load_bundle
from anomseg_ros.core.progress import no_progress
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import CompressionError, ConfigError
from anomseg_ros.export import DetectorGraph, ExportConfig, export_network
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork

pytestmark = pytest.mark.slow


def tensors(count: int) -> list[np.ndarray]:
    return [frame[np.newaxis] for frame in street_frames(count)]


def test_weights_have_255_levels_per_channel_and_pass_gradients() -> None:
    weight = torch.randn(4, 3, 5, 5, requires_grad=True)
    rounded = RoundedWeight(0)(weight)
    for channel in range(4):
        levels = rounded[channel] / (weight[channel].abs().max() / 127)
        assert torch.allclose(levels, levels.round(), atol=1e-3) and levels.abs().max() <= 127.001
    rounded.sum().backward()
    assert (weight.grad == 1).all()
    transposed = RoundedWeight(1)(weight)
    assert not torch.allclose(transposed, rounded)


def test_rounded_inputs_keep_zero_and_their_range_moves_slowly() -> None:
    hook, layer = RoundedInput(0.01), torch.nn.Identity()
    values = torch.linspace(-0.3, 1.7, 1001)
    assert hook(layer, (values,))[0] is values and (hook.low, hook.high) == pytest.approx((-0.3, 1.7))
    hook.widening = False
    (rounded,) = hook(layer, (values,))
    assert 200 < len(rounded.unique()) <= 256 and (rounded - values).abs().max() < 0.005
    assert hook(layer, (torch.zeros(3),))[0].abs().max() == 0
    assert hook.high == pytest.approx(0.99 * 1.7, rel=1e-3)


def test_fine_tuned_network_is_a_normal_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parent = build_network("erfnet", 20).eval()
    before = copy.deepcopy(parent.state_dict())
    made = fine_tune(parent, tensors(2), FineTuneConfig(steps=2, batch=1), no_progress)
    assert all((value == before[key]).all() for key, value in parent.state_dict().items())
    after = made.network.state_dict()
    assert list(after) == list(before) and not made.network.training
    assert not any(module._forward_pre_hooks for module in made.network.modules())
    changed = [key for key, value in after.items() if not torch.equal(value, before[key])]
    assert "classifier.weight" in changed and not any("running" in key for key in changed)
    # The weights are not rounded; the quantizers choose the levels.
    layer = layers_in_int8(made.network)[0]
    assert len(layer.weight[0].unique()) > 0.9 * layer.weight[0].numel()
    save_checkpoint(tmp_path / "tuned.safetensors", made.network, {})
    again = load_checkpoint(tmp_path / "tuned.safetensors", "erfnet", 20)
    assert all(torch.equal(value, after[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("name", ["enet", "mide_net", "bisenet_v1", "bisenet_v2"])
def test_every_network_can_be_fine_tuned_for_int8(name: str) -> None:
    network = build_network(name, 20).eval()
    made = fine_tune(network, tensors(1), FineTuneConfig(steps=1, batch=1), no_progress)
    assert np.isfinite([made.loss_before, made.loss_after]).all()
    classifier = network.class_parameter[0]
    assert not torch.equal(made.network.state_dict()[classifier], network.state_dict()[classifier])


def test_invalid_steps_and_diverging_loss_are_refused() -> None:
    network = build_network("mide_net", 20)
    with pytest.raises(ConfigError, match="steps and batch must be at least 1"):
        fine_tune(network, tensors(1), FineTuneConfig(steps=0), no_progress)
    with pytest.raises(CompressionError, match=r"the loss is .* give a lower learning rate than 1e\+12"):
        fine_tune(network, tensors(1), FineTuneConfig(steps=9, learning_rate=1e12), no_progress)


def test_fine_tuning_reduces_the_loss_of_uneven_channels() -> None:
    torch.manual_seed(0)
    parent = build_network("mide_net", 20).eval()
    for module in parent.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Channels of very different ranges, for which one scale per tensor is too coarse.
            ranges = torch.logspace(-2.5, 0.8, module.num_features)
            module.weight.data.copy_(ranges[torch.randperm(module.num_features)])
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    made = fine_tune(parent, tensors(6), FineTuneConfig(steps=40, batch=2, learning_rate=1e-4), no_progress)
    assert 0 < made.loss_after < 0.5 * made.loss_before


@pytest.mark.slow
def test_fine_tuned_enet_has_a_smaller_int8_error(shared_data: Path, tmp_path: Path) -> None:
    shipped = load_bundle(find_bundle("enet-camvid"))
    contract = shipped.contract
    parent = load_checkpoint(shipped.directory / "checkpoint.safetensors", contract.network, len(contract.classes))
    export = replace(export_config_of(contract), height_px=120, width_px=160, scores=("void",))
    frames = camvid_frames(shared_data, 20)
    made = fine_tune(parent, frames[:10], FineTuneConfig(steps=60), no_progress)
    assert made.loss_after < 0.9 * made.loss_before
    truth = DetectorGraph(parent, export).eval()
    before = int8_error(truth, parent, export, frames, tmp_path / "before")
    after = int8_error(truth, made.network, export, frames, tmp_path / "after")
    assert after < 0.95 * before


def int8_error(
    truth: DetectorGraph, network: SegmentationNetwork, export: ExportConfig, frames: list[np.ndarray], folder: Path
) -> float:
    """Return the mean squared error of int8 void probabilities on ten unseen frames."""
    bundle, _ = export_network(network, "enet", export, folder, Provenance())
    # Without the other methods, which reduce the same errors.
    config = QuantizeConfig(keep_float="none", equalize=False, compensate=False)
    session = plain_session(quantize(onnx.load(bundle.graph_path), frames[:10:2], config, no_progress).model)
    errors = []
    for frame in frames[10:]:
        with torch.no_grad():
            expected = truth(torch.from_numpy(frame.copy()))[1].numpy()
        errors.append(np.square(session.run(["void"], {"image": frame})[0] - expected).mean())
    return float(np.mean(errors))
