"""Quantizing a checkpoint for PyTorch: int8 operators in the program, close to float, head in float."""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_bundles import HEIGHT_PX, WIDTH_PX, camvid_frames, street_frames

from anomseg_ros.backends.torch_archive import read_plain_program
from anomseg_ros.compression import quantize_torch as module_under_test
from anomseg_ros.compression.quantize_torch import TorchQuantizeConfig, TorchQuantized, quantize_torch, save_program
from anomseg_ros.compression.reexport import export_config_of
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import CompressionError
from anomseg_ros.export import DetectorGraph, ExportConfig
from anomseg_ros.networks import build_network
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.checkpoints import load_checkpoint

pytestmark = pytest.mark.slow

CONFIG = ExportConfig("small", 20, 19, height_px=HEIGHT_PX, width_px=WIDTH_PX, scores=("void", "max_entropy"))


def quiet(what: str, done: int, total: int) -> None:
    """Show nothing."""


def lively(name: str) -> SegmentationNetwork:
    """Return a network with random weights whose channels differ."""
    torch.manual_seed(0)
    network = build_network(name, 20).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 3.0)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network


def tensors(count: int) -> list[np.ndarray]:
    return [frame[np.newaxis] for frame in street_frames(count)]


def operators(made: TorchQuantized) -> Counter[str]:
    nodes = [node for node in made.program.graph.nodes if node.op == "call_function"]
    return Counter(str(node.target).removesuffix(".default") for node in nodes)


def outputs(graph: torch.nn.Module, tensor: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [output.numpy() for output in graph(torch.from_numpy(tensor.copy()))]


# How many of each network's convolutions are transposed, beside the classifier: those stay in float.
TRANSPOSED = {"mide_net": 0, "erfnet": 2, "enet": 2, "bisenet_v1": 0, "bisenet_v2": 0}


@pytest.mark.parametrize("method", ["pt2e", "fx"])
@pytest.mark.parametrize(
    "name", ["mide_net", *(pytest.param(n, marks=pytest.mark.slow) for n in TRANSPOSED if n[0] in "eb")]
)
def test_every_convolution_but_the_classifier_becomes_int8(name: str, method: str, tmp_path: Path) -> None:
    network = lively(name)
    before = copy.deepcopy(network.state_dict())
    made = quantize_torch(network, CONFIG, tensors(3), TorchQuantizeConfig(method), quiet)
    assert all((value == before[key]).all() for key, value in network.state_dict().items())
    counted = operators(made)
    assert len(made.float_layers) == TRANSPOSED[name] + 1
    assert counted["quantized_decomposed.dequantize_per_channel"] == made.layers - len(made.float_layers)
    assert counted["quantized_decomposed.quantize_per_tensor"] > 0.3 * made.layers
    assert counted["quantized_decomposed.quantize_per_channel"] == 0  # rounded once, not with every frame
    int8 = [value for value in made.program.state_dict.values() if value.dtype == torch.int8]
    assert len(int8) == made.layers - len(made.float_layers)
    # The float weights are not kept beside them.
    floats = sum(value.numel() for value in made.program.state_dict.values() if value.is_floating_point())
    assert floats < 0.25 * sum(value.numel() for value in before.values())
    truth = outputs(DetectorGraph(network, CONFIG).eval(), tensors(4)[3])
    found = outputs(made.program.module(), tensors(4)[3])
    # FX rounds every value, which ENet's untrained weights do not stand: see the trained ones below.
    if (name, method) != ("enet", "fx"):
        assert (truth[0] == found[0]).mean() > 0.7
        assert np.corrcoef(truth[1].reshape(-1), found[1].reshape(-1))[0, 1] > 0.9
    path = save_program(made.program, tmp_path / "model.pt2")
    read_plain_program(path)
    assert b"anomseg_ros" not in path.read_bytes()  # nothing of the source, nor where it lay


@pytest.fixture(scope="module")
def camvid() -> tuple[SegmentationNetwork, ExportConfig]:
    """The shipped ENet, which was trained on streets, at a small size."""
    bundle = load_bundle(find_bundle("enet-camvid"))
    contract = bundle.contract
    network = load_checkpoint(bundle.directory / "checkpoint.safetensors", contract.network, len(contract.classes))
    return network, replace(export_config_of(contract), height_px=120, width_px=160)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "least"), [("pt2e", 0.97), ("fx", 0.94)])
def test_trained_enet_keeps_its_labels(
    method: str, least: float, camvid: tuple[SegmentationNetwork, ExportConfig], shared_data: Path
) -> None:
    network, config = camvid
    frames = camvid_frames(shared_data, 8)
    made = quantize_torch(network, config, frames[:5], TorchQuantizeConfig(method), quiet)
    blind = quantize_torch(network, config, [np.zeros_like(frames[0])], TorchQuantizeConfig(method), quiet)
    truth = DetectorGraph(network, config).eval()

    def agreement(graph: torch.nn.Module) -> float:
        return float(np.mean([outputs(graph, f)[0] == outputs(truth, f)[0] for f in frames[5:]]))

    found, of_black_frames = agreement(made.program.module()), agreement(blind.program.module())
    assert found > least
    # The bound means something: ranges found on black frames do not reach it.
    assert of_black_frames < 0.5, (found, of_black_frames)


