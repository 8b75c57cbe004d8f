"""No engine is in the cache before it has shown that it computes what its bundle does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import onnx
import pytest
from fake_machine import FakeMachine, Gpu, PlanBackend

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.built_engines import engine_outputs
from anomseg_ros.backends.engine_cache import EngineCache, Found, Miss
from anomseg_ros.backends.noise_check import NOISE_TOLERANCES
from anomseg_ros.backends.tensorrt_build import BuildOptions
from anomseg_ros.compression.checked_engines import (
    EngineRequest,
    check_graph_builds,
    engine_states,
    provide_engines,
)
from anomseg_ros.compression.drift import TOLERANCES, Drift
from anomseg_ros.compression.engine_check import check_engine
from anomseg_ros.compression.engine_machines import runnable_on_cpu
from anomseg_ros.compression.half import in_half_precision
from anomseg_ros.core.bundle import GRAPH_FILE, LABELS_OUTPUT, PRECISIONS, Bundle, load_bundle, save_bundle
from anomseg_ros.core.preprocess import noise_frames
from anomseg_ros.errors import AnomsegError, BackendError, CompressionError, ConfigError

FRAMES = ("synthetic=1000105:2",)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMachine]:
    fake_tensorrt.install(monkeypatch)
    machine = FakeMachine()
    yield machine
    assert all(backend.closed for backend in machine.opened)


@pytest.fixture
def request_(tiny_bundle: Path, tmp_path: Path) -> EngineRequest:
    return EngineRequest(load_bundle(tiny_bundle), frames=FRAMES, cache=tmp_path / "cache")


def entries(request: EngineRequest) -> list[str]:
    assert request.cache is not None
    return [path.name for path in request.cache.glob("*/engine.plan")]


def test_engines_are_built_checked_and_stored_once(request_: EngineRequest, machine: FakeMachine) -> None:
    told: list[str] = []
    provided = provide_engines(request_, machine, lambda what, done, total: told.append(what))
    assert list(provided) == ["labels", "all"] and len(machine.builds) == 2 and len(entries(request_)) == 2
    assert {"labels: building the engine, per cent", "all: building the engine, per cent"} < set(told)
    for name, outputs in engine_outputs(request_.bundle.contract).items():
        check = provided[name]["check"]
        assert check["parity"] == dict.fromkeys(check["parity"], 0.0) and set(check["parity"]) == set(outputs)
        assert check["drift"]["label_agreement"] == 1.0 and check["drift"]["frames"] == 2
        assert set(check["drift"]["scores"]) == set(outputs) - {LABELS_OUTPUT}
    again = replace(request_, frames=("/nowhere",))  # which nobody needs any more
    assert provide_engines(again, machine) == provided and len(machine.builds) == 2


def test_the_second_build_has_the_timings_of_the_first(request_: EngineRequest, machine: FakeMachine) -> None:
    provide_engines(request_, machine)
    assert [timings for _, timings in machine.builds] == [b"", b"+timings"]


def test_what_is_asked_for(request_: EngineRequest, machine: FakeMachine) -> None:
    options = BuildOptions(workspace_bytes=1 << 20)
    provided = provide_engines(replace(request_, engines=("all",), options=options), machine)
    assert list(provided) == ["all"] and machine.builds[0][0]["workspace"] == 1 << 20
    with pytest.raises(ConfigError, match="unknown engine 'label'; known: labels, all"):
        provide_engines(replace(request_, engines=("label",)), machine)


def scores_reversed(name: str, array: Any) -> Any:
    return array if name == LABELS_OUTPUT else -array


def some_labels_changed(name: str, array: Any) -> Any:
    if name == LABELS_OUTPUT:
        array = array.copy()
        array[:, :1] ^= 1  # one row of 64
    return array


def scores_a_little_off(name: str, array: Any) -> Any:
    return array if name == LABELS_OUTPUT else array * np.float32(1.01) + np.float32(0.01)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (scores_reversed, r"score '\w+' has rank correlation -1.0000 \(at least 0.999\)"),
        (some_labels_changed, r"labels agree in 98.4\d% of the pixels \(at least 99.50%\)"),
        (scores_a_little_off, r"differs in \d+.\d+% of the pixels of noise \(at most 0.50%\)"),
        (lambda _, array: array * np.nan if array.dtype == np.float32 else array, "values that are not finite"),
        (lambda _, array: array.astype(np.float64), r"as float64 \(1, 64, 128\); expected (uint8|float32)"),
        (lambda _, array: array[:, 1:], r"\(1, 63, 128\); expected \w+ \(1, 64, 128\)"),
    ],
)
def test_an_engine_that_computes_something_else_is_not_stored(
    request_: EngineRequest, machine: FakeMachine, change: Any, told: str
) -> None:
    machine.change = change
    with pytest.raises(CompressionError, match=f"{told}.*not put into the cache"):
        provide_engines(request_, machine)
    assert entries(request_) == []
    assert isinstance(engine_states(request_, machine)[0].state, Miss)


def test_less_is_asked_of_lower_precision(request_: EngineRequest, machine: FakeMachine) -> None:
    machine.change = scores_a_little_off
    int8 = Bundle(request_.bundle.directory, replace(request_.bundle.contract, precision="int8"))
    assert len(provide_engines(replace(request_, bundle=int8), machine)) == 2
    assert TOLERANCES.keys() == NOISE_TOLERANCES.keys() == set(PRECISIONS)


def test_what_is_measured_on_noise_is_required_in_every_precision(
    request_: EngineRequest, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of the camera may be so even that they show nothing."""
    monkeypatch.setattr(Drift, "excesses", lambda drift: [])
    machine.change = scores_reversed
    int8 = Bundle(request_.bundle.directory, replace(request_.bundle.contract, precision="int8"))
    with pytest.raises(CompressionError, match=r"the agreement of '\w+' on noise is -1.0000 \(at least 0.9\)"):
        provide_engines(replace(request_, bundle=int8), machine)
    assert entries(request_) == []


