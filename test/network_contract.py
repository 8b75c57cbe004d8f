"""The contract of networks, for tests to inherit.

test/networks/test_every_network.py runs NetworkContract for each network of the table; test/networks/test_<name>.py
inherits NetworkFigures and states the published figures of that network.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from small_bundles import small_bundle, small_network
from torch import nn

from anomseg_ros.backends import open_detector
from anomseg_ros.compression.reexport import export_config_of
from anomseg_ros.errors import CheckpointError, ConfigError
from anomseg_ros.export import random_frames
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.counting import count_multiply_adds, count_parameters
from anomseg_ros.networks.network import AuxiliarySegmentationNetwork, SegmentationNetwork
from anomseg_ros.networks.prediction import PixelPrediction
from anomseg_ros.parity import check_parity


def randomize(network: SegmentationNetwork, seed: int = 0) -> None:
    """Draw random weights and measure normalisation statistics, so that activations stay of order 1 in every layer.

    With the initial weights, signals vanish or explode in a deep network, so that two wrong networks look alike.
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


@cache
def randomized(name: str, num_classes: int) -> SegmentationNetwork:
    """Return a network with random weights, in evaluation mode; all callers get the same object."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(name, num_classes)
    randomize(network)
    return network.eval()


def random_images(height_px: int, width_px: int, *, batch: int = 1, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height_px, width_px, generator=generator)


def with_auxiliary(network: SegmentationNetwork, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the logits per pixel, then those of each auxiliary head at its own size."""
    assert isinstance(network, AuxiliarySegmentationNetwork)
    prediction = network.predict(images, network.auxiliary_features)
    return prediction.pixel_logits(), *network.auxiliary_logits(prediction.features)


class OneNetwork:
    """Shared parts of the tests of a network. Subclasses are named Test... and set the attributes."""

    name: ClassVar[str]
    num_classes: ClassVar[int] = 20

    @classmethod
    def built(cls) -> SegmentationNetwork:
        """Return the same network each time, for the caller to change."""
        return copy.deepcopy(randomized(cls.name, cls.num_classes))

    @pytest.fixture
    def network(self) -> SegmentationNetwork:
        return self.built()


