"""ONNX Runtime's GPU providers as far as a CPU can tell: their options, where nodes are, and bound memory.

A session of the CPU stands for one of a GPU, with a placement of its nodes that the test says.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.onnxruntime_gpu import (
    CPU,
    CUDA,
    NO_TF32,
    RECORD_PLACEMENT,
    TENSORRT,
    BoundSession,
    nodes_by_provider,
    nodes_of_a_run,
    placement_in_words,
    provider_list,
)
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.errors import BackendError

SHAPE = (1, 64, 128, 3)
SHORT = {CPU: "cpu", CUDA: "cuda", TENSORRT: "tensorrt"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(NO_TF32, "")  # so that what is set meanwhile is taken back
    monkeypatch.delenv(NO_TF32)


def frame(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def test_cuda_runs_in_float32_on_the_gpu_that_is_asked_for() -> None:
    assert provider_list(CUDA, 1, b"graph") == [(CUDA, {"device_id": "1", "use_tf32": "0"}), (CPU, {})]


def test_tensorrt_caches_engines_by_the_graph_alone() -> None:
    chain = provider_list(TENSORRT, 0, b"graph")
    assert [name for name, _ in chain] == [TENSORRT, CUDA, CPU]
    options = chain[0][1]
    folder = Path(options["trt_engine_cache_path"])
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    assert folder.is_dir() and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert provider_list(TENSORRT, 0, b"other graph")[0][1]["trt_engine_cache_path"] != str(folder)
    assert provider_list(TENSORRT, 0, b"graph")[0][1]["trt_engine_cache_path"] == str(folder)
    assert os.environ[NO_TF32] == "0"
    folder.chmod(0o777)
    with pytest.raises(BackendError, match="can be written by others"):
        provider_list(TENSORRT, 0, b"graph")


def test_other_providers_have_no_options() -> None:
    assert provider_list(CPU, 0, b"") == [(CPU, {})]
    assert provider_list("OpenVINOExecutionProvider", 0, b"") == [("OpenVINOExecutionProvider", {}), (CPU, {})]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({CUDA: 400}, "cuda"),
        ({CPU: 400, CUDA: 0}, "cpu"),
        ({CPU: 3, CUDA: 400}, "cuda (400 nodes) + cpu (3 nodes)"),
        ({CUDA: 9, TENSORRT: 1, CPU: 90}, "cuda (9 nodes) + tensorrt (1 nodes) + cpu (90 nodes)"),
        ({"QNNExecutionProvider": 4}, "QNNExecutionProvider"),
    ],
)
def test_every_provider_with_a_node_is_named(counts: dict[str, int], words: str) -> None:
    assert placement_in_words(counts, SHORT) == words


def settings() -> ort.SessionOptions:
    made = ort.SessionOptions()
    made.add_session_config_entry(RECORD_PLACEMENT, "1")
    return made


def test_both_ways_tell_the_placement_of_a_real_session(bundle: Bundle) -> None:
    model = bundle.graph_path.read_bytes()
    by_profile = nodes_of_a_run(model, settings(), [CPU])
    assert list(by_profile) == [CPU] and by_profile[CPU] > 10
    recorded = nodes_by_provider(ort.InferenceSession(model, settings(), providers=[CPU]))
    if recorded is not None:  # from ONNX Runtime 1.24 on
        assert list(recorded) == [CPU] and recorded[CPU] > 10


def test_a_bound_session_gives_what_a_session_gives(bundle: Bundle) -> None:
    session = ort.InferenceSession(bundle.graph_path.read_bytes(), providers=[CPU])
    bound = BoundSession(session, "cpu", 0)
    names = ["void", "labels"]
    kept = [bound.run(frame(seed), names) for seed in range(3)]
    for seed, arrays in enumerate(kept):
        for one, other in zip(arrays, session.run(names, {"image": frame(seed)}), strict=True):
            assert (one == other).all()
    turned = frame()[:, ::-1]
    assert (bound.run(turned, names)[0] == session.run(names, {"image": turned})[0]).all()
    with pytest.raises(BackendError, match=r"expected a uint8 \(1, 64, 128, 3\) tensor, got uint8 \(1, 2, 2, 3\)"):
        bound.run(np.zeros((1, 2, 2, 3), np.uint8), names)


class GpuSession:
    """A session of the CPU that says that its nodes are elsewhere."""

    placement: dict[str, int] | None = None
    opened: list[Any]

    def __init__(self, model: bytes, options: Any, providers: Any, **others: Any) -> None:
        self._real = REAL(model, options, providers=[CPU], **others)
        self._providers = [name for name, _ in providers]
        GpuSession.opened.append(providers)

    def __getattr__(self, name: str) -> Any:
        if name == "get_provider_graph_assignment_info" and GpuSession.placement is None:
            raise AttributeError(name)
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> list[Any]:
        counts = GpuSession.placement
        return [SimpleNamespace(ep_name=name, get_nodes=lambda n=count: [None] * n) for name, count in counts.items()]


REAL = ort.InferenceSession


@pytest.fixture()
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[GpuSession]:
    GpuSession.opened, GpuSession.placement = [], {CUDA: 400}
    real_value = ort.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", GpuSession)
    monkeypatch.setattr(
        ort.OrtValue, "ortvalue_from_shape_and_type", lambda shape, kind, place, number: real_value(shape, kind)
    )
    return GpuSession


@pytest.mark.parametrize(
    ("placement", "actual"),
    [
        ({CUDA: 400}, "onnxruntime:cuda"),
        ({CUDA: 400, CPU: 3}, "onnxruntime:cuda (400 nodes) + cpu (3 nodes)"),
        ({CPU: 403}, "onnxruntime:cpu"),
    ],
)
def test_actual_is_where_the_nodes_are(
    placement: dict[str, int], actual: str, gpu: type[GpuSession], bundle: Bundle
) -> None:
    gpu.placement = placement
    backend = open_backend("onnxruntime", bundle, BackendOptions(provider="cuda", device=2))
    assert (backend.requested, backend.actual) == ("onnxruntime:cuda", actual)
    assert gpu.opened[-1] == [(CUDA, {"device_id": "2", "use_tf32": "0"}), (CPU, {})]
    (void,) = backend.run(frame(), ["void"])
    assert (void == open_backend("onnxruntime", bundle).run(frame(), ["void"])[0]).all()


def test_only_the_wanted_outputs_are_opened_on_the_gpu(gpu: type[GpuSession], bundle: Bundle) -> None:
    backend = open_backend("onnxruntime", bundle, BackendOptions(provider="cuda"))
    assert [providers[0][0] for providers in gpu.opened] == [CPU, CUDA]
    backend.run(frame(), ["labels", "void"])
    assert len(gpu.opened) == 2
    gpu.placement = {CUDA: 2, CPU: 1}
    backend.run(frame(), ["msp"])
    assert backend.actual == "onnxruntime:cuda (2 nodes) + cpu (1 nodes)"


def test_tensorrt_builds_two_engines_when_it_is_opened_and_none_for_a_frame(
    gpu: type[GpuSession], bundle: Bundle
) -> None:
    backend = open_backend("onnxruntime", bundle, BackendOptions(provider="tensorrt"))
    assert [providers[0][0] for providers in gpu.opened] == [CPU, TENSORRT, TENSORRT]
    alone = REAL(bundle.graph_path.read_bytes(), providers=[CPU])
    gpu.opened.clear()
    for names in (["labels", "void"], ["msp"], ["labels", "energy", "msp"], ["void"], ["labels"]):
        for one, other in zip(backend.run(frame(), names), alone.run(names, {"image": frame()}), strict=True):
            assert one == pytest.approx(other, abs=1e-6)
    assert gpu.opened == []
    with pytest.raises(BackendError, match="has no nothing"):
        backend.run(frame(), ["nothing"])


def test_a_variable_that_asks_for_tf32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NO_TF32, "1")
    with pytest.raises(BackendError, match=f"{NO_TF32}=1 may let TensorRT round .*unset it"):
        provider_list(TENSORRT, 0, b"graph")
    assert provider_list(CUDA, 0, b"graph")[0][1]["use_tf32"] == "0"


def test_an_onnxruntime_that_does_not_tell_is_profiled(
    gpu: type[GpuSession], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(GpuSession, "get_provider_graph_assignment_info")
    gpu.placement = None
    backend = open_backend("onnxruntime", bundle, BackendOptions(provider="cuda"))
    assert backend.actual == "onnxruntime:cpu"  # which is true here


def test_the_profile_is_read_as_it_is_written(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        {"cat": "Session", "args": {}},
        {"cat": "Node", "args": {"provider": CUDA}},
        {"cat": "Node", "args": {"provider": CUDA}},
        {"cat": "Node", "args": {}},
        {"cat": "Node", "args": {"provider": CPU}},
    ]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    inputs = [SimpleNamespace(shape=SHAPE)]
    made = SimpleNamespace(get_inputs=lambda: inputs, run=lambda names, given: None, end_profiling=lambda: str(path))
    monkeypatch.setattr(ort, "InferenceSession", lambda model, settings, providers: made)
    assert nodes_of_a_run(b"", ort.SessionOptions(), [CUDA]) == {CUDA: 2, CPU: 1}