@pytest.mark.slow
def test_an_engine_that_the_node_built_is_checked_on_frames(request_: EngineRequest, machine: FakeMachine) -> None:
    provided = provide_engines(request_, machine)
    cache = EngineCache(request_.cache)
    for one in engine_states(request_, machine):
        assert isinstance(one.state, Found)
        cache.store(one.key, one.state.plan, {**one.state.facts, "check": {"noise": {}}})
    assert {name: facts["check"] for name, facts in provide_engines(request_, machine).items()} == {
        name: facts["check"] for name, facts in provided.items()
    }
    assert len(machine.builds) == 2


def test_frames_that_are_not_there_cost_no_build_and_no_engine(request_: EngineRequest, machine: FakeMachine) -> None:
    mistyped = replace(request_, frames=("/nowhere",))
    with pytest.raises(AnomsegError, match="/nowhere"):
        provide_engines(mistyped, machine)
    assert machine.builds == []
    provide_engines(request_, machine)
    cache, built = EngineCache(request_.cache), len(machine.builds)
    for one in engine_states(request_, machine):
        assert isinstance(one.state, Found)
        cache.store(one.key, one.state.plan, {**one.state.facts, "check": {"noise": {}}})
    with pytest.raises(AnomsegError, match="/nowhere"):
        provide_engines(mistyped, machine)
    assert all(isinstance(one.state, Found) for one in engine_states(request_, machine))
    assert len(machine.builds) == built


