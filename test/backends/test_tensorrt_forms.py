"""What NVIDIA's parser takes of ONNX: each row is a form that our graphs have, had, or must not have.

The graphs that export, quantize and convert write follow from this table. A newer parser that takes more or less fails
the test of that row.
"""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from anomseg_ros.backends.tensorrt_library import Library, collected_errors, load_library, parse_graph
from anomseg_ros.errors import BackendError

FLOAT, PIXELS, INTS = "float[1,4,8,8] x", "uint8[1,8,8,4] x", "int32[1,8,8,4] x"
WEIGHTS = "float[4,4,3,3] w = {" + ",".join(["0.5"] * 144) + "}"
INT8_WEIGHTS = "int8[4,4,3,3] w = {" + ",".join(["5"] * 144) + "}"
SCALES = "float[4] ws = {0.1, 0.2, 0.3, 0.4}, int8[4] wz = {0, 0, 0, 0}"
ONE_SCALE = "float ws = {0.1}, int8 wz = {0}"
ACTIVATION = "float s = {0.1}, int8 z = {0}"
QDQ = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
CONV = "y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(d, f)"
PER_CHANNEL = QDQ + "f = DequantizeLinear<axis = 0>(w, ws, wz) " + CONV
PER_TENSOR = QDQ + "f = DequantizeLinear(w, ws, wz) " + CONV
SIZES = "float[4] scales = {1, 1, 2, 2}"
INDICES = "int64[1,4,8,8] i = {" + ",".join(["1"] * 256) + "}"

