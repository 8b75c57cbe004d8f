"""What every network promises; test/networks/test_<name>.py inherits these tests and states the network's figures."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from anomseg_ros.errors import CheckpointError
from anomseg_ros.networks import build_network
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.counting import count_multiply_adds, count_parameters

OPSET = 18


def randomize(network: SegmentationNetwork, seed: int = 0) -> None:
    """Draw weights and measure normalisation statistics, so that activations stay of order 1 in every layer.

    Left as initialised, signals fade or explode along a deep network, and two wrong networks look alike.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 0.6 + 0.7)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.3)
            elif isinstance(module, nn.PReLU):
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 0.3 + 0.1)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                values = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(values / module.weight[0].numel() ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
        network.train()
        for step in range(8):
            network(random_images(64, 96, batch=2, seed=seed + step))


def random_images(height_px: int, width_px: int, *, batch: int = 1, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height_px, width_px, generator=generator)


class NetworkContract:
    """Subclasses are named Test... and set the attributes."""

    name: ClassVar[str]
    num_classes: ClassVar[int]
    parameters: ClassVar[float]
    """Published number of parameters for inference, with `num_classes` classes."""
    parameters_tolerance: ClassVar[float] = 0.02
    multiply_adds: ClassVar[float]
    """At 512x1024 with `num_classes` classes, in counting.py's convention."""
    logit_stride: ClassVar[int]
    """Pixels per logit of `classify`."""

    @pytest.fixture
    def network(self) -> SegmentationNetwork:
        network = build_network(self.name, self.num_classes)
        randomize(network)
        return network.eval()

    @pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 70)])
    def test_logits_have_the_size_of_the_images_and_are_finite(self, network, size):
        with torch.no_grad():
            logits = network(random_images(*size))
        assert logits.shape == (1, self.num_classes, *size)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        assert logits.std((-2, -1)).min() > 0.01
        assert logits.abs().max() < 100

    def test_odd_sizes_are_padded_bottom_and_right_and_cropped(self, network):
        images = random_images(50, 77)
        fitting = 50 + -50 % network.stride, 77 + -77 % network.stride
        repeated = nn.functional.pad(images, (0, fitting[1] - 77, 0, fitting[0] - 50), mode="replicate")
        with torch.no_grad():
            assert torch.equal(network(images), network(repeated)[..., :50, :77])

    def test_classifies_at_its_own_resolution(self, network):
        with torch.no_grad():
            logits = network.classify(random_images(64, 96))
        assert logits.shape == (1, self.num_classes, 64 // self.logit_stride, 96 // self.logit_stride)

    def test_evaluation_is_deterministic(self, network):
        images = random_images(64, 96)
        with torch.no_grad():
            assert torch.equal(network(images), network(images))

    def test_images_of_a_batch_do_not_influence_each_other(self, network):
        images = random_images(64, 96, batch=2)
        with torch.no_grad():
            together = network(images)
            alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)

    def test_normalisation_is_applied_to_0_to_1_images(self, network):
        images = random_images(64, 96)
        with torch.no_grad():
            plain = network(images)
            network.set_normalisation((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
            mean, std = torch.tensor(network.mean).view(1, 3, 1, 1), torch.tensor(network.std).view(1, 3, 1, 1)
            torch.testing.assert_close(network(images * std + mean), plain, atol=1e-3, rtol=1e-3)
            assert not torch.allclose(network(images), plain, atol=1e-3)

    def test_training_reaches_every_parameter(self):
        network = build_network(self.name, self.num_classes).train()
        images = random_images(64, 96, batch=2)
        outputs = network.forward_with_auxiliary(images) if network.auxiliary_heads else (network(images),)
        sum(logits.square().mean() for logits in outputs).backward()
        untouched = [key for key, value in network.named_parameters() if value.grad is None]
        assert untouched == []

    def test_parameters_are_the_published_number(self, network):
        assert count_parameters(network) == pytest.approx(self.parameters, rel=self.parameters_tolerance)

    def test_multiply_adds_at_512x1024(self, network):
        assert count_multiply_adds(network, 512, 1024) == pytest.approx(self.multiply_adds, rel=0.005)

    def test_saving_and_loading_keeps_everything(self, network, tmp_path):
        network.set_normalisation((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        save_checkpoint(tmp_path / "own.safetensors", network, {"epochs": 3, "data": ["a", "b"]})
        loaded = load_checkpoint(tmp_path / "own.safetensors", self.name, self.num_classes)
        assert [file.name for file in tmp_path.iterdir()] == ["own.safetensors"]
        assert loaded.checkpoint_metadata == {"epochs": 3, "data": ["a", "b"]}
        assert (loaded.mean, loaded.std) == (network.mean, network.std)
        assert loaded.options() == network.options()
        assert not loaded.training
        images = random_images(64, 96)
        with torch.no_grad():
            assert torch.equal(loaded(images), network(images))

    @pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
    def test_a_wrong_key_is_named(self, network, tmp_path, damage):
        save_checkpoint(tmp_path / "own.safetensors", network, {})
        state, header = _open(tmp_path / "own.safetensors")
        key = network.class_parameter[0]
        if damage == "missing":
            del state[key]
        elif damage == "unexpected":
            key = "intruder.weight"
            state[key] = torch.zeros(3)
        else:
            state[key] = state[key][:, :1].contiguous().repeat(1, 1, 3, 1)
        save_file(state, tmp_path / "wrong.safetensors", header)
        with pytest.raises(CheckpointError, match=rf"1 {damage} \({key}"):
            load_checkpoint(tmp_path / "wrong.safetensors", self.name, self.num_classes)

    def test_another_number_of_classes_is_named(self, network, tmp_path):
        save_checkpoint(tmp_path / "own.safetensors", network, {})
        with pytest.raises(CheckpointError, match=rf"for {self.num_classes} classes, not 7; ask for num_classes"):
            load_checkpoint(tmp_path / "own.safetensors", self.name, 7)

    @pytest.fixture(scope="class")
    @classmethod
    def exported(cls, tmp_path_factory) -> Path:
        """The ONNX file of `network`, for images of 64x96."""
        network = build_network(cls.name, cls.num_classes)
        randomize(network)
        path: Path = tmp_path_factory.mktemp(cls.name) / "network.onnx"
        images = random_images(64, 96)
        torch.onnx.export(network.eval(), (images,), path, dynamo=True, opset_version=OPSET, verbose=False)
        return path

    @pytest.mark.slow
    def test_the_exported_graph_computes_the_same(self, network, exported):
        images = random_images(64, 96)
        session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            assert np.abs(logits - network(images).numpy()).max() <= 1e-4


def _open(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
