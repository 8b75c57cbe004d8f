"""Pruning: channels that are really gone, zeros that are exact, and networks that compute what is left of them."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from network_contract import random_images, randomize
from torch import nn

from anomseg_ros.compression.channels import CoupledChannels
from anomseg_ros.compression.cost import Cost, graph_cost
from anomseg_ros.compression.prune import PruneConfig, estimated_time_ratio, prune, zero_share
from anomseg_ros.compression.structured import plan_removals, prune_structured, target_width
from anomseg_ros.core.bundle import Provenance
from anomseg_ros.errors import CompressionError
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.networks import NETWORKS, build_network
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.counting import count_multiply_adds, count_parameters

pytestmark = pytest.mark.slow

SIZE_PX = (64, 128)
FRACTIONS = (0.1, 0.3, 0.5)
NARROWABLE = [name for name in NETWORKS if name != "espnetv2"]


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
    """Return the full network in which nothing reads the channels that are to be removed."""
    coupled = CoupledChannels(copy.deepcopy(network))
    silent = copy.deepcopy(network)
    layers = {f"network.{name}": module for name, module in silent.named_modules()}
    for removal in plan_removals(coupled.classes, fraction, round_to):
        for name, out, channels in coupled.places_of(removal.root, list(removal.indices)):
            layer = layers.get(name)
            if out or not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or layer.groups > 1:
                continue
            with torch.no_grad():
                if isinstance(layer, nn.ConvTranspose2d):
                    layer.weight[channels] = 0
                else:
                    layer.weight[:, channels] = 0
    return silent


@pytest.mark.parametrize("name", NARROWABLE)
def test_removed_channels_are_gone_and_the_others_compute_what_they_did(name: str) -> None:
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
    # The network that was given is as it was.
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", NARROWABLE)
def test_widths_are_multiples_or_the_exact_share(name: str) -> None:
    network = full_network(name)
    ours = [module.num_features for module in _norms(network)]
    exact = [module.num_features for module in _norms(prune_structured(network, 0.5, round_to=1))]
    rounded = [module.num_features for module in _norms(prune_structured(network, 0.5))]
    assert {width % 8 for width in rounded if width >= 32} == {0}
    # Few layers keep their width: those before a convolution that expands each channel, in BiSeNet V2.
    share = sum(after == -(-before // 2) for before, after in zip(ours, exact, strict=True)) / len(ours)
    assert share == 1 or (name == "bisenet_v2" and share > 0.5)


def _norms(network: SegmentationNetwork) -> list[nn.BatchNorm2d]:
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("auxiliary_heads.")
    ]


def test_groups_of_several_inputs_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"'espnetv2' joins 32 channels in 4 groups \(encoder.down4.eesp.reduce"):
        prune_structured(build_network("espnetv2", 5), 0.3)


def test_the_least_channels_go_first() -> None:
    network = copy.deepcopy(full_network("mide_net"))
    for part in ("conv.weight", "norm.weight"):
        network.stage1[1].reduce.get_parameter(part).data[[2, 5, 7, 11]] *= 1e-3
    kept = network.stage1[1].reduce.norm.weight[[index for index in range(16) if index not in (2, 5, 7, 11)]]
    pruned = prune_structured(network, 0.25)
    assert torch.equal(pruned.stage1[1].reduce.norm.weight, kept)


@pytest.mark.parametrize("name", ["erfnet", "bisenet_v1"])
def test_a_share_of_the_multiply_adds(name: str) -> None:
    network = full_network(name)
    pruned = prune(network, PruneConfig(fraction=0.3, of="macs"), SIZE_PX)
    left = count_multiply_adds(pruned, *SIZE_PX) / count_multiply_adds(network, *SIZE_PX)
    assert left == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(
    ("width", "fraction", "round_to", "expected"),
    [(64, 0.3, 8, 48), (128, 0.3, 8, 88), (64, 0.3, 1, 45), (16, 0.3, 8, 12), (4, 0.9, 8, 1), (64, 0.99, 8, 8)],
)
def test_target_widths(width: int, fraction: float, round_to: int, expected: int) -> None:
    assert target_width(width, fraction, round_to) == expected


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("name", NETWORKS)
def test_unstructured_zeros_are_exact(name: str, scope: str) -> None:
    network = full_network(name)
    pruned = prune(network, PruneConfig("unstructured", 0.37, scope=scope), SIZE_PX)
    assert zero_share(network) == 0
    # Of all weights together to the weight; of each layer to half a weight of each.
    weights = sum(p.numel() for key, p in pruned.state_dict().items() if p.dim() == 4 and "auxiliary" not in key)
    assert zero_share(pruned) == pytest.approx(0.37, abs=1 / weights if scope == "global" else 0.002)
    assert {key: value.shape for key, value in pruned.state_dict().items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }


def test_unstructured_zeros_are_those_of_least_magnitude() -> None:
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
def test_masked_filters_are_zero_and_still_there(name: str) -> None:
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
def test_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(CompressionError, match="more than 0 and less than 1"):
        PruneConfig(fraction=fraction)
    with pytest.raises(CompressionError, match="more than 0 and less than 1"):
        prune_structured(full_network("mide_net"), fraction)


@pytest.mark.parametrize(("field", "value"), [("method", "structual"), ("of", "mac"), ("scope", "all")])
def test_unknown_choices(field: str, value: str) -> None:
    with pytest.raises(CompressionError, match=f"unknown {field} '{value}'"):
        PruneConfig(**{field: value})
    with pytest.raises(CompressionError, match="round_to 0"):
        PruneConfig(round_to=0)


class Bare(SegmentationNetwork):
    """A network that is a classifier and nothing else."""

    name = "bare"
    stride = 8
    class_parameter = ("classifier.weight", 0)

    def __init__(self) -> None:
        super().__init__(3)
        self.classifier = nn.Conv2d(3, 3, 1)

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(images)


@pytest.mark.parametrize("method", ["structured", "unstructured", "masked"])
def test_a_network_with_nothing_to_prune(method: str) -> None:
    with pytest.raises(CompressionError, match="nothing to prune"):
        prune(Bare(), PruneConfig(method), SIZE_PX)
    with pytest.raises(CompressionError, match="nothing to prune"):
        prune_structured(Bare(), 0.3)


def test_the_estimate_is_a_ratio_of_multiply_adds() -> None:
    assert estimated_time_ratio(Cost(10, 10, 1000, 1000), Cost(10, 5, 1000, 520)) == 0.52


def test_the_estimate_is_that_of_the_papers_table() -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROWABLE)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_exported_graph_is_equal_and_smaller(name: str, fraction: float, tmp_path: Path) -> None:
    network = full_network(name)
    config = ExportConfig(name, 20, 19, height_px=SIZE_PX[0], width_px=SIZE_PX[1], scores=("void",))
    pruned = prune(network, PruneConfig(fraction=fraction), SIZE_PX)
    bundle, parity = export_network(pruned, name, config, tmp_path / "pruned", Provenance())  # checks parity
    assert parity.frames == 2
    # Effective ones: ENet's 3x3 classifier goes over four phases as 2x2, with zeros where a phase sees less.
    expected = count_multiply_adds(pruned, *SIZE_PX)
    assert graph_cost(bundle.graph_path).effective_multiply_adds == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_zeros_reach_the_graph(tmp_path: Path) -> None:
    network = full_network("erfnet")
    config = ExportConfig("zeros", 20, 19, height_px=SIZE_PX[0], width_px=SIZE_PX[1], scores=("void",))
    pruned = prune(network, PruneConfig("unstructured", 0.5, scope="layer"), SIZE_PX)
    bundle, _ = export_network(pruned, "erfnet", config, tmp_path / "zeros", Provenance())
    cost = graph_cost(bundle.graph_path)
    assert cost.multiply_adds == count_multiply_adds(network, *SIZE_PX)
    assert cost.effective_multiply_adds / cost.multiply_adds == pytest.approx(0.52, abs=0.01)
