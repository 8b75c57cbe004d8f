"""Rewriting, equalizing, rounding and quantizing a detector's graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from small_bundles import small_bundle, street_frames

from anomseg_ros.compression import quantize_onnx
from anomseg_ros.compression.equalize import channel_values, equalize
from anomseg_ros.compression.graph import Graph, attributes, name_nodes, output_layers
from anomseg_ros.compression.quantize_onnx import (
    QuantizeConfig,
    layer_names,
    prepare,
    quantize,
    sum_names,
)
from anomseg_ros.compression.ranges import (
    RangeConfig,
    channel_magnitudes,
    find_ranges,
    least_error_range,
    plain_session,
)
from anomseg_ros.compression.rewrites import (
    fold_and_replace,
    multiply_instead_of_select,
    replace_transposed_convolutions,
    widen_grouped_inputs,
)
from anomseg_ros.compression.rounding import input_moments, round_weights
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.preprocess import tensor_from_frame
from anomseg_ros.core.progress import no_progress
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import CompressionError, ConfigError

pytestmark = pytest.mark.slow

NETWORKS = ("erfnet", "enet", "mide_net", "bisenet_v1", "bisenet_v2")
NONE = QuantizeConfig(keep_float="none")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    """The float graph of each network."""
    folder = tmp_path_factory.mktemp("float")
    return {name: onnx.load(small_bundle(name, folder).graph_path) for name in NETWORKS}


@pytest.fixture(scope="module")
def tensors() -> list[np.ndarray]:
    """Input tensors of a street, uint8 (1, 64, 128, 3)."""
    return [frame[np.newaxis] for frame in street_frames(8)]


def outputs(model: onnx.ModelProto, tensor: np.ndarray) -> dict[str, np.ndarray]:
    session = plain_session(model)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": tensor}), strict=True))


def agreement(one: onnx.ModelProto, two: onnx.ModelProto, tensors: list[np.ndarray]) -> float:
    same = [outputs(one, t)["labels"] == outputs(two, t)["labels"] for t in tensors]
    return float(np.mean(same))


def share_off(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    """Return the share of the pixels whose largest logit is another one."""
    tolerance = 1e-3 * np.ptp(one["max_logit"])
    return float((~np.isclose(two["max_logit"], one["max_logit"], rtol=1e-3, atol=tolerance)).mean())


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("name", NETWORKS)
def test_rewritten_graph_gives_equal_outputs(
    name: str, models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]
) -> None:
    graph = prepare(models[name], tensors[:2], QuantizeConfig(equalize=False), no_progress)
    rewritten = graph.finish()
    assert not {"ConvTranspose", "BatchNormalization"} & operators(rewritten)
    before, after = outputs(models[name], tensors[3]), outputs(rewritten, tensors[3])
    assert (before["labels"] == after["labels"]).mean() > 0.999
    for score in ("void", "max_logit"):
        np.testing.assert_allclose(after[score], before[score], rtol=1e-3, atol=1e-4 * np.ptp(before[score]))


def test_linear_layers_of_a_transformer_are_layers(tmp_path: Path) -> None:
    """Of each block qkv, proj, fc1 and fc2; patches, and the convolutions of upscaling but the last one."""
    graph = Graph(onnx.load(small_bundle("eomt", tmp_path).graph_path))
    name_nodes(graph)
    kinds = Counter(node.op_type for node in graph.nodes if node.name in layer_names(graph))
    assert kinds == {"MatMul": 16, "Conv": 2}


def test_channels_that_become_tokens_are_not_scaled(tensors: list[np.ndarray], tmp_path: Path) -> None:
    model = onnx.load(small_bundle("eomt", tmp_path).graph_path)
    made = quantize(model, tensors[:2], NONE, no_progress)  # quantize() compares the rewritten graph
    assert {"QuantizeLinear", "MatMul"} <= operators(made.model)
    assert agreement(model, made.model, tensors[2:4]) > 0.9  # every layer is int8


@pytest.mark.parametrize("name", NETWORKS)
def test_equalizing_changes_ranges_but_not_the_outputs(
    name: str, models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]
) -> None:
    graph = Graph(models[name])
    fold_and_replace(graph)
    names = channel_values(graph)
    before = channel_magnitudes(graph, names, tensors[:2], no_progress)
    assert equalize(graph, before) > 5
    graph.infer()
    after = channel_magnitudes(
        graph, [value for value in channel_values(graph) if value in before], tensors[:2], no_progress
    )
    spread = [np.ptp(np.log(magnitudes[magnitudes > 0])) for magnitudes in before.values() if (magnitudes > 0).any()]
    narrower = [np.ptp(np.log(magnitudes[magnitudes > 0])) for magnitudes in after.values() if (magnitudes > 0).any()]
    assert np.mean(narrower) < 0.95 * np.mean(spread)
    equalized = graph.finish()
    shares = [share_off(outputs(models[name], one), outputs(equalized, one)) for one in tensors]
    # Max-unpooling takes another place where values are equal up to rounding, which few frames have.
    assert np.median(shares) == 0 if name == "enet" else max(shares) == 0, shares


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_transposed_convolutions_are_replaced_by_equal_convolutions(kernel: int) -> None:
    generator = np.random.default_rng(kernel)
    weight = generator.standard_normal((3, 5, kernel, kernel)).astype(np.float32)
    bias = generator.standard_normal(5).astype(np.float32)
    begin = (kernel - 1) // 2
    # For an output of twice the input's size: 2 (n - 1) - pads + kernel = 2 n.
    end = kernel - 2 - begin
    extra = max(0, -end)
    node = helper.make_node(
        "ConvTranspose",
        ["x", "w", "b"],
        ["y"],
        strides=[2, 2],
        pads=[begin, begin, max(0, end), max(0, end)],
        output_padding=[extra, extra],
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 12, 14])],
        [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    changed = Graph(model)
    replace_transposed_convolutions(changed)
    rewritten = changed.finish()
    assert "ConvTranspose" not in operators(rewritten)
    x = generator.standard_normal((1, 3, 6, 7)).astype(np.float32)
    expected, actual = (plain_session(each).run(None, {"x": x})[0] for each in (model, rewritten))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_unpooling_is_replaced_by_equal_multiplications(
    models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]
) -> None:
    graph = Graph(models["enet"])
    before = sum(node.op_type == "Where" for node in graph.nodes)
    multiply_instead_of_select(graph)
    changed = graph.finish()
    # The selection of void labels remains, because it is not float32.
    assert before - sum(node.op_type == "Where" for node in changed.graph.node) == 8
    expected, after = outputs(models["enet"], tensors[3]), outputs(changed, tensors[3])
    for name, values in expected.items():
        np.testing.assert_array_equal(after[name], values)


def test_graph_that_computes_something_else_is_refused(
    models: dict[str, onnx.ModelProto], tensors: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_bias(graph: Graph) -> None:
        node = next(node for node in graph.nodes if node.op_type == "Conv" and len(node.input) > 2)
        node.input[2] = graph.add_constant(2 * graph.constant(node.input[2]) + 1, "bias")  # type: ignore[operator]

    monkeypatch.setattr(quantize_onnx, "multiply_instead_of_select", change_bias)
    with pytest.raises(CompressionError, match=r"changed in \d+\.\d% of the pixels when the graph was rewritten"):
        quantize(models["bisenet_v1"], tensors[:3], NONE, no_progress)


def test_grouped_convolutions_are_widened_to_depthwise(
    models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]
) -> None:
    graph = Graph(models["bisenet_v2"])
    widen_grouped_inputs(graph)
    changed = graph.finish()
    convolutions = [node for node in graph.nodes if node.op_type == "Conv"]
    weights = [(attributes(node).get("group", 1), graph.constant(node.input[1])) for node in convolutions]
    assert all(weight is not None and (group == 1 or len(weight) == group) for group, weight in weights)
    before, after = outputs(models["bisenet_v2"], tensors[3]), outputs(changed, tensors[3])
    np.testing.assert_allclose(after["max_logit"], before["max_logit"], atol=1e-5 * np.ptp(before["max_logit"]))


@pytest.mark.parametrize(("given", "largest"), [({}, 64), ({"weight_bits": 8}, 127), ({"compensate": False}, 64)])
def test_weights_have_seven_bits_unless_told(
    given: dict[str, Any], largest: int, models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]
) -> None:
    config = QuantizeConfig(keep_float="none", **given)
    graph = Graph(quantize(models["mide_net"], tensors[:2], config, no_progress).model)
    kernels = [graph.producer(node.input[1]) for node in graph.nodes if node.op_type == "Conv"]
    levels = [graph.constant(kernel.input[0]) for kernel in kernels if kernel is not None]
    most = max(int(np.abs(level.astype(int)).max()) for level in levels if level is not None)
    assert largest - 1 <= most <= largest
    assert QuantizeConfig(target="tensorrt").bits == 8
    with pytest.raises(ConfigError, match="`weight_bits` 6: expected 7 or 8"):
        replace(config, weight_bits=6)


def test_compensated_rounding_reduces_the_error(models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]) -> None:
    config = QuantizeConfig(equalize=False)
    truth = outputs(models["erfnet"], tensors[7])["max_logit"]
    errors = []
    for with_moments in (False, True):
        graph = prepare(models["erfnet"], tensors[:1], config, no_progress)
        layers = set(layer_names(graph))
        convolutions = [node for node in graph.nodes if node.name in layers]
        moments = input_moments(graph, convolutions, tensors[:7], no_progress) if with_moments else {}
        rounded = round_weights(graph, convolutions, moments)
        for node in convolutions:
            rounded[node.name].put_into(graph, node)
            levels = rounded[node.name].weight / rounded[node.name].scale[:, None, None, None]
            np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
            assert np.abs(levels).max() < 127.5
        errors.append(float(np.abs(outputs(graph.finish(), tensors[7])["max_logit"] - truth).mean()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "error"])
def test_range_methods_stay_within_minmax(
    method: str, models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]
) -> None:
    graph = Graph(models["mide_net"])
    names = [node.output[0] for node in graph.nodes if node.op_type == "Relu"][:4]
    found = find_ranges(graph, names, tensors[:3], RangeConfig(method, 99.0), no_progress)
    widest = find_ranges(graph, names, tensors[:3], RangeConfig("minmax"), no_progress)
    for name in names:
        assert float(widest[name].lowest) <= float(found[name].lowest) <= float(found[name].highest)
        assert float(found[name].highest) <= float(widest[name].highest)
        # The many zeros after a ReLU must not make the entropy method cut nearly all values.
        assert float(found[name].highest) > 0.1 * float(widest[name].highest)
    if method == "percentile":
        assert any(float(found[name].highest) < 0.95 * float(widest[name].highest) for name in names)


def test_least_error_range_cuts_rare_values() -> None:
    edges = np.linspace(-1, 9, 1001).astype(np.float32)
    centres = (edges[1:] + edges[:-1]) / 2
    bulk = np.where(np.abs(centres) < 1, 100_000_000, 0)
    far = bulk + (centres > 8.9)
    low, high = least_error_range(far, edges, (np.float32(-1), np.float32(9)), symmetric=False)
    assert low < -0.9 and 1 < high < 6
    # Nothing is cut if half of the values are large.
    wide = np.where(centres > 0, 1000, 0)
    assert least_error_range(wide, edges, (np.float32(0), np.float32(9)), symmetric=False) == (0, 9)
    low, high = least_error_range(far, edges, (np.float32(-1), np.float32(9)), symmetric=True)
    assert low == -high


def test_quantized_trained_enet_keeps_its_labels() -> None:
    """The weights are trained, because unpooling with random weights amplifies differences."""
    bundle = load_bundle(find_bundle("enet-camvid"))
    street = [tensor_from_frame(frame, bundle.contract.input) for frame in street_frames(8)]
    model = onnx.load(bundle.graph_path)
    made = quantize(model, street, NONE, no_progress)
    assert agreement(model, made.model, street[:2]) > 0.93


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "enet"])
def test_quantized_networks_keep_their_labels(
    name: str, models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]
) -> None:
    # Compensated rounding of BiSeNet v1's wide convolutions takes a minute; the other networks have it.
    config = replace(NONE, compensate=name != "bisenet_v1")
    made = quantize(models[name], tensors, config, no_progress)
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(made.model)
    weights = {tensor.name: tensor.data_type for tensor in made.model.graph.initializer}
    assert sum(kind == TensorProto.INT8 for kind in weights.values()) > 10
    assert agreement(models[name], made.model, tensors[:2]) > 0.85
    assert made.float_layers == tuple(
        node.name for node in output_layers(Graph(made.model))
    )  # one output layer per strip


def test_integer_kernels_are_used(
    models: dict[str, onnx.ModelProto], tensors: list[np.ndarray], tmp_path: Path
) -> None:
    made = quantize(models["erfnet"], tensors, NONE, no_progress)
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(made.model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == made.layers - 1
    assert sum(kind.startswith(("Conv", "FusedConv")) for kind in kinds) == 1


def test_tensorrt_target_has_zero_points_of_zero(models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]) -> None:
    made = quantize(models["erfnet"], tensors, QuantizeConfig(target="tensorrt", keep_float="none"), no_progress)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.model.graph.initializer}
    quantizers = [node for node in made.model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(quantizers) > 100
    for node in quantizers:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    # TensorRT fuses a convolution with its activation only if they are adjacent.
    producers = {name: node for node in made.model.graph.node for name in node.output}
    relus = [node for node in made.model.graph.node if node.op_type == "Relu"]
    assert {producers[node.input[0]].op_type for node in relus} <= {"Conv", "Add"}
    assert agreement(models["erfnet"], made.model, tensors[:2]) > 0.8


def test_layers_are_kept_in_float_until_labels_agree(
    models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]
) -> None:
    plain = quantize(models["mide_net"], tensors, NONE, no_progress)
    reached = agreement(models["mide_net"], plain.model, tensors[:1])
    wanted = QuantizeConfig(label_agreement=reached + 0.6 * (1 - reached), max_float=0.5)
    made = quantize(models["mide_net"], tensors, wanted, no_progress)
    assert 1 < len(made.float_layers) <= 1 + made.layers // 2
    assert set(made.noise_db) == set(layer_names(prepare(models["mide_net"], tensors, wanted, no_progress)))
    kept = [made.noise_db[name] for name in made.float_layers[1:]]
    assert max(kept) == max(made.noise_db.values())
    # Scores are compared, because so few labels are wrong that their number is random.
    assert score_error(models["mide_net"], made.model, tensors) < 0.8 * score_error(
        models["mide_net"], plain.model, tensors
    )


def score_error(truth: onnx.ModelProto, model: onnx.ModelProto, tensors: Sequence[np.ndarray]) -> float:
    """Return the mean squared difference of the void scores of two graphs."""
    sessions = [plain_session(graph) for graph in (truth, model)]
    pairs = [[session.run(["void"], {"image": tensor})[0] for session in sessions] for tensor in tensors]
    return float(np.mean([np.square(one - two).mean() for one, two in pairs]))


def test_sums_stay_in_float_before_any_layer_does_for_tensorrt(
    models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]
) -> None:
    """Sums of residual streams lose most, and no convolution becomes float with them."""
    model = models["mide_net"]
    sums = sum_names(prepare(model, tensors, QuantizeConfig("tensorrt"), no_progress))
    assert len(sums) == 6
    wanted = QuantizeConfig("tensorrt", label_agreement=0.999, max_float=0.0)
    made = quantize(model, tensors, wanted, no_progress)
    assert made.float_layers[1:] == tuple(sums)
    producers = {name: node.op_type for node in made.model.graph.node for name in node.output}
    summands = [producers.get(name) for node in made.model.graph.node if node.name in sums for name in node.input]
    assert summands and "DequantizeLinear" not in summands
    quantized = quantize(model, tensors, replace(wanted, keep_float="none"), no_progress)
    assert score_error(model, made.model, tensors) < score_error(model, quantized.model, tensors)


def test_named_layers_stay_in_float(models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]) -> None:
    layers = layer_names(prepare(models["mide_net"], tensors, QuantizeConfig(), no_progress))
    made = quantize(models["mide_net"], tensors, QuantizeConfig(keep_float=(layers[3],)), no_progress)
    assert layers[3] in made.float_layers and len(made.float_layers) == 2
    with pytest.raises(CompressionError, match="no layer 'conv_of_nothing'"):
        quantize(models["mide_net"], tensors, QuantizeConfig(keep_float=("conv_of_nothing",)), no_progress)


def test_quantized_graph_is_refused(models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]) -> None:
    quantized = onnx.ModelProto()
    quantized.CopyFrom(models["mide_net"])
    quantized.graph.node.append(helper.make_node("QuantizeLinear", ["x", "scale"], ["y"]))
    with pytest.raises(CompressionError, match="quantized already"):
        quantize(quantized, tensors, NONE, no_progress)


def test_unknown_operator_error_names_it(models: dict[str, onnx.ModelProto], tensors: list[np.ndarray]) -> None:
    foreign = onnx.ModelProto()
    foreign.CopyFrom(models["mide_net"])
    relu = next(node for node in foreign.graph.node if node.op_type == "Relu")
    relu.name, relu.op_type, relu.domain = "the_odd_one", "Wobble", "acme"
    foreign.opset_import.append(helper.make_opsetid("acme", 1))
    with pytest.raises(CompressionError, match=r"'the_odd_one' is acme\.Wobble"):
        quantize(foreign, tensors, NONE, no_progress)
    relu.domain = ""
    with pytest.raises(CompressionError, match="Wobble"):
        quantize(foreign, tensors, NONE, no_progress)
