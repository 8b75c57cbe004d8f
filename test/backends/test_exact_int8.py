"""Backends compute int8 bundles exactly on every processor, also where its fast instruction overflows."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from plain_bundles import plain_bundle

from anomseg_ros import backends
from anomseg_ros.backends import check_usable, onnxruntime, open_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core import processor
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, OutputSpec
from anomseg_ros.errors import BackendError

HEIGHT_PX, WIDTH_PX, SIDE, COPIES = 64, 128, 3, 16
CHANNELS = 3 * COPIES
LARGEST = SIDE * SIDE * CHANNELS * 255
"""Sum of a white frame's bytes under a kernel of ones."""
INFO_OF_AVX2 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse4_2 avx avx2 bmi2\n"


SMALL = 0.003
"""Weight that one scale for all channels rounds to 0 beside a weight of 1."""


def sums_graph(weight: int) -> bytes:
    """Return a graph whose score is the sum of the bytes in each window, by an int8 convolution with equal weights.

    With a weight of 0, the layer is in float: one channel has weights of -1, the other, the score, of SMALL.
    """
    kernels = np.stack([np.full((CHANNELS, SIDE, SIDE), each, np.float32) for each in (-1, SMALL)])
    constants = {
        "one": np.float32(1.0),
        "zero": np.uint8(0),
        "weights": np.full((2, CHANNELS, SIDE, SIDE), weight, np.int8),
        "weight_scale": np.full(2, 1 / max(1, weight), np.float32),
        "float_kernel": kernels,
        "float_bias": np.zeros(2, np.float32),
        "weight_zero": np.zeros(2, np.int8),
        "bias": np.zeros(2, np.int32),
        "sum_scale": np.float32((LARGEST if weight else SMALL * LARGEST) / 255),
        "channel": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Concat", ["planes"] * COPIES, ["copies"], axis=1),
        helper.make_node("QuantizeLinear", ["copies", "one", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "one", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weights", "weight_scale", "weight_zero"], ["kernel"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "weight_scale"], ["bias_of_int8"], axis=0),
        helper.make_node(
            "Conv",
            ["values", *(("kernel", "bias_of_int8") if weight else ("float_kernel", "float_bias"))],
            ["sums"],
            pads=[1, 1, 1, 1],
        ),
        helper.make_node("QuantizeLinear", ["sums", "sum_scale", "zero"], ["sum_bytes"]),
        helper.make_node("DequantizeLinear", ["sum_bytes", "sum_scale", "zero"], ["rounded"]),
        helper.make_node("ReduceMax", ["rounded", "channel"], ["max_logit"], keepdims=0),
        helper.make_node("Cast", ["max_logit"], ["labels"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, HEIGHT_PX, WIDTH_PX, 3])],
        [
            helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, HEIGHT_PX, WIDTH_PX]),
            helper.make_tensor_value_info("max_logit", TensorProto.FLOAT, [1, HEIGHT_PX, WIDTH_PX]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(params=[8, 7])
def bits(request: pytest.FixtureRequest) -> int:
    """Bits of the weights, as of `anomseg quantize --weight-bits`."""
    return int(request.param)


@pytest.fixture()
def sums(bits: int, tmp_path: Path) -> Bundle:
    """A bundle with the largest weights of these bits."""
    outputs = OutputSpec("labels", "uint8", "none"), OutputSpec("max_logit", "float32", "sum of a window")
    files = {GRAPH_FILE: sums_graph(127 if bits == 8 else 64)}
    compression = {"settings": {"weight_bits": bits}}
    return plain_bundle(tmp_path / "sums", files, precision="int8", outputs=outputs, compression=compression)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_largest_products_of_bytes_are_added_exactly(name: str, sums: Bundle) -> None:
    """On a processor with AVX2 alone, the score is half as large where the fast instruction is used."""
    try:
        check_usable(name)
        backend = open_backend(name, sums)
    except BackendError as error:
        pytest.skip(str(error))
    white = np.full((1, HEIGHT_PX, WIDTH_PX, 3), 255, np.uint8)
    found = backend.run(white, ["max_logit"])[0]
    backend.close()
    assert found[0, HEIGHT_PX // 2, WIDTH_PX // 2] == pytest.approx(LARGEST, abs=LARGEST / 255)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_layers_in_float_between_int8_layers_keep_their_weights(name: str, tmp_path: Path) -> None:
    """An optimizer of ONNX Runtime would round them with one scale for all channels, and the score were 0."""
    outputs = OutputSpec("labels", "uint8", "none"), OutputSpec("max_logit", "float32", "sum of a window")
    compression = {"settings": {"weight_bits": 7}}
    files = {GRAPH_FILE: sums_graph(0)}
    bundle = plain_bundle(tmp_path / "sums", files, precision="int8", outputs=outputs, compression=compression)
    try:
        backend = open_backend(name, bundle)
    except BackendError as error:
        pytest.skip(str(error))
    found = backend.run(np.full((1, HEIGHT_PX, WIDTH_PX, 3), 255, np.uint8), ["max_logit"])[0]
    backend.close()
    assert found[0, HEIGHT_PX // 2, WIDTH_PX // 2] == pytest.approx(SMALL * LARGEST, rel=0.01)


@pytest.mark.parametrize("exact", [True, False])
def test_sessions_of_onnxruntime_have_no_int8_kernels_where_they_overflow(
    exact: bool, bits: int, sums: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "has_exact_int8", lambda: exact)
    settings = onnxruntime.session_options(BackendOptions(), sums)
    if exact or bits == 7:
        with pytest.raises(RuntimeError):  # not set
            settings.get_session_config_entry("session.disable_quant_qdq")
    else:
        assert settings.get_session_config_entry("session.disable_quant_qdq") == "1"


@pytest.mark.parametrize("settings", [None, 7, ["weight_bits"], {}, {"weight_bits": "7"}, {"weight_bits": 6.5}])
def test_bits_of_weights_that_the_contract_does_not_state_count_as_eight(
    settings: Any, sums: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "has_exact_int8", lambda: False)
    contract = replace(sums.contract, compression={"settings": settings})
    assert not processor.has_exact_int8_for(contract)
    assert not processor.has_exact_int8_for(replace(contract, compression={}))
    assert processor.has_exact_int8_for(replace(contract, precision="fp16"))


@pytest.mark.parametrize(
    ("machine", "info", "exact"),
    [
        ("x86_64", INFO_OF_AVX2, False),
        ("x86_64", INFO_OF_AVX2.replace("bmi2", "avx_vnni"), True),
        ("AMD64", INFO_OF_AVX2.replace("bmi2", "avx512f avx512_vnni"), True),
        ("x86_64", None, False),
        ("x86_64", "", False),
        ("aarch64", None, True),
    ],
)
def test_processors_are_told_apart(
    machine: str, info: str | None, exact: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "cpuinfo"
    if info is not None:
        file.write_text(info)
    monkeypatch.setattr(processor, "_CPUINFO", file)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert processor.has_exact_int8.__wrapped__() is exact


@pytest.mark.parametrize(
    ("precision", "device", "exact", "frozen"),
    [
        ("int8", "cpu", True, True),
        ("int8", "cpu", False, False),
        ("fp32", "cpu", False, True),
        ("int8", "cuda", False, True),
    ],
)
def test_torch_has_no_int8_kernels_where_they_overflow(
    precision: str, device: str, exact: bool, frozen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="the extra `offline` is not installed")
    from anomseg_ros.backends import torch_graph

    monkeypatch.setattr(processor, "has_exact_int8", lambda: exact)
    bundle = plain_bundle(tmp_path / "bundle", precision=precision)
    assert torch_graph.freezes(bundle, torch.device(device)) is frozen


@pytest.mark.parametrize("exact", [True, False])
def test_slow_int8_is_told_once(
    exact: bool, bits: int, sums: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processor, "has_exact_int8", lambda: exact)
    backends._warn_of_slow_int8.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            open_backend("onnxruntime", sums).close()
    assert caplog.text.count("no VNNI instructions") == (0 if exact or bits == 7 else 1)