BUILT = {
    "int8, weights by channel": (FLOAT, f"{ACTIVATION}, {INT8_WEIGHTS}, {SCALES}", PER_CHANNEL),
    "int8, weights by tensor": (FLOAT, f"{ACTIVATION}, {INT8_WEIGHTS}, {ONE_SCALE}", PER_TENSOR),
    "int8, float weights and a pair of nodes": (
        FLOAT,
        f"{ACTIVATION}, {WEIGHTS}, {SCALES}",
        QDQ + "v = QuantizeLinear<axis = 0>(w, ws, wz) f = DequantizeLinear<axis = 0>(v, ws, wz) " + CONV,
    ),
    "uint8 values with zero point 0": (
        FLOAT,
        f"float s = {{0.1}}, uint8 z = {{0}}, {INT8_WEIGHTS}, {SCALES}",
        PER_CHANNEL,
    ),
    "int8, values by channel": (
        FLOAT,
        f"float[4] s = {{0.1, 0.2, 0.3, 0.4}}, int8[4] z = {{0, 0, 0, 0}}, {INT8_WEIGHTS}, {SCALES}",
        PER_CHANNEL.replace("QuantizeLinear(", "QuantizeLinear<axis = 1>("),
    ),
    "pixels cast before they are transposed": (PIXELS, "", "f = Cast<to = 1>(x) y = Transpose<perm = [0, 3, 1, 2]>(f)"),
    "labels in int32, cast at the end": (
        INTS,
        "int32 a = {3}, int32 b = {255}",
        "e = Equal(x, a) l = Where(e, b, x) c = Concat<axis = 1>(l, x) y = Cast<to = 2>(c)",
    ),
    "a table in int32": (INTS, "int32[8] t = {0, 1, 2, 3, 4, 5, 6, 255}", "g = Gather(t, x) y = Cast<to = 2>(g)"),
    "labels by comparison": (FLOAT, "float a = {0}", "g = Greater(x, a) m = Max(x, a) y = Where(g, m, x)"),
    "ArgMax": (FLOAT, "", "a = ArgMax<axis = 1, keepdims = 0>(x) y = Cast<to = 2>(a)"),
    "labels by a chain of comparisons": (
        FLOAT,
        "int32 c0 = {0}, int32 c1 = {1}, int32 c2 = {2}, int32 c3 = {3}, int64[1] axes = {1}",
        "p, q, r, s = Split<axis = 1, num_outputs = 4>(x) "
        "g1 = Greater(q, p) i1 = Where(g1, c1, c0) b1 = Max(p, q) g2 = Greater(r, b1) i2 = Where(g2, c2, i1) "
        "b2 = Max(b1, r) g3 = Greater(s, b2) i3 = Where(g3, c3, i2) l = Squeeze(i3, axes) y = Cast<to = 2>(l)",
    ),
    "int64 output": (FLOAT, "", "y = ArgMax<axis = 1>(x)"),
    "ScatterElements": (FLOAT, INDICES, "y = ScatterElements<axis = 3>(x, i, x)"),
    "ScatterND": (FLOAT, "int64[1,4] i = {0, 1, 2, 3}, float[1] u = {1}", "y = ScatterND(x, i, u)"),
    "GatherElements": (FLOAT, INDICES, "y = GatherElements<axis = 3>(x, i)"),
    "DepthToSpace": (FLOAT, "", 'y = DepthToSpace<blocksize = 2, mode = "CRD">(x)'),
    "grouped ConvTranspose": (
        FLOAT,
        "float[4,1,2,2] w = {" + ",".join(["0.5"] * 16) + "}",
        "y = ConvTranspose<group = 4, kernel_shape = [2, 2], strides = [2, 2]>(x, w)",
    ),
    "ConvTranspose with output padding": (
        FLOAT,
        WEIGHTS,
        "y = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]>(x, w)",
    ),
    "dilated 3x1 Conv": (
        FLOAT,
        "float[4,4,3,1] w = {" + ",".join(["0.5"] * 48) + "}",
        "y = Conv<kernel_shape = [3, 1], dilations = [2, 1], pads = [2, 0, 2, 0]>(x, w)",
    ),
    "PRelu": (FLOAT, "float[4,1,1] a = {0.1, 0.2, 0.3, 0.4}", "y = PRelu(x, a)"),
    "Pad edge": (FLOAT, "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}", 'y = Pad<mode = "edge">(x, p)'),
    "boolean logic": (
        FLOAT,
        "float a = {0}",
        "g = Greater(x, a) l = Less(x, a) o = Or(g, l) n = Not(o) y = Cast<to = 1>(n)",
    ),
    "Softmax": (FLOAT, "", "y = Softmax<axis = 1>(x)"),
    "ReduceLogSumExp": (FLOAT, "int64[1] a = {1}", "y = ReduceLogSumExp(x, a)"),
    "float16": (FLOAT, "", "h = Cast<to = 10>(x) s = Softmax<axis = 1>(h) y = Cast<to = 1>(s)"),
    "bfloat16": (FLOAT, "", "h = Cast<to = 16>(x) s = Softmax<axis = 1>(h) y = Cast<to = 1>(s)"),
    **{
        f"Resize {mode} {transform}": (
            FLOAT,
            SIZES,
            f'y = Resize<mode = "{mode}", coordinate_transformation_mode = "{transform}">(x, , scales)',
        )
        for mode, transform in (
            ("nearest", "asymmetric"),
            ("nearest", "half_pixel"),
            ("linear", "half_pixel"),
            ("linear", "align_corners"),
            ("cubic", "half_pixel"),
        )
    },
}
"""What the row is about -> input, constants, nodes."""