def test_named_modules_stay_in_float() -> None:
    network = lively("mide_net")
    name = next(name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d))
    made = quantize_torch(network, CONFIG, tensors(1), TorchQuantizeConfig("fx", keep_float=(name,)), quiet)
    assert made.float_layers == (name, "classifier")
    assert operators(made)["quantized_decomposed.dequantize_per_channel"] == made.layers - 2
    with pytest.raises(CompressionError, match=r"no module 'clasifier'; the closest: classifier"):
        quantize_torch(network, CONFIG, tensors(1), TorchQuantizeConfig("fx", keep_float=("clasifier",)), quiet)


def test_a_torch_without_fx(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import torch.ao.quantization as quantization

    monkeypatch.delattr(quantization, "quantize_fx", raising=False)
    monkeypatch.setitem(sys.modules, "torch.ao.quantization.quantize_fx", None)
    with pytest.raises(CompressionError, match=rf"torch {torch.__version__.split('+')[0]}.*--torch-method pt2e"):
        module_under_test.quantize_torch(lively("mide_net"), CONFIG, tensors(1), TorchQuantizeConfig("fx"), quiet)


class Gate(torch.nn.Module):
    """Doubles what is bright on the whole: which way it goes is not known before it has a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.conv(images)
        return 2 * features if features.mean() > 0 else features


class Small(SegmentationNetwork):
    """One part and a classifier."""

    name = "small"
    stride = 1
    class_parameter = ("classifier.weight", 0)

    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__(20)
        self.part = part
        self.classifier = torch.nn.Conv2d(4, 20, 1)

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.part(images))
        return logits


@pytest.mark.parametrize(
    ("method", "words", "instead"),
    [
        ("pt2e", "fails to export it at module 'part' .Gate.: .*data-dependent expression", "fx"),
        ("fx", "fails to trace it at module 'part' .Gate.: .*control flow", "pt2e"),
    ],
)
def test_a_network_that_branches_on_data_is_named(
    method: str, words: str, instead: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CompressionError) as caught:
        quantize_torch(Small(Gate()), CONFIG, tensors(1), TorchQuantizeConfig(method), quiet)
    said = str(caught.value)
    assert re.search(rf"cannot quantize small by {method}, it {words}", said)
    assert said.endswith(f"; use --torch-method {instead} or --backend onnxruntime")  # float parts are traced as well
    assert "\n" not in said and len(said) < 400
    written = capfd.readouterr()
    assert "def forward" not in written.err + written.out  # torch's own report


def test_what_pt2e_cannot_convert_is_named() -> None:
    part = torch.nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)
    part.weight.fill_(float("nan"))  # of a training that diverged: such values have no range
    with pytest.raises(CompressionError) as caught:
        quantize_torch(Small(part), CONFIG, tensors(1), TorchQuantizeConfig("pt2e"), quiet)
    said = str(caught.value)
    assert re.search(
        r"cannot quantize small by pt2e, it fails to convert it to int8 at tensor 'part\.weight': .*nan", said
    )
    assert said.endswith(
        "leave that part in float with --keep-float NAME, or use --torch-method fx or --backend onnxruntime"
    )
    assert "\n" not in said and len(said) < 450


class ScaledByData(torch.nn.Module):
    """A convolution whose weights are computed from the frame."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, 3, 3, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(images, self.weight * images.mean(), padding=1)


def test_what_fx_cannot_round_is_named() -> None:
    with pytest.raises(CompressionError, match=r"by fx, it fails to round the weights at node '\w+' \(quantized_deco"):
        quantize_torch(Small(ScaledByData()), CONFIG, tensors(1), TorchQuantizeConfig("fx"), quiet)


@pytest.mark.parametrize("method", ["pt2e", "fx"])
def test_layers_that_do_not_fit_are_named(method: str) -> None:
    wrong = torch.nn.Sequential(torch.nn.Conv2d(5, 4, 3, padding=1))
    with pytest.raises(CompressionError, match=r"at module 'part\.0' \(Conv2d\): RuntimeError: .*5 channels"):
        quantize_torch(Small(wrong), CONFIG, tensors(1), TorchQuantizeConfig(method), quiet)


def test_options_that_errors_name_are_those_of_the_command() -> None:
    from anomseg_ros.commands.quantize import _parser

    known = _parser().format_help()
    assert all(option in known for option in ("--torch-method {pt2e,fx}", "--backend {onnxruntime", "--keep-float"))


def test_a_program_that_cannot_be_written(tmp_path: Path) -> None:
    made = quantize_torch(lively("mide_net"), CONFIG, tensors(1), TorchQuantizeConfig("fx"), quiet)
    with pytest.raises(CompressionError, match=r"cannot write .*nowhere/model\.pt2: "):
        save_program(made.program, tmp_path / "nowhere" / "model.pt2")
