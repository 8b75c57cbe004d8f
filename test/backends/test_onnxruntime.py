from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from anomseg_ros.backends import _warn_once, open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import CONTRACT_FILE, GRAPH_FILE, load_bundle, sha256_of
from anomseg_ros.errors import BackendError


def test_foreign_onnx_file_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    node = helper.make_node("Relu", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in "xy"]
    graph = helper.make_graph([node], "foreign", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, copy / GRAPH_FILE)
    old = load_bundle(tiny_bundle).contract.files[GRAPH_FILE]
    (copy / CONTRACT_FILE).write_text((copy / CONTRACT_FILE).read_text().replace(old, sha256_of(copy / GRAPH_FILE)))
    with pytest.raises(BackendError, match="is not an anomseg graph: its inputs are"):
        open_detector(copy)


def test_session_has_only_the_requested_outputs(tiny_bundle: Path) -> None:
    detector = open_detector(tiny_bundle)
    frame = np.zeros((64, 128, 3), np.uint8)

    def computed() -> set[str]:
        return {output.name for output in detector.backend._opened[0].session.get_outputs()}  # type: ignore[attr-defined]

    detector.detect(frame)
    assert computed() == {"labels", *detector.bundle.contract.score_names}
    detector.detect(frame, ["msp"])
    assert computed() == {"labels", "msp"}
    for scores, labels in (([], True), (["msp"], False)):  # no new session is needed
        detector.detect(frame, scores, labels=labels)
        assert computed() == {"labels", "msp"}
    alone = open_detector(tiny_bundle)
    alone.detect(frame, ["void"], labels=False)
    assert {output.name for output in alone.backend._opened[0].session.get_outputs()} == {"void"}  # type: ignore[attr-defined]


@pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 29), reason="this onnxruntime does not report"
)
def test_onnxruntime_telemetry_is_disabled(tiny_bundle: Path, tmp_path: Path) -> None:
    """From 1.29 on, the telemetry of onnxruntime stores its events in a database below HOME or XDG_CACHE_HOME."""
    code = "import sys; from anomseg_ros.cli import main; sys.exit(main(sys.argv[1:]))"
    frame = tmp_path / "frame.png"
    assert cv2.imwrite(str(frame), np.zeros((8, 8, 3), np.uint8))
    kept_out = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI")
    environment = {name: value for name, value in os.environ.items() if name not in kept_out}
    home = tmp_path / "home"
    home.mkdir()
    words = [sys.executable, "-c", code, "run", str(tiny_bundle), str(frame), "--output", str(tmp_path / "out")]
    done = subprocess.run(words, env={**environment, "HOME": str(home)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(home.rglob("*onnxruntime*"))


def test_unknown_provider_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match="unknown onnxruntime provider 'gpu'"):
        open_detector(tiny_bundle, options=BackendOptions(provider="gpu"))


def test_missing_provider_falls_back_and_is_reported(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    detector = open_detector(tiny_bundle, options=BackendOptions(provider="cuda"))
    assert detector.backend.requested == "onnxruntime:cuda"
    assert detector.backend.actual == "onnxruntime:cpu"
    assert detector.detect(np.zeros((8, 8, 3), np.uint8)).labels is not None
    _warn_once.cache_clear()
    caplog.clear()
    for _ in range(2):
        open_detector(tiny_bundle, options=BackendOptions(provider="cuda"))
    open_detector(tiny_bundle)
    (told,) = caplog.messages
    assert "onnxruntime:cuda was asked for, onnxruntime:cpu is in use" in told
