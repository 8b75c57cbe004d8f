from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fitted_networks import BUNDLE_SCORES
from onnx import TensorProto, helper

from anomseg_ros.backends.graph_outputs import keep_outputs
from anomseg_ros.errors import BackendError


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> bytes:
    return (tiny_bundle / "model.onnx").read_bytes()


def test_keeping_all_outputs_changes_nothing(model: bytes) -> None:
    whole = onnx.load_from_string(model)
    assert onnx.load_from_string(keep_outputs(model, {output.name for output in whole.graph.output})) == whole


@pytest.mark.parametrize("name", ["labels", *BUNDLE_SCORES])
def test_keeping_one_output_removes_nodes_but_not_values(model: bytes, name: str) -> None:
    cut = keep_outputs(model, {name})
    parsed = onnx.load_from_string(cut)
    onnx.checker.check_model(parsed)
    assert [output.name for output in parsed.graph.output] == [name]
    assert len(parsed.graph.node) < len(onnx.load_from_string(model).graph.node)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 128, 3), dtype=np.uint8)
    (alone,) = ort.InferenceSession(cut).run([name], {"image": pixels})
    (among_all,) = ort.InferenceSession(model).run([name], {"image": pixels})
    assert (alone == among_all).all()


def test_inputs_of_a_nested_graph_are_kept() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["outer"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2])],
    )
    nodes = [
        helper.make_node("Neg", ["x"], ["outer"]),
        helper.make_node("Abs", ["x"], ["unwanted"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("unwanted", "y")]
    graph = helper.make_graph(nodes, "nested", inputs, outputs)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    cut = onnx.load_from_string(keep_outputs(whole.SerializeToString(), ["y"]))
    assert [node.op_type for node in cut.graph.node] == ["Neg", "If"]


@pytest.mark.parametrize("data", [b"not an ONNX file at all", b"\x3a\xff\xff\xff\x7f", b"\x80", b"\x0f"])
def test_invalid_onnx_data_is_refused(data: bytes) -> None:
    with pytest.raises(BackendError, match="is not an ONNX file"):
        keep_outputs(data, ["labels"])


def test_deeply_nested_graph_is_refused() -> None:
    content = b""
    for _ in range(3000):
        content = record(5, record(6, record(1, content))) + record(2, b"labels")
    with pytest.raises(BackendError, match="not an ONNX file"):
        keep_outputs(record(7, record(1, content) + record(12, record(1, b"labels"))), {"labels"})


def record(number: int, payload: bytes) -> bytes:
    """Return a protocol buffer field with bytes."""
    size, length = len(payload), []
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + payload
