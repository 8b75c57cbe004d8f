"""Engines of a bundle: what the builder is told, what it answers, and what becomes of it."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import onnx
import pytest
from fake_tensorrt import read_plan

from anomseg_ros.backends.engine_cache import EngineKey
from anomseg_ros.backends.tensorrt_build import BuildOptions, build_engine, engine_key
from anomseg_ros.backends.tensorrt_library import Library, load_library
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.errors import BackendError, BundleError


@dataclass(frozen=True)
class Gpu:
    name: str = "Orin"
    compute_capability: str = "8.7"
    multiprocessors: int = 16
    integrated: bool = True


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake_tensorrt.install(monkeypatch)
    return load_library()


def builds(library: Library) -> list[Any]:
    found: list[Any] = library.module.builds  # type: ignore[attr-defined]
    return found


def test_an_engine_computes_its_outputs_and_no_more(library: Library, bundle: Bundle) -> None:
    built = build_engine(library, bundle, ("labels", "void"), BuildOptions())
    header, model = read_plan(built.plan)
    assert header["outputs"] == ["labels", "void"]
    graph = onnx.load_model_from_string(model).graph
    assert {output.name for output in graph.output} == {"labels", "void"}
    assert len(graph.node) < len(onnx.load(bundle.graph_path).graph.node)
    assert built.facts["layers"] == len(graph.node) == sum(built.facts["layers_by_device"]["GPU"].values())
    assert built.facts["plan_bytes"] == len(built.plan) and built.facts["precision"] == "fp32"
    assert built.facts["build_s"] >= 0 and built.facts["bundle"] == bundle.contract.name


def test_tf32_is_off(library: Library, bundle: Bundle) -> None:
    header, _ = read_plan(build_engine(library, bundle, ["labels"], BuildOptions()).plan)
    assert header["flags"] == [] and header["strongly_typed"]


def test_what_the_builder_is_told(library: Library, bundle: Bundle) -> None:
    options = BuildOptions(workspace_bytes=1 << 20, dla_core=1)
    built = build_engine(library, bundle, ["labels"], options)
    header, _ = read_plan(built.plan)
    assert header["flags"] == ["GPU_FALLBACK"]
    assert (header["workspace"], header["dla_core"]) == (1 << 20, 1)
    by_device = built.facts["layers_by_device"]
    assert set(by_device["DLA"]) == {"convolution"} and "convolution" not in by_device["GPU"]


def test_a_dla_core_that_is_not_there(library: Library, bundle: Bundle) -> None:
    library.module.faults.dla_cores = 1
    assert build_engine(library, bundle, ["labels"], BuildOptions(dla_core=0)).plan
    with pytest.raises(BackendError, match=r"no DLA core 1: TensorRT .* finds 1 on this computer; build for the GPU"):
        build_engine(library, bundle, ["labels"], BuildOptions(dla_core=1))


def test_timings_are_used_and_given_back(library: Library, bundle: Bundle) -> None:
    built = build_engine(library, bundle, ["labels"], BuildOptions(), b"before")
    assert builds(library)[-1][1] == b"before" and built.timings == b"before+timings"


def test_timings_that_the_library_does_not_take_are_left_out(library: Library, bundle: Bundle) -> None:
    built = build_engine(library, bundle, ["labels"], BuildOptions(), b"of another GPU")
    assert builds(library)[-1][1] == b"" and built.timings == b"+timings"


def test_rtx_has_no_timings(library: Library, bundle: Bundle) -> None:
    built = build_engine(replace(library, name="tensorrt_rtx"), bundle, ["labels"], BuildOptions(), b"before")
    assert builds(library)[-1][1] is None and built.timings == b""


def test_progress_rises_to_a_hundred(library: Library, bundle: Bundle) -> None:
    told: list[tuple[str, int, int | None]] = []
    build_engine(library, bundle, ["labels"], BuildOptions(), progress=lambda *report: told.append(report))
    shares = [done for _, done, _ in told]
    assert shares == sorted(set(shares)) and shares[-1] == 100 and len(shares) > 3
    assert {(what, total) for what, _, total in told} == {("building the engine, per cent", 100)}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_progress_cancels(library: Library, bundle: Bundle, error: type[BaseException]) -> None:
    def progress(what: str, done: int, total: int | None) -> None:
        raise error("enough")

    with pytest.raises(error, match="enough"):
        build_engine(library, bundle, ["labels"], BuildOptions(), progress=progress)
    assert builds(library) == []


def test_an_interrupt_in_any_callback_cancels(library: Library, bundle: Bundle) -> None:
    """Python raises KeyboardInterrupt wherever it is, and the library loses it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    library.module.faults.in_phase_start = lambda: signal.raise_signal(signal.SIGINT)  # type: ignore[attr-defined]
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(library, bundle, ["labels"], BuildOptions())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, lambda *_: None)  # a program's own handler is left alone
        build_engine(library, bundle, ["labels"], BuildOptions())
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(builds(library)) == 1


