"""Parameters and multiply-adds of a graph, compared with those of the torch network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from anomseg_ros.compression.cost import graph_cost
from anomseg_ros.core.bundle import Provenance, load_bundle
from anomseg_ros.errors import CompressionError
from anomseg_ros.export import ExportConfig, export_network
from anomseg_ros.networks import build_network
from anomseg_ros.networks.counting import count_multiply_adds, count_parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mide_net", pytest.param("enet", marks=pytest.mark.slow)])
def test_counts_of_the_graph_equal_those_of_the_network(name: str, tmp_path: Path) -> None:
    network = build_network(name, 20).eval()
    config = ExportConfig(name, 20, 19, height_px=64, width_px=64)
    bundle, _ = export_network(network, name, config, tmp_path / "b", Provenance())
    cost = graph_cost(bundle.graph_path)
    expected = count_multiply_adds(network, 64, 64)
    # ENet's 3x3 classifier becomes a 2x2 convolution for four phases, with some zeros.
    assert cost.multiply_adds == expected or (name == "enet" and cost.multiply_adds < 1.1 * expected)
    assert cost.effective_multiply_adds == pytest.approx(expected, rel=1e-5)  # a random weight may be 0
    # Export folds normalisations into convolutions: a scale and a shift become a bias.
    assert 0.96 * count_parameters(network) < cost.nonzero_parameters <= 1.001 * count_parameters(network)


def write_model(
    path: Path, nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], shape: list[int | str]
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_grouped_strided_and_transposed_convolutions_are_counted(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["a", "v", "b"], ["y"], strides=[2, 2]),
    ]
    tensors = {
        "w": np.ones((6, 2, 3, 3), np.float32),
        "v": np.ones((6, 5, 2, 2), np.float32),
        "b": np.ones(5, np.float32),
    }
    cost = graph_cost(write_model(tmp_path / "m.onnx", nodes, tensors, [1, 4, 8, 10]))
    assert cost.multiply_adds == (6 * 2 * 9) * (4 * 5) + (6 * 5 * 4) * (4 * 5)
    assert cost.parameters == 6 * 2 * 9 + 6 * 5 * 4 + 5


def test_zeros_do_not_count_as_effective(tmp_path: Path) -> None:
    weight = np.ones((4, 3, 1, 1), np.float32)
    weight[:3] = 0
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    cost = graph_cost(write_model(tmp_path / "m.onnx", nodes, {"w": weight}, [1, 3, 2, 2]))
    assert (cost.parameters, cost.nonzero_parameters) == (12, 3)
    assert (cost.multiply_adds, cost.effective_multiply_adds) == (48, 12)


def test_int8_weights_equal_to_the_zero_point_count_as_zero(tmp_path: Path) -> None:
    weight = np.array([[5, 5, 7], [9, 9, 9]], np.int8).reshape(2, 3, 1, 1)
    tensors: dict[str, np.ndarray] = {"q": weight, "s": np.ones(2, np.float32), "z": np.array([5, 9], np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["t", "m"], ["y"]),
    ]
    tensors["m"] = np.full((2, 7), 0.3, np.float32)
    cost = graph_cost(write_model(tmp_path / "m.onnx", nodes, tensors, [1, 3, 4, 4]))
    assert (cost.parameters, cost.nonzero_parameters) == (6 + 14, 1 + 14)
    assert cost.multiply_adds == 6 * 16 + 14 * 16
    assert cost.effective_multiply_adds == 1 * 16 + 14 * 16


def test_interpolations_do_not_count(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["m", "x"], ["a"]), helper.make_node("MatMul", ["a", "n"], ["y"])]
    shares = np.array([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]], np.float32)
    cost = graph_cost(write_model(tmp_path / "m.onnx", nodes, {"m": shares, "n": shares.T}, [1, 2, 3, 3]))
    assert (cost.parameters, cost.multiply_adds) == (0, 0)
    # With the factors exchanged, these are not interpolations.
    other = {"m": np.ascontiguousarray(shares.T), "n": np.ascontiguousarray(shares)}
    cost = graph_cost(write_model(tmp_path / "m.onnx", nodes, other, [1, 2, 2, 2]))
    assert (cost.parameters, cost.multiply_adds) == (12, 2 * (3 * 2 * 2) + 2 * (3 * 2 * 3))


def test_graphs_that_cannot_be_counted_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff no graph")
    with pytest.raises(CompressionError, match=r"bad\.onnx"):
        graph_cost(tmp_path / "bad.onnx")
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    for height in (-1, "height"):
        path = write_model(tmp_path / "m.onnx", nodes, {"w": np.ones((1, 3, 1, 1), np.float32)}, [1, 3, height, 4])
        with pytest.raises(CompressionError, match="fixed size"):
            graph_cost(path)


def test_counting_imports_no_torch(tiny_bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from anomseg_ros.compression.cost import graph_cost; "
        f"graph_cost(Path({str(load_bundle(tiny_bundle).graph_path)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
