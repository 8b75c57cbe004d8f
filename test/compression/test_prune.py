"""Pruning: removed channels, exact zeros, and the outputs of pruned networks."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from network_contract import random_images, randomize
from pruning_place import zero_share
from torch import nn

from anomseg_ros.compression.channels import CoupledChannels
from anomseg_ros.compression.cost import graph_cost
from anomseg_ros.compression.prune import PruneConfig, estimated_time_ratio, prune
from anomseg_ros.compression.structured import plan_removals, prune_structured, target_width
from anomseg_ros.core.bundle import Provenance
from anomseg_ros.core.types import Cost
from anomseg_ros.errors import CompressionError
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.networks import NETWORKS, build_network
from anomseg_ros.networks.counting import count_multiply_adds, count_parameters
from anomseg_ros.networks.network import SegmentationNetwork

pytestmark = pytest.mark.slow

SIZE_PX = (64, 128)
FRACTIONS = (0.1, 0.3, 0.5)
NOT_NARROWED = ("dual_stream_adapter", "eomt", "espnetv2", "intern_image")
NARROWABLE = [name for name in NETWORKS if name not in NOT_NARROWED]


@lru_cache(maxsize=1)
def full_network(name: str) -> SegmentationNetwork:
    torch.manual_seed(0)
    network = build_network(name, 20)
    randomize(network)
    return network.eval()


def logits(network: SegmentationNetwork) -> torch.Tensor:
    with torch.no_grad():
        return network(random_images(*SIZE_PX))


def without_readers(network: SegmentationNetwork, fraction: float, round_to: int) -> SegmentationNetwork:
    """Return the full network without readers of the channels that pruning removes."""
    traced, silent = copy.deepcopy(network), copy.deepcopy(network)
    names = {module: name for name, module in traced.named_modules()}
    layers = dict(silent.named_modules())
    coupled = CoupledChannels(traced)
    for root, indices in plan_removals(coupled.classes, fraction, round_to):
        for item in coupled.group(root, indices):
            layer, channels = layers.get(names.get(item.dep.target.module, "-")), item.idxs
            if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or layer.groups > 1:
                continue
            if "out_channels" in item.dep.handler.__name__:
                continue
            with torch.no_grad():
                if isinstance(layer, nn.ConvTranspose2d):
                    layer.weight[channels] = 0
                else:
                    layer.weight[:, channels] = 0
    return silent


@pytest.mark.parametrize("name", NARROWABLE)
def test_removing_channels_equals_disconnecting_them(name: str) -> None:
    network = full_network(name)
    before, parameters = logits(network), count_parameters(network)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    for fraction in FRACTIONS:
        pruned = prune(network, PruneConfig(fraction=fraction), SIZE_PX)
        expected = logits(without_readers(network, fraction, 8))
        assert not torch.allclose(expected, before, atol=1e-2)
        torch.testing.assert_close(logits(pruned), expected, atol=1e-3, rtol=1e-3)
        fewer = count_parameters(pruned)
        assert fewer < parameters
        parameters = fewer
        saved = 1 - count_multiply_adds(pruned, *SIZE_PX) / count_multiply_adds(network, *SIZE_PX)
        assert 0.4 * fraction < saved < 2.5 * fraction
        assert all(parameter.grad is None for parameter in pruned.parameters())
        assert pruned.num_classes == 20 and not pruned.training
    # The input network is unchanged.
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", NARROWABLE)
def test_widths_are_rounded_or_the_exact_share(name: str) -> None:
    network = full_network(name)
    ours = [module.num_features for module in _norms(network)]
    exact = [module.num_features for module in _norms(prune_structured(network, 0.5, round_to=1))]
    rounded = [module.num_features for module in _norms(prune_structured(network, 0.5))]
    assert {width % 8 for width in rounded if width >= 32} == {0}
    # In BiSeNet V2, layers before a convolution that expands each channel keep their width.
    share = sum(after == -(-before // 2) for before, after in zip(ours, exact, strict=True)) / len(ours)
    assert share == 1 or (name == "bisenet_v2" and share > 0.5)


def _norms(network: SegmentationNetwork) -> list[nn.BatchNorm2d]:
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("auxiliary_heads.")
    ]


def test_grouped_convolutions_cannot_be_pruned() -> None:
    with pytest.raises(CompressionError, match=r"'espnetv2' joins 32 channels in 4 groups \(encoder.down4.eesp.reduce"):
        prune_structured(build_network("espnetv2", 5), 0.3)


def test_transformer_tokens_cannot_be_pruned() -> None:
    with pytest.raises(
        CompressionError, match="'eomt' has pos_embed in a layer of kind EoMT, which structured pruning"
    ):
        prune_structured(build_network("eomt", 5), 0.3)
    with pytest.raises(CompressionError, match=r"'dual_stream_adapter' has encoder\.cls_token in a layer"):
        prune_structured(build_network("dual_stream_adapter", 5), 0.3)


def test_channels_of_least_magnitude_are_removed() -> None:
    network = copy.deepcopy(full_network("mide_net"))
    for part in ("conv.weight", "norm.weight"):
        network.stage1[1].reduce.get_parameter(part).data[[2, 5, 7, 11]] *= 1e-3
    kept = network.stage1[1].reduce.norm.weight[[index for index in range(16) if index not in (2, 5, 7, 11)]]
    pruned = prune_structured(network, 0.25)
    assert torch.equal(pruned.stage1[1].reduce.norm.weight, kept)


@pytest.mark.parametrize("name", ["erfnet", "bisenet_v1"])
def test_fraction_can_be_of_multiply_adds(name: str) -> None:
    network = full_network(name)
    pruned = prune(network, PruneConfig(fraction=0.3, of="macs"), SIZE_PX)
    left = count_multiply_adds(pruned, *SIZE_PX) / count_multiply_adds(network, *SIZE_PX)
    assert left == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(
    ("width", "fraction", "round_to", "expected"),
    [(64, 0.3, 8, 48), (128, 0.3, 8, 88), (64, 0.3, 1, 45), (16, 0.3, 8, 12), (4, 0.9, 8, 1), (64, 0.99, 8, 8)],
)
def test_target_width_is_rounded(width: int, fraction: float, round_to: int, expected: int) -> None:
    assert target_width(width, fraction, round_to) == expected


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("name", NETWORKS)
def test_unstructured_pruning_zeroes_the_exact_share(name: str, scope: str) -> None:
    network = full_network(name)
    pruned = prune(network, PruneConfig("unstructured", 0.37, scope=scope), SIZE_PX)
    assert zero_share(network) == 0
    # The share is exact for all weights together, and rounded to whole weights per layer.
    weights = sum(p.numel() for key, p in pruned.state_dict().items() if p.dim() == 4 and "auxiliary" not in key)
    assert zero_share(pruned) == pytest.approx(0.37, abs=1 / weights if scope == "global" else 0.002)
    assert {key: value.shape for key, value in pruned.state_dict().items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }


def test_unstructured_pruning_zeroes_the_smallest_weights() -> None:
    network = full_network("mide_net")
    pruned = prune(network, PruneConfig("unstructured", 0.4), SIZE_PX)
    zeroed, kept = [], []
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d):
            before = network.get_parameter(f"{name}.weight").abs()
            zeroed.append(before[module.weight == 0])
            kept.append(before[module.weight != 0])
    assert torch.cat(zeroed).max() <= torch.cat(kept).min()


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_filters_are_zero_but_not_removed(name: str) -> None:
    network = full_network(name)
    pruned = prune(network, PruneConfig("masked", 0.3), SIZE_PX)
    last = network.class_parameter[0].rpartition(".")[0]
    assert count_parameters(pruned) == count_parameters(network)
    for key, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d):
            zero = int((module.weight.flatten(1).abs().sum(1) == 0).sum())
            spared = key == last or key.startswith("auxiliary_heads.")
            assert zero == (0 if spared else round(0.3 * module.out_channels)), key


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.3, 30.0, float("nan")])
def test_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(CompressionError, match="more than 0 and less than 1"):
        PruneConfig(fraction=fraction)
    with pytest.raises(CompressionError, match="more than 0 and less than 1"):
        prune_structured(full_network("mide_net"), fraction)


@pytest.mark.parametrize(("field", "value"), [("method", "structual"), ("of", "mac"), ("scope", "all")])
def test_unknown_choices_are_refused(field: str, value: str) -> None:
    changed: dict[str, Any] = {field: value}
    with pytest.raises(CompressionError, match=f"unknown {field} '{value}'"):
        PruneConfig(**changed)
    with pytest.raises(CompressionError, match="round_to 0"):
        PruneConfig(round_to=0)


class ClassifierOnly(SegmentationNetwork):
    """A network that consists of a classifier."""

    name = "bare"
    stride = 8
    feature_names = ("images",)
    class_parameter = ("classifier.weight", 0)

    def __init__(self) -> None:
        super().__init__(3)
        self.classifier = nn.Conv2d(3, 3, 1)

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"images": images}


@pytest.mark.parametrize("method", ["structured", "unstructured", "masked"])
def test_network_without_prunable_channels_is_refused(method: str) -> None:
    with pytest.raises(CompressionError, match="nothing to prune"):
        prune(ClassifierOnly(), PruneConfig(method), SIZE_PX)
    with pytest.raises(CompressionError, match="nothing to prune"):
        prune_structured(ClassifierOnly(), 0.3)


def test_time_estimate_is_a_ratio_of_multiply_adds() -> None:
    assert estimated_time_ratio(Cost(10, 10, 1000, 1000), Cost(10, 5, 1000, 520)) == 0.52


def test_time_estimate_equals_the_table_of_the_paper() -> None:
    # Table 5 of paper PTQ: ERFNet takes 0.0420 s and, with half of its weights, 0.0220 s: 52.4 %.
    network = full_network("erfnet")
    pruned = prune(network, PruneConfig("unstructured", 0.5, scope="layer"), SIZE_PX)
    layers = [module for module in pruned.modules() if isinstance(module, nn.Conv2d)]
    assert all((layer.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01) for layer in layers)
    total = count_multiply_adds(network, 512, 1024)
    saved = 0.5 * sum(_multiply_adds_of_convolutions(network).values()) / total
    assert 1 - saved == pytest.approx(0.0220 / 0.0420, abs=0.01)


def _multiply_adds_of_convolutions(network: SegmentationNetwork) -> dict[str, int]:
    found: dict[str, int] = {}
    twin = copy.deepcopy(network).to("meta")
    for name, module in twin.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda layer, _, output, name=name: found.update(
                    {name: layer.weight.numel() * output.shape[2] * output.shape[3]}
                )
            )
    with torch.no_grad():
        twin(torch.empty(1, 3, 512, 1024, device="meta"))
    return found


@pytest.mark.parametrize("name", NARROWABLE)
def test_exported_graph_of_a_pruned_network_is_equal_and_smaller(name: str, tmp_path: Path) -> None:
    network = full_network(name)
    config = ExportConfig(name, 20, 19, height_px=SIZE_PX[0], width_px=SIZE_PX[1], scores=("void",))
    pruned = prune(network, PruneConfig(fraction=0.3), SIZE_PX)
    bundle, parity = export_network(pruned, name, config, tmp_path / "pruned", Provenance())  # checks parity
    assert parity.frames == 2
    # ENet's 3x3 classifier becomes a 2x2 convolution for four phases with some zeros, so only effective ones are equal.
    expected = count_multiply_adds(pruned, *SIZE_PX)
    assert graph_cost(bundle.graph_path).effective_multiply_adds == pytest.approx(expected, rel=1e-5)


def test_zero_weights_are_in_the_exported_graph(tmp_path: Path) -> None:
    network = full_network("erfnet")
    config = ExportConfig("zeros", 20, 19, height_px=SIZE_PX[0], width_px=SIZE_PX[1], scores=("void",))
    pruned = prune(network, PruneConfig("unstructured", 0.5, scope="layer"), SIZE_PX)
    bundle, _ = export_network(pruned, "erfnet", config, tmp_path / "zeros", Provenance())
    cost = graph_cost(bundle.graph_path)
    assert cost.multiply_adds == count_multiply_adds(network, *SIZE_PX)
    assert cost.effective_multiply_adds / cost.multiply_adds == pytest.approx(0.52, abs=0.01)