def test_progress_is_told_by_one_thread_at_a_time(library: Library, bundle: Bundle) -> None:
    """The library calls the monitor from several threads at once."""
    inside, threads, overlaps = list[str](), set[str](), list[str]()

    def progress(what: str, done: int, total: int | None) -> None:
        threads.add(threading.current_thread().name)
        overlaps.extend(inside)
        inside.append(what)
        time.sleep(0.02)
        inside.remove(what)

    build_engine(library, bundle, ["labels"], BuildOptions(), progress=progress)
    assert len(threads) == 2 and overlaps == []


@pytest.mark.parametrize("words", [fake_tensorrt.NO_IMPLEMENTATION, "Error Code 2: OutOfMemory (Requested size was 9)"])
@pytest.mark.parametrize(("workspace", "given"), [(None, "no limit was set"), (64 << 20, "64 MiB")])
def test_too_little_memory(library: Library, bundle: Bundle, words: str, workspace: int | None, given: str) -> None:
    library.module.faults.build_error = words  # type: ignore[attr-defined]
    with pytest.raises(BackendError) as raised:
        build_engine(library, bundle, ["labels"], BuildOptions(workspace_bytes=workspace))
    for part in (words, "free memory of the GPU", f"--workspace ({given})", "swap", bundle.contract.name):
        assert part in str(raised.value)


def test_another_failure_is_told_in_the_builders_words(library: Library, bundle: Bundle) -> None:
    library.module.faults.build_error = "Error Code 9: something else"  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match=r"cannot build an engine of bundle 'tiny': Error Code 9: something else; "):
        build_engine(library, bundle, ["labels"], BuildOptions())


def test_a_graph_of_another_form_is_refused(library: Library, bundle: Bundle) -> None:
    contract = replace(bundle.contract, input=replace(bundle.contract.input, height_px=32))
    with pytest.raises(BackendError, match="is not an anomseg graph"):
        build_engine(library, Bundle(bundle.directory, contract), ["labels"], BuildOptions())


def test_the_key_has_what_the_engine_depends_on(library: Library, bundle: Bundle) -> None:
    def key(changed: Bundle = bundle, gpu: Gpu = Gpu(), **options: Any) -> EngineKey:
        return engine_key(changed, ["void", "labels"], library, gpu, BuildOptions(**options))

    first = key()
    assert first.program_sha256 == bundle.contract.program_sha256 and first.outputs == ("labels", "void")
    assert (first.library, first.version, first.gpu_name) == ("tensorrt", "10.3.0", "Orin")
    other = Bundle(bundle.directory, replace(bundle.contract, files={"model.onnx": "0" * 64}))
    digests = {
        one.digest
        for one in (
            first,
            key(other),
            key(gpu=Gpu(multiprocessors=8)),
            key(gpu=Gpu(name="A2")),
            key(gpu=Gpu(compute_capability="9.0")),
            key(gpu=Gpu(integrated=False)),
            key(workspace_bytes=1),
            key(dla_core=0),
        )
    }
    assert len(digests) == 8
    with pytest.raises(BundleError, match=r"has no model\.onnx"):
        key(Bundle(bundle.directory, replace(bundle.contract, files={"model.pt2": "0" * 64})))
