from __future__ import annotations

import sys
from pathlib import Path

import fake_tensorrt_runtime
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import Header

from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.detector import Detector
from anomseg_ros.node.diagnostics import (
    building_status,
    detector_status,
    diagnostic_array,
    drift_values,
    frame_status,
)
from anomseg_ros.node.engines import Engines
from anomseg_ros.node.health import Counts, Level, Snapshot, State
from anomseg_ros.node.parameters import PARAMETERS, fixed_parameters, live_parameters
from anomseg_ros.node.pipeline import FramePipeline, resolve

RUNNING = Snapshot(
    Counts(received=10, published=10),
    latency_ms={50: 30.0, 95: 40.0, 99: 50.0},
    processing_ms={50: 20.0, 95: 30.0, 99: 40.0},
    last_error="no step",
)


def values_of(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


def test_status_message_is_worst_state_and_values_hold_all() -> None:
    status = frame_status(RUNNING, [State(Level.ERROR, "future", "an hour"), State(Level.WARN, "slow", "so slow")])
    assert (status.level, status.message) == (DiagnosticStatus.ERROR, "an hour")
    values = values_of(status)
    assert (values["state"], values["state_slow"]) == ("future", "so slow")
    assert values["received"] == "10" and values["in_work"] == "0" and values["last_error"] == "no step"
    assert values["latency_ms_p95"] == "40.00" and values["processing_ms_p50"] == "20.00"


@pytest.mark.parametrize(
    ("trouble", "level", "message"),
    [("", DiagnosticStatus.OK, "not configured"), ("no bundle", DiagnosticStatus.ERROR, "no bundle")],
)
def test_detector_status_without_detector(trouble: str, level: bytes, message: str) -> None:
    status = detector_status(None, trouble)
    assert (status.level, status.message) == (level, message)


def test_diagnostic_array_names_node_and_hardware() -> None:
    statuses = [frame_status(RUNNING, [State(Level.OK, "running", "running")]), detector_status(None, "")]
    message = diagnostic_array(Header(), "/front/detector", "front_camera", statuses)
    assert [status.name for status in message.status] == ["/front/detector: frames", "/front/detector: detector"]
    assert {status.hardware_id for status in message.status} == {"front_camera"}


def test_drift_values_of_compressed_bundle() -> None:
    drift = {
        "label_agreement": 0.98123,
        "scores": {"void": {"rank_correlation": 0.99, "max_difference": 0.5}},
        "datasets": {"fs_static": {"auprc": [0.20702, 0.2]}},
    }
    assert drift_values({"method": "int8 static", "drift": drift}) == {
        "compression": "int8 static",
        "drift_label_agreement": "0.9812",
        "drift_rank_correlation_void": "0.9900",
        "drift_auprc_fs_static": "0.2070 -> 0.2000",
    }
    assert drift_values({}) == {}
    assert drift_values({"tuned": {"goal": "p50 of at most 50 ms"}}) == {}  # a float bundle that tune chose


def test_drift_values_of_every_compression_step() -> None:
    steps = {
        "method": "channels removed; then int8",
        "drift": {"label_agreement": 0.99},
        "parent": {"compression": {"method": "channels removed", "drift": {"label_agreement": 0.9}}},
        "original": {"drift": {"label_agreement": 0.89}},
    }
    assert drift_values(steps) == {
        "compression": "channels removed; then int8",
        "drift_label_agreement": "0.9900",
        "parent_drift_label_agreement": "0.9000",
        "original_drift_label_agreement": "0.8900",
    }


def test_an_engine_that_is_being_built_is_a_warning() -> None:
    status = building_status("building the engine, per cent", 7, 100)
    assert (status.level, status.message) == (DiagnosticStatus.WARN, "building the engine, per cent: 7 of 100")


def test_a_fallback_is_an_error_that_says_why(painted: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    parameters = {parameter.name: parameter.default for parameter in PARAMETERS}
    fixed = fixed_parameters({**parameters, "backend": "tensorrt", "fallback_backend": "onnxruntime"})
    share = Engines().open(painted, fixed.backend, fixed.options, ("labels", "void"))
    settings = resolve(live_parameters(parameters), painted)
    status = detector_status(FramePipeline(Detector(painted, share), settings, None), "")
    assert status.level == DiagnosticStatus.ERROR
    assert status.message.startswith("tensorrt was asked for, onnxruntime:cpu is in use: TensorRT is not installed")
    values = values_of(status)
    assert (values["backend_requested"], values["backend"]) == ("tensorrt", "onnxruntime:cpu")
    assert values["backend_fallback_reason"].startswith("TensorRT is not installed")


def test_facts_of_the_backend_are_values(painted: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake_tensorrt_runtime.install(monkeypatch)
    parameters = {parameter.name: parameter.default for parameter in PARAMETERS}
    fixed = fixed_parameters({**parameters, "backend": "tensorrt", "build_engine": "configure"})
    share = Engines().open(painted, fixed.backend, fixed.options, ("labels", "void"))
    settings = resolve(live_parameters(parameters), painted)
    status = detector_status(FramePipeline(Detector(painted, share), settings, None), "")
    values = values_of(status)
    assert values["backend"] == values["backend_requested"] == "tensorrt:gpu"
    assert values["backend_cuda_graph"] == "yes" and float(values["backend_compute_ms"]) > 0
    share.close()