class NetworkFigures(OneNetwork):
    """Checks the published figures of a network."""

    parameters: ClassVar[float]
    """Published number of parameters for inference, with `num_classes` classes."""
    parameters_tolerance: ClassVar[float] = 0.02
    multiply_adds: ClassVar[float]
    """Published multiply-adds at 512x1024 with `num_classes` classes, in the convention of counting.py."""
    logit_stride: ClassVar[int]
    """Pixels per logit, or per mask logit, of `predict`."""

    auxiliary_sizes: ClassVar[tuple[tuple[int, int], ...]] = ()
    """Height and width of each auxiliary head's logits of images of 65x97, which are padded to 96x128."""

    def test_auxiliary_logits_have_the_sizes_of_their_heads(self, network):
        assert len(self.auxiliary_sizes) == len(network.auxiliary_heads)
        if self.auxiliary_sizes:
            with torch.no_grad():
                sizes = [tuple(logits.shape[-2:]) for logits in with_auxiliary(network, random_images(65, 97))]
            assert sizes == [(65, 97), *self.auxiliary_sizes]

    def test_parameters_equal_the_published_number(self, network):
        assert count_parameters(network) == pytest.approx(self.parameters, rel=self.parameters_tolerance)

    def test_multiply_adds_equal_the_published_number(self, network):
        assert count_multiply_adds(network, 512, 1024) == pytest.approx(self.multiply_adds, rel=0.005)

    def test_prediction_has_the_published_resolution(self, network):
        with torch.no_grad():
            maps = network.predict(random_images(64, 96)).maps
        assert maps.shape[-2:] == (64 // self.logit_stride, 96 // self.logit_stride)


class NetworkContract(OneNetwork):
    """Checks the contract of a network. Subclasses are named Test... and set the attributes."""

    @pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 70)])
    def test_logits_have_the_size_of_the_images_and_are_finite(self, network, size):
        with torch.no_grad():
            logits = network(random_images(*size))
        assert logits.shape == (1, self.num_classes, *size)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        assert logits.std((-2, -1)).min() > 0.01
        assert logits.abs().max() < 100

    def test_odd_sizes_are_padded_and_cropped(self, network):
        images = random_images(50, 77)
        fitting = 50 + -50 % network.stride, 77 + -77 % network.stride
        repeated = nn.functional.pad(images, (0, fitting[1] - 77, 0, fitting[0] - 50), mode="replicate")
        with torch.no_grad():
            assert torch.equal(network(images), network(repeated)[..., :50, :77])

    def test_prediction_has_the_kind_of_the_network(self, network):
        with torch.no_grad():
            prediction = network.predict(random_images(65, 97))
        assert isinstance(prediction, network.kind)
        assert (prediction.size_px, prediction.padded_px) == ((65, 97), network.padded_size(65, 97))
        assert prediction.features == {}

    def test_requested_features_are_returned_and_change_nothing(self, network):
        images = random_images(65, 97, batch=2)
        height_px, width_px = network.padded_size(65, 97)
        with torch.no_grad():
            prediction = network.predict(images, network.feature_names)
            assert torch.equal(prediction.pixel_logits(), network(images))
        assert tuple(prediction.features) == network.feature_names != ()
        for name, maps in prediction.features.items():
            assert maps.shape[0] == 2 and maps.dim() == 4, name
            # The stride is the same in both directions, and an integer.
            assert height_px // maps.shape[2] == width_px // maps.shape[3], name
            assert height_px % maps.shape[2] == width_px % maps.shape[3] == 0, name

    def test_prediction_is_computed_from_the_last_features(self, network):
        last = network.feature_names[-1]
        tensors = {
            name: value.detach().requires_grad_() for name, value in network.encode(random_images(64, 96)).items()
        }
        network.decide(tensors)["logits" if network.kind is PixelPrediction else "mask_logits"].sum().backward()
        assert tensors[last].grad.abs().max() > 0
        assert all(value.grad is None for name, value in tensors.items() if name in network.feature_names[:-1])

    def test_unknown_feature_error_lists_the_known_ones(self, network):
        with pytest.raises(ConfigError, match=f"'{self.name}': unknown feature 'nonsense'; known: .*") as caught:
            network.predict(random_images(64, 96), ("nonsense",))
        assert all(name in str(caught.value) for name in network.feature_names)

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

    def test_normalisation_is_applied_to_images_from_0_to_1(self, network):
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
        outputs = with_auxiliary(network, images) if network.auxiliary_heads else (network(images),)
        sum(logits.square().mean() for logits in outputs).backward()
        untouched = [key for key, value in network.named_parameters() if value.grad is None]
        assert untouched == []

    def test_auxiliary_heads_do_not_change_the_logits(self, network):
        images = random_images(65, 97)
        if not network.auxiliary_heads:
            return
        with torch.no_grad():
            logits, *auxiliary = with_auxiliary(network, images)
            assert {tuple(values.shape[:2]) for values in auxiliary} == {(1, self.num_classes)}
            assert torch.equal(logits, network(images))
            for parameter in network.auxiliary_heads.parameters():
                parameter.fill_(torch.nan)
            assert torch.equal(logits, network(images))

    def test_saved_network_is_loaded_completely(self, network, tmp_path):
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

    def test_error_names_the_number_of_classes(self, network, tmp_path):
        save_checkpoint(tmp_path / "own.safetensors", network, {})
        with pytest.raises(CheckpointError, match=rf"for {self.num_classes} classes, not 7; ask for num_classes"):
            load_checkpoint(tmp_path / "own.safetensors", self.name, 7)

    @pytest.mark.slow
    def test_exported_graph_equals_the_network(self, tmp_path):
        bundle, network = small_bundle(self.name, tmp_path), small_network(self.name)
        parity = check_parity(bundle, network, random_frames(export_config_of(bundle.contract)))
        assert parity.frames == 2 and parity.max_score_difference <= 1e-4
        outputs = open_detector(bundle).detect(np.zeros((100, 200, 3), np.uint8))
        assert outputs.labels is not None and outputs.labels.shape == (64, 128)
        if network.max_unpooling:  # TensorRT and quantizers do not support these operators
            nodes = onnx.load(bundle.graph_path).graph.node
            unsupported = {"MaxUnpool", "ScatterND", "ScatterElements", "GatherND", "GatherElements", "NonZero"}
            assert not {node.op_type for node in nodes} & unsupported
            assert all(len(node.output) == 1 for node in nodes if node.op_type == "MaxPool")
