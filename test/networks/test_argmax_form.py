"""The two forms of the labels agree bit for bit, ties included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from anomseg_ros.core.preprocess import noise_frames
from anomseg_ros.export import ExportConfig, write_graph
from anomseg_ros.networks import build_network
from anomseg_ros.networks.argmax_form import ARGMAX, COMPARE, with_comparisons


def model(nodes: str, shape: str = "1,5,16,16") -> onnx.ModelProto:
    """Return a model of float logits (1, 5, 16, 16)."""
    text = f'<ir_version: 9, opset_import: ["" : 18]> g (float[{shape}] x) => (y) {{ {nodes} }}'
    return onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True)


def run(graph: onnx.ModelProto, logits: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(graph, full_check=True)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": logits})[0])


def operators(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


@pytest.mark.parametrize(
    "nodes",
    [
        "l = Identity(x) a = ArgMax<axis = 1, keepdims = 0>(l) y = Cast<to = 6>(a)",
        "l = Identity(x) y = ArgMax<axis = 1, keepdims = 0>(l)",  # an output of its own, in int64
        "l = Identity(x) a = ArgMax<axis = 1, keepdims = 0>(l) b = Add(a, a) y = Cast<to = 6>(b)",
    ],
)
def test_labels_are_equal_where_logits_tie(nodes: str) -> None:
    logits = np.random.default_rng(0).integers(0, 3, (1, 5, 16, 16)).astype(np.float32)  # five classes, three values
    before = model(nodes)
    after = with_comparisons(before)
    assert "ArgMax" not in operators(after) and operators(after).count("Greater") == 4
    expected, got = run(before, logits), run(after, logits)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "nodes",
    [
        "l = Identity(x) y = ArgMax<axis = 1>(l)",  # keeps the axis
        "l = Identity(x) y = ArgMax<axis = 3, keepdims = 0>(l)",
        "l = Identity(x) y = ArgMax<axis = 1, keepdims = 0, select_last_index = 1>(l)",
    ],
)
def test_other_argmaxes_stay(nodes: str) -> None:
    before = model(nodes)
    assert with_comparisons(before) is before


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_exported_forms_have_equal_outputs(target: str, tmp_path: Path) -> None:
    network = build_network("mide_net", 20).eval()
    outputs = {}
    for form in (ARGMAX, COMPARE):
        config = ExportConfig("m", 20, 19, height_px=64, width_px=128, target=target, argmax=form)
        path = write_graph(network, config, tmp_path)
        assert ("ArgMax" in operators(onnx.load(path))) == (form == ARGMAX)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        frame = noise_frames(64, 128)[1][np.newaxis]
        outputs[form] = session.run(None, {"image": frame})
    for one, two in zip(outputs[ARGMAX], outputs[COMPARE], strict=True):
        np.testing.assert_array_equal(one, two)
