"""Every error of TensorRT and CUDA reaches the user with its remedy."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from fake_cudart import Gpu
from fake_tensorrt import NO_IMPLEMENTATION
from fake_tensorrt_runtime import NO_MEMORY, OTHER_GPU, OTHER_VERSION, FakeRuntime, install
from onnx import helper
from tensorrt_places import DEFAULT, SHAPE, frame, opened

from anomseg_ros.backends.cuda import open_cuda
from anomseg_ros.backends.tensorrt import open_plan
from anomseg_ros.backends.tensorrt_build import BuildOptions, build_engine
from anomseg_ros.backends.tensorrt_library import load_library
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, InputSpec, save_bundle
from anomseg_ros.errors import BackendError

pytestmark = pytest.mark.usefixtures("cache")


def test_without_tensorrt(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"TensorRT is not installed.*python3-libnvinfer.*pip install"):
        opened(bundle)


def test_a_jetpack_that_is_too_old(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    install(monkeypatch, version="8.6.2")
    with pytest.raises(BackendError, match=r"TensorRT 8\.6\.2 is too old.*JetPack 6\.1"):
        opened(bundle)


def test_no_driver(fake: FakeRuntime, bundle: Bundle) -> None:
    fake.cudart.fail["cudaGetDeviceCount"] = 35
    with pytest.raises(BackendError, match=r"cudaErrorInsufficientDriver.*--runtime nvidia"):
        opened(bundle)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (OTHER_VERSION, "another version of TensorRT; build it again on this computer: anomseg build"),
        (OTHER_GPU, "built for another GPU; build it again on this computer: anomseg build"),
        (NO_MEMORY, "free memory of the GPU.*swap on a Jetson"),
        ("Something else", "Something else$"),
        ("", "it does not say why$"),
    ],
)
@pytest.mark.parametrize("step", ["load", "prepare", "run"])
def test_the_library_refuses(words: str, remedy: str, step: str, fake: FakeRuntime, bundle: Bundle) -> None:
    opened(bundle).close()
    setattr(fake.faults, step, words or " ")
    with pytest.raises(BackendError, match=rf"TensorRT 10\.3\.0 cannot .* of bundle 'tiny': .*{remedy}"):
        opened(bundle, "never").run(frame(), DEFAULT)
    fake.cudart.objects.clear()


def test_a_run_that_failed_once_does_not_spoil_the_next(fake: FakeRuntime, bundle: Bundle) -> None:
    backend = opened(bundle)
    fake.faults.run = NO_MEMORY
    with pytest.raises(BackendError, match="OutOfMemory"):
        backend.run(frame(), DEFAULT)
    fake.faults.run = ""
    assert backend.run(frame(), DEFAULT)[0].shape == SHAPE[:3] and backend.facts()["cuda_graph"] == "yes"


def test_memory_that_runs_out_while_loading_is_given_back(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    fake = install(monkeypatch)
    opened(bundle).close()
    for memory_bytes in (1000, 1_000_000, 1_500_000):
        fake.cudart.gpus = (Gpu(memory_bytes=memory_bytes),)
        with pytest.raises(BackendError, match="free memory of the GPU"):
            opened(bundle, "never").run(frame(), DEFAULT)
        assert (fake.cudart.used[0], len(fake.cudart.host), len(fake.cudart.objects)) == (0, 0, 0), memory_bytes


def test_too_little_memory_to_build_is_worded_as_no_implementation(fake: FakeRuntime, bundle: Bundle) -> None:
    fake.module.faults.build_error = NO_IMPLEMENTATION
    with pytest.raises(
        BackendError, match=r"model\.onnx cannot be loaded by TensorRT 10\.3\.0.*too little memory.*swap"
    ):
        opened(bundle)


def test_a_graph_that_the_parser_refuses_names_the_node(fake: FakeRuntime, tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(
        BackendError, match=r"refuses node 'first' \(Transpose\).*export the checkpoint with --processor gpu"
    ):
        opened(transposed_first(bundle, tmp_path / "old"))


def transposed_first(bundle: Bundle, folder: Path) -> Bundle:
    """Return the bundle with a graph that transposes bytes, as older versions exported them."""
    model = onnx.load(bundle.graph_path)
    there = helper.make_node("Transpose", ["image"], ["turned"], name="first", perm=[0, 3, 1, 2])
    back = helper.make_node("Transpose", ["turned"], ["pixels"], name="second", perm=[0, 2, 3, 1])
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "image" else name for name in node.input]
    nodes = [there, back, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path = folder.with_suffix(".onnx")
    onnx.save(model, path)
    return save_bundle(bundle.contract, {GRAPH_FILE: path}, folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outputs": ("labels", "void")}, "which is not what bundle 'tiny' describes"),
        ({"input": InputSpec(32, 64)}, "is not an anomseg graph"),
    ],
)
def test_an_engine_of_another_bundle_is_refused(
    change: dict[str, Any], words: str, fake: FakeRuntime, bundle: Bundle
) -> None:
    library, cuda = load_library(), open_cuda()
    names = tuple(output.name for output in bundle.contract.outputs)
    plan = build_engine(library, bundle, names, BuildOptions()).plan
    if "outputs" in change:
        change = {"outputs": tuple(each for each in bundle.contract.outputs if each.name in change["outputs"])}
    other = Bundle(bundle.directory, replace(bundle.contract, **change))
    with pytest.raises(BackendError, match=words):
        open_plan(other, plan, DEFAULT, library, cuda)
    assert fake.cudart.used[0] == 0


def test_a_plan_is_opened_without_the_cache(fake: FakeRuntime, bundle: Bundle) -> None:
    library, cuda = load_library(), open_cuda()
    plan = build_engine(library, bundle, DEFAULT, BuildOptions()).plan
    engine = open_plan(bundle, plan, DEFAULT, library, cuda)
    assert engine.outputs == set(DEFAULT) and engine.run(frame(), ["void"])[0].shape == SHAPE[:3]
    with pytest.raises(BackendError, match="the engine computes labels, void, not msp"):
        engine.run(frame(), ["msp"])
    engine.close()
    with pytest.raises(BackendError, match="the engine computes labels, void, not msp"):
        open_plan(bundle, plan, ["msp"], library, cuda)
    assert fake.cudart.used[0] == 0


def test_a_gpu_that_faulted_is_said_to_be_lost(fake: FakeRuntime, bundle: Bundle) -> None:
    backend = opened(bundle)
    backend.run(frame(), DEFAULT)
    fake.cudart.fail["cudaEventSynchronize"] = 700
    with pytest.raises(BackendError, match=r"cudaErrorIllegalAddress \(700\).*restart the process"):
        backend.run(frame(), DEFAULT)
    fake.cudart.fail["cudaFree"] = fake.cudart.fail["cudaStreamDestroy"] = 700
    backend.close()  # nothing can be released any more, and that is no second error


def test_unknown_provider(fake: FakeRuntime, bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="unknown tensorrt provider 'dla'; known: "):
        opened(bundle, provider="dla")


def test_times_that_cannot_be_read_cost_no_frame(fake: FakeRuntime, bundle: Bundle) -> None:
    backend = opened(bundle)
    fake.cudart.fail["cudaEventElapsedTime"] = 400
    assert backend.run(frame(), DEFAULT)[0].shape == SHAPE[:3]
