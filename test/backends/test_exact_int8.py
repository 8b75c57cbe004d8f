"""Backends compute int8 bundles exactly on every processor, also where its fast instruction overflows."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

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


def largest_sums() -> bytes:
    """Return a graph whose score is the sum of the bytes in each window, by an int8 convolution with weights of 127."""
    constants = {
        "one": np.float32(1.0),
        "zero": np.uint8(0),
        "weights": np.full((2, CHANNELS, SIDE, SIDE), 127, np.int8),
        "weight_scale": np.full(2, 1 / 127, np.float32),
        "weight_zero": np.zeros(2, np.int8),
        "bias": np.zeros(2, np.int32),
        "sum_scale": np.float32(LARGEST / 255),
        "channel": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Concat", ["planes"] * COPIES, ["copies"], axis=1),
        helper.make_node("QuantizeLinear", ["copies", "one", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "one", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weights", "weight_scale", "weight_zero"], ["kernel"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "weight_scale"], ["float_bias"], axis=0),
        helper.make_node("Conv", ["values", "kernel", "float_bias"], ["sums"], pads=[1, 1, 1, 1]),
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
    return model.SerializeToString()


@pytest.fixture()
def sums(tmp_path: Path) -> Bundle:
    outputs = OutputSpec("labels", "uint8", "none"), OutputSpec("max_logit", "float32", "sum of a window")
    return plain_bundle(tmp_path / "sums", {GRAPH_FILE: largest_sums()}, precision="int8", outputs=outputs)


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


@pytest.mark.parametrize("exact", [True, False])
def test_sessions_of_onnxruntime_have_no_int8_kernels_where_they_overflow(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "has_exact_int8", lambda: exact)
    settings = onnxruntime.session_options(BackendOptions())
    if exact:
        with pytest.raises(RuntimeError):  # not set
            settings.get_session_config_entry("session.disable_quant_qdq")
    else:
        assert settings.get_session_config_entry("session.disable_quant_qdq") == "1"


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
    precision: str, device: str, exact: bool, frozen: bool, sums: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="the extra `offline` is not installed")
    from anomseg_ros.backends import torch_graph

    monkeypatch.setattr(torch_graph, "has_exact_int8", lambda: exact)
    bundle = replace(sums, contract=replace(sums.contract, precision=precision))
    assert torch_graph.freezes(bundle, torch.device(device)) is frozen


@pytest.mark.parametrize("exact", [True, False])
def test_slow_int8_is_told_once(
    exact: bool, sums: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "has_exact_int8", lambda: exact)
    backends._warn_of_slow_int8.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            open_backend("onnxruntime", sums).close()
    assert caplog.text.count("no VNNI instructions") == (0 if exact else 1)
