"""Half precision in the graph: how close it is to float32, its types, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from half_requests import request_of
from onnx import TensorProto, helper, numpy_helper
from small_bundles import small_bundle, street_frames

from anomseg_ros.cli import main as anomseg
from anomseg_ros.compression.drift import TOLERANCES, Guard, Tolerance, measure_drift
from anomseg_ros.compression.half import HALF, in_half_precision, layers_in_half, rounded_like
from anomseg_ros.compression.half_bundle import convert_bundle
from anomseg_ros.compression.ranges import plain_session
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, load_bundle, save_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import AnomsegError, BackendError, CompressionError
from anomseg_ros.export import ExportConfig, export_checkpoint

TRAINED = {
    "enet": ("enet-camvid/checkpoint.safetensors", 12, 11, "camvid"),
    "erfnet": ("erfnet_void20_dequantized.safetensors", 20, 19, "cityscapes"),
    "bisenet_lite": ("bisenet_lite-world/checkpoint.safetensors", 20, 19, "cityscapes"),
    "mide_net": ("midenet_distilled.pth", 20, 19, "cityscapes"),
}
"""Network -> its checkpoint (of a shipped bundle, or a published one), outputs, void class and labels."""


def trained_bundle(name: str, folder: Path, request: pytest.FixtureRequest) -> Bundle:
    """Return the float bundle of a trained network for GPUs at 128x256."""
    file, classes, void, labels = TRAINED[name]
    shipped, _, inner = file.partition("/")
    checkpoint = find_bundle(shipped) / inner if inner else request.getfixturevalue("shared_weights") / file
    config = ExportConfig(name, classes, void, labels, height_px=128, width_px=256, target="gpu")
    return export_checkpoint(name, checkpoint, config, folder / name)[0]


def rounded_bundle(bundle: Bundle, precision: str, folder: Path) -> Bundle:
    path = folder / f"{precision}.onnx"
    onnx.save(rounded_like(onnx.load(bundle.graph_path), precision), path)
    return save_bundle(bundle.contract, {GRAPH_FILE: path}, folder / precision)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_trained_networks_stay_within_the_tolerances(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bundle = trained_bundle(name, tmp_path, request)
    for precision in HALF:
        tolerance = TOLERANCES[precision]
        drift = measure_drift(bundle, rounded_bundle(bundle, precision, tmp_path), street_frames(4))
        assert not replace(drift, tolerance=tolerance).excesses(), precision


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bisenet_v1", "bisenet_v2"])
def test_float16_keeps_the_ranks_of_random_networks(name: str, tmp_path: Path) -> None:
    """No trained weights of these are at hand. Labels of random ones are near ties, so the scores decide."""
    bundle = small_bundle(name, tmp_path)
    drift = measure_drift(bundle, rounded_bundle(bundle, "fp16", tmp_path), street_frames(4))
    assert drift.label_agreement > 0.99 and min(one.rank_correlation for one in drift.scores.values()) > 0.995


def test_typed_graph_computes_what_the_rounding_one_does(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / GRAPH_FILE)
    typed, rounded = in_half_precision(model, "fp16"), rounded_like(model, "fp16")
    onnx.checker.check_model(typed, full_check=True)
    frame = {"image": np.random.default_rng(0).integers(0, 256, (1, 64, 128, 3), dtype=np.uint8)}
    names = [output.name for output in model.graph.output]
    results = [dict(zip(names, plain_session(graph).run(names, frame), strict=True)) for graph in (typed, rounded)]
    assert (results[0]["labels"] == results[1]["labels"]).mean() > 0.99
    np.testing.assert_allclose(results[0]["void"], results[1]["void"], atol=1e-3)


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_weights_are_half_and_outputs_are_not(precision: str, kind: int, tiny_bundle: Path) -> None:
    typed = in_half_precision(onnx.load(tiny_bundle / GRAPH_FILE), precision)
    weights = [tensor for tensor in typed.graph.initializer if len(tensor.dims) == 4]
    assert weights and {tensor.data_type for tensor in weights} == {kind}
    outputs = {output.name: output.type.tensor_type.elem_type for output in typed.graph.output}
    assert outputs.pop("labels") == TensorProto.UINT8 and set(outputs.values()) == {TensorProto.FLOAT}


def one_convolution(weight: float) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in "xy"]
    kernel = numpy_helper.from_array(np.full((1, 1, 1, 1), weight, np.float32), "w")
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [kernel])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_weights_beyond_float16_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"'w' holds 1e\+05, more than fp16 can; use bf16"):
        in_half_precision(one_convolution(1e5), "fp16")
    in_half_precision(one_convolution(1e5), "bf16")


@pytest.mark.slow
def test_bundle_is_written_with_its_drift(tiny_bundle: Path, tmp_path: Path) -> None:
    accept = Guard(accept_drift=True)  # the weights are random
    bundle = convert_bundle(request_of(tiny_bundle, tmp_path, precision="bf16", guard=accept))
    assert bundle.contract.precision == "bf16" and bundle.contract.compression["drift"]["frames"] == 2
    assert bundle.contract.compression["settings"]["float_layers"] == []
    assert bundle.contract.compression["method"] == "bf16, typed graph"
    with pytest.raises(CompressionError, match="is bf16 already; give the float bundle"):
        convert_bundle(request_of(bundle.directory, tmp_path, output=tmp_path / "again"))


@pytest.mark.slow
def test_what_cannot_be_converted_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    strict = Guard(Tolerance(rank_correlation=1.0))
    with pytest.raises(CompressionError, match="Nothing was written; use the other type of half precision"):
        convert_bundle(request_of(tiny_bundle, tmp_path, precision="bf16", guard=strict))
    with pytest.raises(AnomsegError, match="unknown precision 'fp8'"):
        convert_bundle(request_of(tiny_bundle, tmp_path, precision="fp8"))
    assert not (tmp_path / "half").exists()


def test_command_converts_a_bundle(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request_of(tiny_bundle, tmp_path)
    words = ["convert", str(tiny_bundle), "--frames", str(tmp_path / "frames"), "--output", str(tmp_path / "half")]
    assert anomseg([*words, "--accept-drift"]) == 0
    told = capsys.readouterr()
    assert "fp16, typed graph" in told.out and "has the form for a CPU" in told.err
    assert load_bundle(tmp_path / "half").contract.precision == "fp16"


@pytest.mark.slow
def test_named_layers_stay_in_float32(tiny_bundle: Path, tmp_path: Path) -> None:
    layers = layers_in_half(onnx.load(tiny_bundle / GRAPH_FILE), "fp16")
    request = request_of(tiny_bundle, tmp_path, keep_float=(layers[1],), guard=Guard(accept_drift=True))
    bundle = convert_bundle(request)
    record = bundle.contract.compression
    assert record["method"] == f"fp16, typed graph, 1 of {len(layers)} layers in float32"
    assert record["settings"]["float_layers"] == [layers[1]]
    kept = {node.name: node for node in onnx.load(bundle.graph_path).graph.node}[layers[1]]
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(bundle.graph_path).graph.initializer}
    assert kinds[kept.input[1]] == TensorProto.FLOAT
    with pytest.raises(CompressionError, match="no layer 'nothing'"):
        convert_bundle(request_of(tiny_bundle, tmp_path, keep_float=("nothing",), output=tmp_path / "other"))


def test_bfloat16_on_a_cpu_is_an_error_that_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    from anomseg_ros.backends import open_detector

    bundle = convert_bundle(request_of(tiny_bundle, tmp_path, precision="bf16", guard=Guard(accept_drift=True)))
    with pytest.raises(BackendError, match="use the backend tensorrt, or a bundle in fp16 or fp32"):
        open_detector(bundle)
