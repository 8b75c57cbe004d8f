"""Which engines the backend tensorrt takes, builds and refuses, and what it says of them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_cudart import Gpu
from fake_tensorrt_runtime import FakeRuntime, install
from small_bundles import small_bundle
from tensorrt_places import DEFAULT, SHAPE, frame, opened

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.cuda import open_cuda
from anomseg_ros.backends.engine_cache import EngineCache
from anomseg_ros.backends.tensorrt_build import BuildOptions, build_engine, engine_key
from anomseg_ros.backends.tensorrt_library import load_library
from anomseg_ros.commands import build
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.errors import BackendError

pytestmark = pytest.mark.usefixtures("cache")


def test_the_smallest_engine_that_covers_the_outputs_is_loaded_when_it_is_needed(
    fake: FakeRuntime, bundle: Bundle
) -> None:
    opened(bundle).close()
    fake.counts.clear()
    backend = opened(bundle, "never")
    backend.run(frame(), DEFAULT)
    assert fake.counts["load"] == 1 and backend.facts()["engines"] == "labels"
    backend.run(frame(), ["labels", "msp"])
    backend.run(frame(), ["void"])
    assert fake.counts["load"] == 2 and backend.facts()["engines"] == "labels, all"
    assert len(fake.module.builds) == 2


def test_from_the_cache_nothing_is_built_and_configure_takes_no_time(fake: FakeRuntime, bundle: Bundle) -> None:
    opened(bundle).close()
    fake.load_s = 0.1
    for may_build in ("never", "configure"):
        started = time.perf_counter()
        backend = opened(bundle, may_build)
        backend.run(frame(), DEFAULT)
        assert time.perf_counter() - started < 2
        assert backend.facts()["engine"] == "found in the cache"
    assert len(fake.module.builds) == 2


def test_no_engine_and_no_leave_to_build_one(fake: FakeRuntime, bundle: Bundle) -> None:
    words = rf"has no engine for this computer: there is no engine yet.*anomseg build {bundle.directory}.*'configure'"
    with pytest.raises(BackendError, match=words):
        opened(bundle, "never")
    assert fake.module.builds == []


def test_a_miss_names_what_differs(fake: FakeRuntime, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(bundle).close()
    for installed, words in (
        ({"version": "10.4.0"}, "version is 10.4.0, there 10.3.0"),
        ({"gpu": Gpu("Fake Thor", (11, 0), 20)}, "gpu_name is Fake Thor, there Fake Orin"),
    ):
        gpu = installed.pop("gpu", Gpu())
        install(monkeypatch, gpu, **installed)
        with pytest.raises(BackendError, match=words):
            opened(bundle, "never")


def test_an_engine_that_was_built_with_more_workspace_serves(fake: FakeRuntime, bundle: Bundle) -> None:
    library, options = load_library(), BuildOptions(workspace_bytes=1 << 30)
    built = build_engine(library, bundle, DEFAULT, options)
    facts = {**built.facts, "check": {"noise": {}}}
    EngineCache().store(engine_key(bundle, DEFAULT, library, open_cuda().device, options), built.plan, facts)
    assert opened(bundle, "never").run(frame(), DEFAULT)[0].shape == SHAPE[:3]


def test_scores_of_an_engine_that_was_not_built(fake: FakeRuntime, bundle: Bundle, cache: Path) -> None:
    opened(bundle).close()
    backend = opened(bundle, "never")
    for folder in cache.glob("*/engine.json"):
        if '"msp"' in folder.read_text():
            folder.unlink()
    with pytest.raises(BackendError, match="anomseg build"):
        backend.run(frame(), ["msp"])
    assert backend.run(frame(), DEFAULT)[0].shape == SHAPE[:3]


def test_the_engine_for_everything_serves_alone(fake: FakeRuntime, bundle: Bundle, cache: Path) -> None:
    opened(bundle).close()
    for facts in cache.glob("*/engine.json"):
        if '"msp"' not in facts.read_text():
            facts.unlink()
    backend = opened(bundle, "never")
    assert backend.run(frame(), DEFAULT)[0].shape == SHAPE[:3] and backend.facts()["engines"] == "all"


def test_an_engine_that_computes_something_else_is_not_stored(fake: FakeRuntime, bundle: Bundle, cache: Path) -> None:
    fake.noise = 1e3
    with pytest.raises(BackendError, match=r"does not compute what the bundle does.*not put into the cache"):
        opened(bundle)
    assert not list(cache.glob("*/engine.plan"))
    assert fake.cudart.used[0] == 0


def test_facts_say_what_is_in_use(fake: FakeRuntime, bundle: Bundle) -> None:
    backend = opened(bundle)
    backend.run(frame(), DEFAULT)
    facts = backend.facts()
    assert facts["tensorrt"] == "10.3.0" and facts["cuda"] == "12.6, driver for 12.6"
    assert facts["gpu"] == "Fake Orin (compute 8.7, 16 multiprocessors)" and facts["tf32"] == "no"
    assert facts["engine"].startswith("built now: there is no engine yet")
    assert len(facts["engine_key"]) == 12 and float(facts["device_memory_mib"]) > 1
    assert "noise" in facts["engine_check"] and "labels 1.0" in facts["engine_check"]
    assert facts["engine_checked_on"] == "noise only"
    assert all(isinstance(value, str) and "\n" not in value for value in facts.values())


@pytest.mark.slow
def test_anomseg_build_makes_what_the_backend_takes(
    fake: FakeRuntime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lively = small_bundle("enet", tmp_path)
    assert build.main([str(lively.directory)]) == 0
    assert "100.00%" in capsys.readouterr().out
    assert fake.cudart.used[0] == 0
    backend = opened(lively, "never")
    assert backend.run(frame(), DEFAULT)[0].shape == SHAPE[:3]
    assert "label_agreement 1.0" in backend.facts()["engine_check"]
    assert backend.facts()["engine_checked_on"] == "noise and frames"


def test_facts_are_of_the_engine_in_use(fake: FakeRuntime, bundle: Bundle, cache: Path) -> None:
    opened(bundle).close()
    for facts in cache.glob("*/engine.json"):
        if '"msp"' in facts.read_text():
            facts.write_text(facts.read_text().replace('"build_s": ', '"build_s": 7'))
    backend = opened(bundle, "never")
    seen = []
    for outputs in (DEFAULT, ["msp"], DEFAULT):
        backend.run(frame(), outputs)
        seen.append(backend.facts())
    first, everything, last = seen
    assert (first["engine_in_use"], everything["engine_in_use"], last["engine_in_use"]) == ("labels", "all", "labels")
    for name in ("engine_key", "engine_build_s", "download_ms"):
        assert first[name] == last[name] != everything[name]
    assert everything["engines"] == last["engines"] == "labels, all"


def test_tf32_is_that_of_the_engine(fake: FakeRuntime, bundle: Bundle) -> None:
    backend = opened(bundle)
    used = backend._engines.used
    assert used is not None and backend.facts()["tf32"] == "no"
    used[1].facts["key"]["tf32"] = True
    assert backend.facts()["tf32"] == "yes"


def test_a_closed_backend_stays_closed(fake: FakeRuntime, bundle: Bundle) -> None:
    backend = opened(bundle)
    backend.run(frame(), DEFAULT)
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        backend.run(frame(), DEFAULT)
    assert fake.cudart.used[0] == 0 and backend.facts() == {}
    backend.close()


def test_bf16_is_not_built_without_something_to_compare_it_with(fake: FakeRuntime, bundle: Bundle, cache: Path) -> None:
    half = Bundle(bundle.directory, replace(bundle.contract, precision="bf16"))
    with pytest.raises(BackendError, match=rf"is in bf16.*nothing here to compare .*anomseg build {bundle.directory}"):
        opened(half)
    assert fake.module.builds == [] and not list(cache.glob("*/engine.plan"))


def test_the_wait_for_another_build_is_reported_and_can_be_ended(fake: FakeRuntime, bundle: Bundle) -> None:
    key = engine_key(bundle, DEFAULT, load_library(), open_cuda().device, BuildOptions())

    def stops(what: str, done: int, total: int | None) -> None:
        raise RuntimeError(what)

    with EngineCache().lock(key), pytest.raises(RuntimeError, match="waiting for another process that builds"):
        open_backend("tensorrt", bundle, BackendOptions(build_engine="configure"), stops)


def test_engines_of_a_dla_core_are_engines_of_their_own(fake: FakeRuntime, bundle: Bundle, cache: Path) -> None:
    on_gpu, on_dla = opened(bundle), opened(bundle, provider="dla1")
    assert (on_gpu.actual, on_dla.actual, on_dla.requested) == ("tensorrt:gpu", "tensorrt:dla1", "tensorrt:dla1")
    assert len(list(cache.glob("*/engine.plan"))) == 4
    for one, other in zip(on_gpu.run(frame(), DEFAULT), on_dla.run(frame(), DEFAULT), strict=True):
        assert (one == other).all()
    assert "DLA" in on_dla.facts()["engine_layers"] and "DLA" not in on_gpu.facts()["engine_layers"]
    with pytest.raises(BackendError, match=r"dla_core is 0, there .*`anomseg build [^`]* --dla 0`"):
        opened(bundle, "never", provider="dla0")


def test_building_is_reported(fake: FakeRuntime, bundle: Bundle) -> None:
    told: list[tuple[str, int, int | None]] = []
    options = BackendOptions(build_engine="configure")
    open_backend("tensorrt", bundle, options, lambda *words: told.append(words))
    assert told[-1][:2] == ("building the engine, per cent", 100)


def test_the_fallback_is_opened_and_never_hidden(fake: FakeRuntime, bundle: Bundle) -> None:
    fake.cudart.fail["cudaGetDeviceCount"] = 35
    backend = open_backend("tensorrt", bundle, BackendOptions(fallback_backend="onnxruntime"))
    assert (backend.requested, backend.actual) == ("tensorrt", "onnxruntime:cpu")
    assert "cudaErrorInsufficientDriver" in backend.facts()["fallback_reason"]  # type: ignore[attr-defined]
    assert backend.run(frame(), DEFAULT)[0].shape == SHAPE[:3]
    backend.close()


def test_a_backend_that_opens_needs_no_fallback(fake: FakeRuntime, bundle: Bundle) -> None:
    assert opened(bundle, fallback_backend="onnxruntime").actual == "tensorrt:gpu"


def test_the_real_library_has_what_an_engine_is_used_by() -> None:
    try:
        module: Any = load_library(parse_only=True).module
    except BackendError as error:
        pytest.skip(str(error))
    used = {
        module.Runtime: "deserialize_cuda_engine",
        module.ICudaEngine: "num_io_tensors get_tensor_name get_tensor_mode get_tensor_shape get_tensor_dtype",
        module.IExecutionContext: "set_tensor_address execute_async_v3",
    }
    assert all(hasattr(owner, name) for owner, names in used.items() for name in names.split())
    assert (module.DataType.UINT8.name, module.DataType.FLOAT.name) == ("UINT8", "FLOAT")
    assert module.TensorIOMode.INPUT.name == "INPUT"


def test_the_real_libraries_where_there_is_a_gpu(bundle: Bundle) -> None:
    """The contract itself runs on them in test_every_backend.py."""
    try:
        backend = opened(bundle)
    except BackendError as error:
        pytest.skip(str(error))
    expected = open_backend("onnxruntime", bundle).run(frame(), DEFAULT)
    for one, other in zip(backend.run(frame(), DEFAULT), expected, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    backend.close()
