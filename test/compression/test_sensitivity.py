"""The layers that stay in float: the costliest ones, and as few as are enough."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto

from anomseg_ros.compression.graph import Graph
from anomseg_ros.compression.half import in_half_precision, layers_in_half, rounded_like
from anomseg_ros.compression.ranges import plain_session
from anomseg_ros.compression.sensitivity import Goal, checked_layers, find_float_layers
from anomseg_ros.core.progress import no_progress
from anomseg_ros.errors import CompressionError

LAYERS = ["first", "offset", "classes"]


def weights(name: str, rows: int, columns: int, seed: int) -> str:
    values = np.random.default_rng(seed).uniform(-0.5, 0.5, rows * columns)
    return f"float[{rows},{columns},1,1] {name} = {{{', '.join(f'{value:.4f}' for value in values)}}}"


def model() -> onnx.ModelProto:
    """Return a graph whose layer `offset` adds 3000 to its values. Float16 has steps of two there."""
    three_thousand = "float[4] up = {3000, 3000, 3000, 3000}"
    constants = [weights("w1", 4, 3, 0), weights("w2", 4, 4, 1), weights("w3", 5, 4, 2), three_thousand]
    constants += ["float down = {3000}", "float scale = {255}", "int64[1] axes = {1}"]
    parsed = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (uint8[1,16,16,3] image) '
        f"=> (uint8[1,16,16] labels, float[1,16,16] score) <{', '.join(constants)}> {{"
        "f = Cast<to = 1>(image) d = Div(f, scale) x = Transpose<perm = [0, 3, 1, 2]>(d) a = Conv(x, w1) "
        "b = Conv(a, w2, up) c = Sub(b, down) z = Conv(c, w3) i = ArgMax<axis = 1, keepdims = 0>(z) "
        "labels = Cast<to = 2>(i) score = ReduceMax<keepdims = 0>(z, axes) }"
    )
    for node, name in zip([node for node in parsed.graph.node if node.op_type == "Conv"], LAYERS, strict=True):
        node.name = name
    return onnx.shape_inference.infer_shapes(parsed, strict_mode=True)


@pytest.fixture
def frames() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8) for _ in range(5)]


def outputs(graph: onnx.ModelProto, frame: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(array) for array in plain_session(graph).run(["labels", "score"], {"image": frame})]


def test_the_layer_that_loses_most_stays_in_float(frames: list[np.ndarray]) -> None:
    graph = model()
    assert layers_in_half(graph, "fp16") == LAYERS
    build = partial(rounded_like, graph, "fp16")
    found, noise = find_float_layers(build, LAYERS, plain_session(graph), frames, Goal(0.99, 0.99, 3), no_progress)
    assert found == ("offset",) and max(noise, key=lambda name: noise[name]) == "offset"
    for kept, least in (((), 0.0), (found, 0.99)):
        agreement = (outputs(graph, frames[4])[0] == outputs(build(kept), frames[4])[0]).mean()
        assert least <= agreement <= (0.9 if not kept else 1)


def test_nothing_stays_in_float_where_nothing_has_to(frames: list[np.ndarray]) -> None:
    graph = model()
    build = partial(rounded_like, graph, "fp16", ["offset"])  # whatever the search asks for
    goal = Goal(0.99, 0.99, 3)
    assert find_float_layers(lambda _: build(), LAYERS, plain_session(graph), frames, goal, no_progress) == ((), {})


def test_ranks_of_scores_are_part_of_the_goal(frames: list[np.ndarray]) -> None:
    graph = model()
    build = partial(rounded_like, graph, "fp16")
    found, _ = find_float_layers(build, LAYERS, plain_session(graph), frames, Goal(0, 0.999, 3), no_progress)
    assert "offset" in found


def test_what_is_tried_first_does_not_count(frames: list[np.ndarray]) -> None:
    graph = model()
    build = partial(rounded_like, graph, "fp16")
    found, noise = find_float_layers(
        build, LAYERS[::2], plain_session(graph), frames, Goal(0.99, 0.99, 0), no_progress, first=["offset"]
    )
    assert found == ("offset",) and noise == {}


def test_typed_and_rounded_graphs_leave_the_same_layers(frames: list[np.ndarray]) -> None:
    graph = model()
    typed = in_half_precision(graph, "fp16", ["offset"])
    kinds = {node.name: Graph(typed).constant(node.input[1]).dtype for node in typed.graph.node if node.name in LAYERS}
    assert kinds == {"first": np.float16, "offset": np.float32, "classes": np.float16}
    rounded = rounded_like(graph, "fp16", ["offset"])
    for one, two in zip(outputs(typed, frames[0]), outputs(rounded, frames[0]), strict=True):
        np.testing.assert_allclose(one.astype(np.float32), two.astype(np.float32), atol=2e-3)
    assert not any(tensor.data_type == TensorProto.FLOAT16 for tensor in rounded.graph.initializer)


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(CompressionError, match="no layer 'ofset'; the closest of 3: offset"):
        checked_layers(["ofset"], LAYERS)
