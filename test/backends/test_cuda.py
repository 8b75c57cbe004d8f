"""The three bindings of CUDA give the same, each on a fake of NVIDIA's library; the real one where there is a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import fake_pycuda
import numpy as np
import pytest
from fake_cudart import COPY_MS, FakeCdll, FakeCudart, Gpu, install

from anomseg_ros.backends.cuda import Cuda, CudaError, HostMemory, open_cuda
from anomseg_ros.backends.cuda_bindings import RuntimeCuda
from anomseg_ros.backends.cuda_ctypes import load_runtime
from anomseg_ros.errors import BackendError

BINDINGS = ("cuda-python", "ctypes", "pycuda")
CAPTURING = ("cuda-python", "ctypes")


@pytest.fixture()
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCudart:
    """A fake runtime with two GPUs, found by the binding that `request.param` names and by no other."""
    return installed(
        request.param, FakeCudart(Gpu(), Gpu("Fake H100", (9, 0), 132, memory_bytes=80 << 30)), monkeypatch
    )


def installed(binding: str, cudart: FakeCudart, patch: pytest.MonkeyPatch) -> FakeCudart:
    for name in ("cuda", "cuda.bindings", "pycuda"):
        patch.setitem(sys.modules, name, None)

    def load(name: str) -> FakeCdll:
        if binding != "ctypes":
            raise OSError(f"{name}: cannot open shared object file")
        return FakeCdll(cudart)

    patch.setattr(ctypes, "CDLL", load)
    if binding == "cuda-python":
        install(patch, cudart)
    if binding == "pycuda":
        fake_pycuda.install(patch, fake_pycuda.FakeDriver(cudart))
    return cudart


every_binding = pytest.mark.parametrize("fake", BINDINGS, indirect=True)
capturing_bindings = pytest.mark.parametrize("fake", CAPTURING, indirect=True)


@every_binding
def test_a_gpu_is_described(fake: FakeCudart, request: pytest.FixtureRequest) -> None:
    cuda = open_cuda(1)
    assert cuda.binding.split(" ")[0] in request.node.name
    device = cuda.device
    assert (device.index, device.name, device.compute_capability) == (1, "Fake H100", "9.0")
    assert (device.multiprocessors, device.integrated, device.memory_bytes) == (132, False, 80 << 30)
    assert (device.driver_version, device.runtime_version) == (12060, 12060)


@every_binding
def test_bytes_go_there_and_back_in_order(fake: FakeCudart) -> None:
    cuda = open_cuda(1)
    with cuda.entered():
        stream, start, end = cuda.stream_create(), cuda.event_create(), cuda.event_create()
        given, taken = cuda.host_alloc(16, mapped=False), cuda.host_alloc(16, mapped=False)
        address = cuda.malloc(16)
        given.array[:] = np.arange(16)
        cuda.event_record(start, stream)
        cuda.copy_to_device_async(address, given.array, stream)
        cuda.copy_to_host_async(taken.array, address, stream)
        cuda.event_record(end, stream)
        assert not taken.array.any(), "nothing is done before somebody waits"
        cuda.event_synchronize(end)
        assert (taken.array == np.arange(16)).all()
        assert cuda.event_elapsed_ms(start, end) == 2 * COPY_MS
        total = cuda.device.memory_bytes
        assert cuda.memory_info() == (total - 16, total)
        for memory in (given, taken):
            cuda.host_free(memory)
        cuda.free(address)
        for event in (start, end):
            cuda.event_destroy(event)
        cuda.stream_destroy(stream)
        assert cuda.memory_info() == (total, total) and not fake.host
    cuda.close()


@every_binding
def test_mapped_memory_is_seen_by_the_gpu(fake: FakeCudart) -> None:
    cuda = open_cuda(0)
    with cuda.entered():
        memory = cuda.host_alloc(8, mapped=True)
        memory.array[:] = 7
        assert memory.device_address is not None
        assert (fake.bytes_at(memory.device_address, 8, 0) == 7).all()
        assert cuda.host_alloc(8, mapped=False).device_address is None


@every_binding
def test_each_thread_has_the_device_made_current(fake: FakeCudart) -> None:
    cuda, sizes = open_cuda(1), list[int]()

    def work() -> None:
        with cuda.entered():
            sizes.append(cuda.memory_info()[1])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert sizes == [80 << 30]


@capturing_bindings
def test_a_graph_repeats_what_was_captured_with_its_events(fake: FakeCudart) -> None:
    cuda = open_cuda(0)
    with cuda.entered():
        stream, done = cuda.stream_create(), cuda.event_create()
        marks = [cuda.event_create() for _ in range(2)]
        given, taken, address = cuda.host_alloc(4, mapped=False), cuda.host_alloc(4, mapped=False), cuda.malloc(4)

        def work() -> None:
            cuda.event_record(marks[0], stream, captured=True)
            cuda.copy_to_device_async(address, given.array, stream)
            cuda.copy_to_host_async(taken.array, address, stream)
            cuda.event_record(marks[1], stream, captured=True)

        graph = cuda.capture(stream, work)
        for value in (1, 2):
            given.array[:] = value
            cuda.launch(graph, stream)
            cuda.event_record(done, stream)
            cuda.event_synchronize(done)
            assert (taken.array == value).all() and cuda.event_elapsed_ms(*marks) == 2 * COPY_MS
        cuda.graph_destroy(graph)


@capturing_bindings
def test_a_capture_that_fails_leaves_the_stream_usable(fake: FakeCudart) -> None:
    cuda = open_cuda(0)
    with cuda.entered():
        stream = cuda.stream_create()
        with pytest.raises(CudaError, match="cudaMalloc failed: cudaErrorStreamCaptureUnsupported"):
            cuda.capture(stream, lambda: cuda.free(cuda.malloc(4)))
        taken, address, done = cuda.host_alloc(4, mapped=False), cuda.malloc(4), cuda.event_create()
        cuda.copy_to_host_async(taken.array, address, stream)
        cuda.event_record(done, stream)
        cuda.event_synchronize(done)


@pytest.mark.parametrize("fake", ["pycuda"], indirect=True)
def test_pycuda_says_that_it_has_no_graphs(fake: FakeCudart) -> None:
    cuda = open_cuda(0)
    with cuda.entered():
        stream = cuda.stream_create()
        for call in (lambda: cuda.capture(stream, lambda: None), lambda: cuda.launch(1, stream)):
            with pytest.raises(CudaError, match="pycuda cannot"):
                call()
    cuda.close()
    assert sys.modules["pycuda"].driver.depth.value == 0, "a context that stays pushed aborts the process at its end"


@every_binding
def test_memory_that_is_not_there(fake: FakeCudart) -> None:
    cuda = open_cuda(0)
    with cuda.entered(), pytest.raises(CudaError, match=r"out of memory; free memory of the GPU.*swap on a Jetson"):
        cuda.malloc(9 << 30)


@every_binding
def test_a_gpu_that_is_not_there(fake: FakeCudart) -> None:
    with pytest.raises(BackendError, match="there is no GPU 2; expected a device of 0 to 1"):
        open_cuda(2)


@every_binding
def test_no_gpu_at_all(fake: FakeCudart) -> None:
    fake.gpus = ()
    with pytest.raises(BackendError, match=r"no CUDA-capable device.*CUDA_VISIBLE_DEVICES.*--runtime nvidia"):
        open_cuda(0)


@capturing_bindings
def test_no_driver(fake: FakeCudart) -> None:
    fake.fail["cudaGetDeviceCount"] = 35
    with pytest.raises(BackendError, match=r"cudaErrorInsufficientDriver \(35\).*nvidia-smi.*--runtime nvidia"):
        open_cuda(0)


def test_pycuda_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = fake_pycuda.FakeDriver(installed("pycuda", FakeCudart(), monkeypatch))
    driver.no_device = True
    fake_pycuda.install(monkeypatch, driver)
    with pytest.raises(BackendError, match=r"cuInit failed: no CUDA-capable device is detected; no GPU can be seen"):
        open_cuda(0)


def test_a_binding_that_is_newer_than_the_driver_gives_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = FakeCudart()
    newer.fail["cudaGetDeviceCount"] = 35
    installed("ctypes", FakeCudart(), monkeypatch)
    install(monkeypatch, newer)
    assert open_cuda(0).binding.startswith("ctypes")


def test_a_runtime_that_does_not_work_gives_way_to_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    newer, older = FakeCudart(), FakeCudart()
    newer.fail["cudaGetDeviceCount"] = 35
    installed("ctypes", older, monkeypatch)
    libraries = {"libcudart.so.13": newer, "libcudart.so.12": older}

    def load(name: str) -> FakeCdll:
        if name not in libraries:
            raise OSError(name)
        return FakeCdll(libraries[name])

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert open_cuda(0).binding == "ctypes (libcudart.so.12)"
    older.fail["cudaGetDeviceCount"] = 100
    with pytest.raises(BackendError, match="cudaErrorInsufficientDriver"):
        open_cuda(0)


def test_pycuda_gives_the_context_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = fake_pycuda.FakeDriver(installed("pycuda", FakeCudart(), monkeypatch))
    fake_pycuda.install(monkeypatch, driver)
    cuda = open_cuda(0)
    assert driver.retained == 1
    cuda.close()
    cuda.close()
    assert driver.retained == 0


@capturing_bindings
def test_the_graph_of_work_that_fails_is_destroyed(fake: FakeCudart) -> None:
    cuda = open_cuda(0)

    def fails() -> None:
        raise RuntimeError("before anything was enqueued")

    with cuda.entered():
        stream = cuda.stream_create()
        before = len(fake.objects)
        with pytest.raises(RuntimeError, match="before anything"):
            cuda.capture(stream, fails)
        assert len(fake.objects) == before
        cuda.stream_destroy(stream)


def test_nothing_of_cuda_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed("none", FakeCudart(), monkeypatch)
    with pytest.raises(BackendError, match=r"no CUDA can be found.*libcudart.*pip install cuda-python"):
        open_cuda(0)


def runtimes() -> list[Any]:
    """Return NVIDIA's own libraries that can be loaded here."""
    found: list[Any] = []
    with contextlib.suppress(ImportError):
        found.append(importlib.import_module("cuda.bindings.runtime"))
    with contextlib.suppress(OSError):
        found.append(load_runtime())
    return found


