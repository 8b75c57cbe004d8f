"""Half precision in programs of torch: types, folded normalisations, what is refused, and whole bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fitted_networks import float_program
from small_bundles import street_frames
from torch import nn

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.torch_graph import load_program
from anomseg_ros.compression.drift import Guard, Tolerance
from anomseg_ros.compression.half_bundle import HalfRequest, convert_bundle
from anomseg_ros.compression.half_torch import program_in_half_precision
from anomseg_ros.compression.reexport import export_config_of
from anomseg_ros.core.bundle import GRAPH_FILE, TORCH_FILE, Bundle, load_bundle, save_bundle
from anomseg_ros.errors import CompressionError
from anomseg_ros.networks.torch_program import program_of


class Layers(nn.Module):
    """Normalisations after convolutions of both kinds and after a sum, between pixels and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.enlarge = nn.ConvTranspose2d(4, 5, 2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (4, 4, 5))
        for norm in self.norms:
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias)
            norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """image: uint8 (1, 8, 8, 3)."""
        values = self.norms[0](self.first(image.permute(0, 3, 1, 2).float() / 255.0)).relu()
        values = self.norms[1](values + self.second(values))
        logits = self.norms[2](self.enlarge(values))
        return logits.argmax(1), logits.softmax(1)[:, 0]


def layers() -> Layers:
    torch.manual_seed(0)
    return Layers().eval()


IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize(("precision", "dtype", "off"), [("fp16", torch.float16, 3e-3), ("bf16", torch.bfloat16, 3e-2)])
def test_network_is_half_and_head_is_not(precision: str, dtype: torch.dtype, off: float) -> None:
    program = program_of(layers(), IMAGE)
    expected = program.module()(IMAGE)
    half = program_in_half_precision(program, precision)
    values = {node.name: node.meta.get("val") for node in half.graph.nodes}
    types = {name: value.dtype for name, value in values.items() if isinstance(value, torch.Tensor)}
    convolutions = [kind for name, kind in types.items() if name.startswith("conv")]
    assert len(convolutions) == 3 and set(convolutions) == {dtype}
    assert types["softmax"] == types["div"] == torch.float32  # the head, and the pixels
    norms = [node for node in half.graph.nodes if "batch_norm" in str(node.target)]
    assert len(norms) == 1  # the one after the sum
    weights = {tuple(tensor.shape): tensor.dtype for tensor in half.state_dict.values() if tensor.ndim == 4}
    assert set(weights.values()) == {dtype} and len(weights) == 3
    got = half.module()(IMAGE)
    assert (got[0] == expected[0]).float().mean() > 0.95
    torch.testing.assert_close(got[1], expected[1], atol=off, rtol=0)
    assert not torch.equal(got[1], expected[1])


def test_weights_beyond_float16_are_refused() -> None:
    module = layers()
    nn.init.constant_(module.second.weight, 1e5)
    with pytest.raises(CompressionError, match=r"constant .* holds 1e\+05, more than fp16 can; use bf16"):
        program_in_half_precision(program_of(module, IMAGE), "fp16")
    program_in_half_precision(program_of(module, IMAGE), "bf16")


@pytest.fixture(scope="module")
def both(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with its program beside its graph."""
    contract, folder = load_bundle(tiny_bundle).contract, tmp_path_factory.mktemp("both")
    program = float_program(export_config_of(contract), folder / TORCH_FILE)
    return save_bundle(contract, {GRAPH_FILE: tiny_bundle / GRAPH_FILE, TORCH_FILE: program}, folder / "bundle")


def request_of(bundle: Bundle, folder: Path, **given: Any) -> HalfRequest:
    for index, frame in enumerate(street_frames(2)):
        (folder / "frames").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "frames" / f"{index}.png"), frame)
    return HalfRequest(bundle=bundle, output=folder / "half", frames=(str(folder / "frames"),), **given)


@pytest.mark.slow
def test_program_is_converted_with_the_graph(both: Bundle, tmp_path: Path) -> None:
    accept = Guard(accept_drift=True)  # the weights are random
    bundle = convert_bundle(request_of(both, tmp_path, precision="bf16", guard=accept))
    assert set(bundle.contract.files) == {GRAPH_FILE, TORCH_FILE} and bundle.contract.precision == "bf16"
    drift = bundle.contract.compression["settings"]["torch_program"]
    assert drift["label_agreement"] > 0.9 and set(drift["scores"]) == set(bundle.contract.score_names)
    weights = load_program(bundle.directory / TORCH_FILE).state_dict.values()
    assert {tensor.dtype for tensor in weights if tensor.ndim == 4} == {torch.bfloat16}
    detector = open_detector(bundle, "torch", BackendOptions(provider="eager"))
    assert detector.detect(street_frames(1)[0]).labels is not None
    strict = Guard(Tolerance(label_agreement=0.0, rank_correlation=1.0))
    with pytest.raises(CompressionError, match="Nothing was written; use the other type of half precision"):
        convert_bundle(request_of(both, tmp_path, precision="bf16", guard=strict, overwrite=True))