def test_packages_that_the_check_needs_are_asked_for_before_the_build(
    request_: EngineRequest, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Bundle(request_.bundle.directory, replace(request_.bundle.contract, precision="bf16"))
    monkeypatch.setattr("anomseg_ros.compression.engine_machines.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"bf16.*onnx and ml_dtypes: pip install 'anomseg_ros\[offline\]'"):
        provide_engines(replace(request_, bundle=half), machine)
    assert machine.builds == []


@pytest.mark.slow
def test_the_faster_form_of_argmax_is_kept(
    request_: EngineRequest, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest = replace(request_, engines=("labels",), argmax="fastest")
    slow_form = ["Greater"]

    def run_slowly(backend: Any, tensor: Any, outputs: Any) -> Any:
        if slow_form[0] in backend.operators:
            time.sleep(0.01)
        return run(backend, tensor, outputs)

    run = PlanBackend.run
    monkeypatch.setattr(PlanBackend, "run", run_slowly)
    for slower, faster in (("Greater", "argmax"), ("ArgMax", "compare")):
        slow_form[0] = slower
        cache = EngineCache(request_.cache)
        for one in engine_states(fastest, machine):
            cache.discard(one.key)
        facts = provide_engines(fastest, machine)["labels"]
        medians_ms = facts["argmax"]["medians_ms"]
        assert facts["argmax"]["form"] == faster and medians_ms[faster] + 8 < max(medians_ms.values())
        (state,) = engine_states(fastest, machine)
        assert isinstance(state.state, Found)
        assert slower not in PlanBackend(state.state.plan, machine.change).operators
        assert facts["check"]["drift"]["label_agreement"] == 1.0
    assert len(machine.builds) == 4


@pytest.mark.slow
def test_an_engine_without_a_choice_is_built_again_for_one(request_: EngineRequest, machine: FakeMachine) -> None:
    plain = replace(request_, engines=("labels",))
    provide_engines(plain, machine)
    fastest = replace(plain, argmax="fastest")
    (one,) = engine_states(fastest, machine)
    assert isinstance(one.state, Miss) and "without a choice between the forms of argmax" in one.state.reason
    provide_engines(fastest, machine)
    assert len(machine.builds) == 3
    assert provide_engines(plain, machine) == provide_engines(fastest, machine) and len(machine.builds) == 3


def test_states_say_what_is_missing(request_: EngineRequest, machine: FakeMachine) -> None:
    assert ["no engine yet" in one.state.reason for one in engine_states(request_, machine)] == [True, True]
    provide_engines(request_, machine)
    assert all(isinstance(one.state, Found) for one in engine_states(request_, machine))
    machine.gpu = Gpu(name="Thor")
    states = engine_states(request_, machine)
    assert [one.name for one in states] == ["labels", "all"]
    assert all(one.state.reason.endswith("gpu_name is Thor, there Orin") for one in states)


def test_checking_a_graph_writes_nothing(
    request_: EngineRequest, machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library, built = check_graph_builds(replace(request_, cache=None))
    assert library == machine.library and list(built) == ["labels", "all"]
    assert list(tmp_path.iterdir()) == []


def test_a_cache_of_others_is_refused_before_anything_is_built(request_: EngineRequest, machine: FakeMachine) -> None:
    assert request_.cache is not None
    request_.cache.mkdir()
    request_.cache.chmod(0o777)
    with pytest.raises(BackendError, match="can be written by others"):
        provide_engines(request_, machine)
    assert machine.builds == []


def test_bfloat16_is_compared_with_its_weights_in_float32(
    request_: EngineRequest, machine: FakeMachine, tmp_path: Path
) -> None:
    original, path = request_.bundle, tmp_path / GRAPH_FILE
    onnx.save(in_half_precision(onnx.load(original.graph_path), "bf16"), path)
    half = save_bundle(replace(original.contract, precision="bf16"), {GRAPH_FILE: path}, tmp_path / "bf16")
    frame = noise_frames(64, 128)[1][np.newaxis]
    with runnable_on_cpu(half) as reference:
        assert reference.directory != half.directory
        got = open_backend("onnxruntime", reference).run(frame, ["labels", "void"])
        expected = open_backend("onnxruntime", original).run(frame, ["labels", "void"])
        assert (got[0] == expected[0]).mean() > 0.9 and got[1] == pytest.approx(expected[1], abs=0.05)
        assert not np.array_equal(got[1], expected[1])  # the weights are rounded

        def opened() -> Any:
            return open_backend("onnxruntime", reference)

        measured = check_engine(half, ["labels", "void"], opened, opened, [frame[0]])
    assert measured["drift"]["label_agreement"] == 1.0
    with runnable_on_cpu(original) as reference:
        assert reference is original