def every_call(cuda: Any) -> dict[str, Callable[[], object]]:
    """Return calls with arguments of the right types, which mean nothing."""
    array, attributes = np.zeros(16, np.uint8), cuda._runtime.cudaDeviceAttr
    return {
        "cudaSetDevice": lambda: cuda._call("cudaSetDevice", 0),
        "cudaMalloc": lambda: cuda.malloc(16),
        "cudaFree": lambda: cuda.free(4096),
        "cudaHostAlloc": lambda: cuda.host_alloc(16, mapped=True),
        "cudaHostGetDevicePointer": lambda: cuda._call("cudaHostGetDevicePointer", array.ctypes.data, 0),
        "cudaFreeHost": lambda: cuda.host_free(HostMemory(array, None, array.ctypes.data)),
        "cudaStreamCreateWithFlags": cuda.stream_create,
        "cudaStreamDestroy": lambda: cuda.stream_destroy(8),
        "cudaMemcpyAsync": lambda: cuda.copy_to_device_async(4096, array, 8),
        "cudaStreamBeginCapture": lambda: cuda.capture(8, lambda: None),
        "cudaStreamEndCapture": lambda: cuda._call("cudaStreamEndCapture", 8),
        "cudaGraphInstantiateWithFlags": lambda: cuda._call("cudaGraphInstantiateWithFlags", 8, 0),
        "cudaGraphDestroy": lambda: cuda._call("cudaGraphDestroy", 8),
        "cudaGraphLaunch": lambda: cuda.launch(8, 8),
        "cudaGraphExecDestroy": lambda: cuda.graph_destroy(8),
        "cudaEventCreateWithFlags": cuda.event_create,
        "cudaEventRecord": lambda: cuda.event_record(8, 8),
        "cudaEventRecordWithFlags": lambda: cuda.event_record(8, 8, captured=True),
        "cudaEventSynchronize": lambda: cuda.event_synchronize(8),
        "cudaEventElapsedTime": lambda: cuda.event_elapsed_ms(8, 8),
        "cudaEventDestroy": lambda: cuda.event_destroy(8),
        "cudaMemGetInfo": cuda.memory_info,
        "cudaDeviceGetAttribute": lambda: cuda._call(
            "cudaDeviceGetAttribute", attributes.cudaDevAttrMultiProcessorCount, 0
        ),
        "cudaGetDeviceProperties": lambda: cuda._call("cudaGetDeviceProperties", 0),
    }