REFUSED = {
    "uint8 values with zero point 114": (
        FLOAT,
        f"float s = {{0.1}}, uint8 z = {{114}}, {INT8_WEIGHTS}, {SCALES}",
        PER_CHANNEL,
        "QuantizeLinear",
    ),
    "int8 values with zero point 3": (
        FLOAT,
        f"float s = {{0.1}}, int8 z = {{3}}, {INT8_WEIGHTS}, {SCALES}",
        PER_CHANNEL,
        "QuantizeLinear",
    ),
    "weights with zero point 2": (
        FLOAT,
        f"{ACTIVATION}, {INT8_WEIGHTS}, float ws = {{0.1}}, int8 wz = {{2}}",
        PER_TENSOR,
        "DequantizeLinear",
    ),
    "int32 bias": (
        FLOAT,
        f"{WEIGHTS}, int32[4] b = {{1, 2, 3, 4}}, float bs = {{0.1}}, int32 bz = {{0}}",
        "c = DequantizeLinear(b, bs, bz) y = Conv<kernel_shape = [3, 3]>(x, w, c)",
        "DequantizeLinear",
    ),
    "QLinearConv": (
        FLOAT,
        f"{ACTIVATION}, {INT8_WEIGHTS}, {SCALES}",
        "q = QuantizeLinear(x, s, z) c = QLinearConv(q, s, z, w, ws, wz, s, z) y = DequantizeLinear(c, s, z)",
        "QLinearConv",
    ),
    "MaxPool with indices": (
        FLOAT,
        "",
        "m, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) f = Cast<to = 1>(i) y = Add(m, f)",
        "MaxPool",
    ),
    "MaxUnpool": (
        FLOAT,
        INDICES,
        "y = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(x, i)",
        "MaxUnpool",
    ),
    "Resize with antialias": (
        FLOAT,
        "float[4] scales = {1, 1, 0.5, 0.5}",
        'y = Resize<mode = "linear", antialias = 1>(x, , scales)',
        "Resize",
    ),
    "Transpose of uint8": (PIXELS, "", "t = Transpose<perm = [0, 3, 1, 2]>(x) y = Cast<to = 1>(t)", "Transpose"),
    "Concat of uint8": (PIXELS, "", "c = Concat<axis = 1>(x, x) y = Cast<to = 1>(c)", "Concat"),
    "Equal of uint8": (PIXELS, "uint8 a = {3}", "e = Equal(x, a) y = Cast<to = 1>(e)", "Equal"),
    "Where of uint8": (PIXELS, "bool a = {1}, uint8 b = {255}", "w = Where(a, b, x) y = Cast<to = 1>(w)", "Where"),
    "uint8 between nodes": (INTS, "", "u = Cast<to = 2>(x) y = Cast<to = 1>(u)", "Cast"),
}
"""What the row is about -> input, constants, nodes, operator that the parser names."""


TABLE = (INTS, "uint8[8] t = {0, 1, 2, 3, 4, 5, 6, 255}", "y = Gather(t, x)")


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return load_library(parse_only=True)
    except BackendError as error:
        pytest.skip(str(error))


def model(given: str, constants: str, nodes: str) -> bytes:
    """Return an ONNX file with the output y."""
    graph = f"g ({given}) => (float[a, b, c, d] y) <{constants}> {{ {nodes} }}"
    parsed = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {graph}')
    inferred = onnx.shape_inference.infer_shapes(typed(parsed), strict_mode=True)
    content: bytes = inferred.SerializeToString()
    return content


def typed(parsed: onnx.ModelProto) -> onnx.ModelProto:
    """Give the output the type that its node gives it, whatever the text says."""
    parsed.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="y"))
    return parsed


@pytest.mark.parametrize("row", BUILT)
def test_forms_that_are_built(library: Library, row: str) -> None:
    builder, network, parser = parse_graph(library, model(*BUILT[row]), row)
    with collected_errors(library) as errors:
        plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert parser.num_errors == 0 and plan is not None, errors


@pytest.mark.parametrize("row", REFUSED)
def test_forms_that_are_refused(library: Library, row: str) -> None:
    *graph, operator = REFUSED[row]
    with pytest.raises(
        BackendError, match=rf"{row}: TensorRT\S* \S+ refuses node .*\({operator}\): .+; (export|quantize)"
    ):
        parse_graph(library, model(*graph), row)


def test_a_table_in_uint8_is_refused_without_a_node(library: Library) -> None:
    with pytest.raises(
        BackendError, match=r"cannot parse the graph: .*uint8.*; export the bundle again, with --processor gpu"
    ):
        parse_graph(library, model(*TABLE), "table")