def test_the_real_libraries_take_our_arguments() -> None:
    """Without a driver each function answers that there is none, once its arguments are of the right types."""
    found = runtimes()
    if not found or any(int(runtime.cudaGetDeviceCount()[0]) == 0 for runtime in found):
        pytest.skip("no library of NVIDIA's, or a GPU, which would take these arguments seriously")
    for runtime in found:
        cuda = object.__new__(RuntimeCuda)
        cuda._runtime = runtime
        for name, call in every_call(cuda).items():
            with pytest.raises(CudaError, match=rf"{name} failed: cudaError") as caught:
                call()
            assert caught.value.code in (35, 100)


def real(open_one: Callable[[], Cuda]) -> Cuda:
    try:
        return open_one()
    except BackendError as error:
        pytest.skip(str(error))


def test_the_real_library_where_there_is_a_gpu() -> None:
    cuda = real(open_cuda)
    with cuda.entered():
        stream, done = cuda.stream_create(), cuda.event_create()
        given, taken, address = cuda.host_alloc(64, mapped=False), cuda.host_alloc(64, mapped=False), cuda.malloc(64)
        given.array[:] = np.arange(64)

        def work() -> None:
            cuda.copy_to_device_async(address, given.array, stream)
            cuda.copy_to_host_async(taken.array, address, stream)

        cuda.launch(cuda.capture(stream, work), stream)
        cuda.event_record(done, stream)
        cuda.event_synchronize(done)
        assert (taken.array == np.arange(64)).all()
