"""A CUDA runtime without a GPU: the functions of `cuda.bindings.runtime`, on memory of the host.

Work is enqueued and done when somebody waits for it, so a result that is read too early is wrong. Each device has a
clock that only work moves. Misuse is an error as on a GPU: another thread's device, memory of another device, calls
that a capture forbids. It stands for NVIDIA's library alone.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

INVALID_VALUE, OUT_OF_MEMORY, INSUFFICIENT_DRIVER, NO_DEVICE, INVALID_DEVICE = 1, 2, 35, 100, 101
INVALID_CONTEXT, INVALID_HANDLE, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 201, 400, 900, 901
ERRORS = {
    0: ("cudaSuccess", "no error"),
    INVALID_VALUE: ("cudaErrorInvalidValue", "invalid argument"),
    OUT_OF_MEMORY: ("cudaErrorMemoryAllocation", "out of memory"),
    INSUFFICIENT_DRIVER: (
        "cudaErrorInsufficientDriver",
        "CUDA driver version is insufficient for CUDA runtime version",
    ),
    NO_DEVICE: ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
    INVALID_DEVICE: ("cudaErrorInvalidDevice", "invalid device ordinal"),
    INVALID_CONTEXT: ("cudaErrorDeviceUninitialized", "invalid device context"),
    INVALID_HANDLE: ("cudaErrorInvalidResourceHandle", "invalid resource handle"),
    700: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
    CAPTURE_UNSUPPORTED: ("cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"),
    CAPTURE_INVALIDATED: ("cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error"),
}
THREAD_LOCAL = 1
COPY_MS = 0.25


class Failed(Exception):
    """A call's status, inside the fake."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class Gpu:
    """What a fake device is."""

    name: str = "Fake Orin"
    compute_capability: tuple[int, int] = (8, 7)
    multiprocessors: int = 16
    integrated: bool = False
    memory_bytes: int = 8 << 30


@dataclass
class Stream:
    device: int
    queue: deque[Callable[[], None]] = field(default_factory=deque)
    capturing: list[Callable[[], None]] | None = None
    captured_by: int = 0
    spoiled: bool = False


@dataclass
class Event:
    device: int
    stream: Stream | None = None
    time_ms: float = -1.0


class FakeCudart:
    """The functions. calls: (thread, name) in order. fail: name -> status that its next calls return."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=THREAD_LOCAL)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrMultiProcessorCount=16,
        cudaDevAttrIntegrated=18,
        cudaDevAttrComputeCapabilityMajor=75,
        cudaDevAttrComputeCapabilityMinor=76,
    )

    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = gpus or (Gpu(),)
        self.calls: deque[tuple[str, str]] = deque(maxlen=10_000)
        self.counts: Counter[str] = Counter()
        self.fail: dict[str, int] = {}
        self.memory: dict[int, tuple[int, np.ndarray]] = {}
        self.host: dict[int, tuple[bool, np.ndarray]] = {}
        self.objects: dict[int, Any] = {}
        self.used = Counter[int]()
        self.clock_ms: dict[int, float] = defaultdict(float)
        self._lock = threading.RLock()
        self._thread = threading.local()
        self._next = 1000

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        body = getattr(type(self), f"_{name}", None)
        if body is None:
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            with self._lock:
                self.calls.append((threading.current_thread().name, name))
                self.counts[name] += 1
                try:
                    if self.fail.get(name):
                        raise Failed(self.fail[name])
                    result = body(self, *arguments)
                except Failed as failed:
                    return (failed.status, *[0] * RESULTS.get(name, 0))
            return (0, *(result if isinstance(result, tuple) else () if result is None else (result,)))

        return call

    def names(self, *but: str) -> list[str]:
        """Return the names of the calls in order."""
        return [name for _, name in self.calls if name not in but]

    # Devices

    def _cudaGetDeviceCount(self) -> int:
        return len(self.gpus)

    def _cudaSetDevice(self, index: int) -> None:
        if not 0 <= index < len(self.gpus):
            raise Failed(INVALID_DEVICE)
        self._thread.device = index

    def current(self) -> int:
        """Return this thread's device; unlike the real one, a thread has none at first."""
        device: int | None = getattr(self._thread, "device", None)
        if device is None:
            raise Failed(INVALID_CONTEXT)
        return device

    def _cudaDeviceGetAttribute(self, attribute: int, index: int) -> int:
        gpu, kinds = self.gpus[index], self.cudaDeviceAttr
        return {
            kinds.cudaDevAttrMultiProcessorCount: gpu.multiprocessors,
            kinds.cudaDevAttrIntegrated: int(gpu.integrated),
            kinds.cudaDevAttrComputeCapabilityMajor: gpu.compute_capability[0],
            kinds.cudaDevAttrComputeCapabilityMinor: gpu.compute_capability[1],
        }[attribute]

    def _cudaGetDeviceProperties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name=self.gpus[index].name.encode())

    def _cudaDriverGetVersion(self) -> int:
        return 12060

    def _cudaRuntimeGetVersion(self) -> int:
        return 12060

    def _cudaGetLastError(self) -> None:
        pass

    def _cudaGetErrorName(self, status: int) -> bytes:
        return ERRORS[int(status)][0].encode()

    def _cudaGetErrorString(self, status: int) -> bytes:
        return ERRORS[int(status)][1].encode()

    # Memory

    def allocate(self, size: int) -> int:
        """Return the address of device memory."""
        device, block = self.current(), np.zeros(size, np.uint8)
        with self._lock:
            if self.used[device] + size > self.gpus[device].memory_bytes:
                raise Failed(OUT_OF_MEMORY)
            self.used[device] += size
            self.memory[block.ctypes.data] = device, block
        return block.ctypes.data

    def release(self, address: int) -> None:
        """Give device memory back."""
        with self._lock:
            if address not in self.memory:
                raise Failed(INVALID_VALUE)
            device, block = self.memory.pop(address)
            self.used[device] -= block.nbytes

    def _cudaMalloc(self, size: int) -> int:
        self._not_while_capturing()
        return self.allocate(size)

    def _cudaFree(self, address: int) -> None:
        self.release(address)

    def _cudaHostAlloc(self, size: int, flags: int) -> int:
        self._not_while_capturing()
        self.current()
        block = np.zeros(size, np.uint8)
        self.host[block.ctypes.data] = flags == 2, block
        return block.ctypes.data

    def _cudaHostGetDevicePointer(self, address: int, flags: int) -> int:
        if not self.host[address][0]:
            raise Failed(INVALID_VALUE)
        return address

    def _cudaFreeHost(self, address: int) -> None:
        del self.host[address]

    def _cudaMemGetInfo(self) -> tuple[int, int]:
        device = self.current()
        total = self.gpus[device].memory_bytes
        return total - self.used[device], total

    def bytes_at(self, address: int, size: int, device: int) -> np.ndarray:
        """Return the memory that a kernel on a device sees at an address."""
        if address in self.memory:
            owner, block = self.memory[address]
        else:
            mapped, block = self.host[address]
            owner = device if mapped else -1
        if owner != device or size > block.nbytes:
            raise Failed(700)
        return block[:size]

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        on = self.stream(stream)
        device_end, host_end = (target, source) if kind == 1 else (source, target)
        if host_end not in self.host:
            raise Failed(INVALID_VALUE)  # the real one copies pageable memory, but not asynchronously
        here, there = self.bytes_at(device_end, size, on.device), self.host[host_end][1][:size]

        def copy() -> None:
            self.clock_ms[on.device] += COPY_MS
            (here if kind == 1 else there)[:] = there if kind == 1 else here

        self.enqueue(on, copy)

    # Streams, graphs, events

    def new(self, thing: Any) -> int:
        """Return a handle."""
        self._next += 8
        self.objects[self._next] = thing
        return self._next

    def stream(self, handle: int) -> Stream:
        """Return a stream of this thread's device."""
        found = self.objects.get(int(handle))
        if not isinstance(found, Stream) or found.device != self.current():
            raise Failed(INVALID_HANDLE)
        return found

    def enqueue(self, stream: Stream, work: Callable[[], None]) -> None:
        """Have work done when somebody waits, or by the graph that is being captured."""
        if stream.capturing is not None:
            if stream.captured_by != threading.get_ident():
                raise Failed(INVALID_HANDLE)
            stream.capturing.append(work)
        else:
            stream.queue.append(work)

    def _not_while_capturing(self) -> None:
        for thing in self.objects.values():
            capturing = isinstance(thing, Stream) and thing.capturing is not None
            if capturing and thing.captured_by == threading.get_ident():
                thing.spoiled = True
                raise Failed(CAPTURE_UNSUPPORTED)

    def _cudaStreamCreateWithFlags(self, flags: int) -> int:
        return self.new(Stream(self.current()))

    def _cudaStreamDestroy(self, stream: int) -> None:
        del self.objects[int(stream)]

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        assert mode == THREAD_LOCAL
        on = self.stream(stream)
        on.capturing, on.captured_by, on.spoiled = [], threading.get_ident(), False

    def _cudaStreamEndCapture(self, stream: int) -> int:
        on = self.stream(stream)
        recorded, on.capturing = on.capturing, None
        if recorded is None or on.spoiled:
            raise Failed(CAPTURE_INVALIDATED)
        return self.new(recorded)

    def _cudaGraphInstantiateWithFlags(self, graph: int, flags: int) -> int:
        return self.new(list(self.objects[graph]))

    def _cudaGraphDestroy(self, graph: int) -> None:
        del self.objects[graph]

    def _cudaGraphExecDestroy(self, graph: int) -> None:
        del self.objects[graph]

    def _cudaGraphLaunch(self, graph: int, stream: int) -> None:
        on = self.stream(stream)
        for work in self.objects[graph]:
            self.enqueue(on, work)

    def _cudaEventCreateWithFlags(self, flags: int) -> int:
        assert flags == 1, "a waiting thread would spin"
        return self.new(Event(self.current()))

    def _cudaEventRecord(self, event: int, stream: int) -> None:
        on, mark = self.stream(stream), self.objects[event]
        if on.capturing is not None:
            raise Failed(CAPTURE_UNSUPPORTED)  # it would only order the graph, and give no time
        self._record(mark, on)

    def _cudaEventRecordWithFlags(self, event: int, stream: int, flags: int) -> None:
        on, mark = self.stream(stream), self.objects[event]
        if flags != 1 or on.capturing is None:
            raise Failed(INVALID_VALUE)
        self._enqueue_mark(mark, on)  # and nobody can wait for it: until a launch gets there, it is the old one

    def _record(self, event: Event, stream: Stream) -> None:
        event.stream = stream
        self._enqueue_mark(event, stream)

    def _enqueue_mark(self, event: Event, stream: Stream) -> None:
        def mark() -> None:
            event.time_ms = self.clock_ms[stream.device]

        self.enqueue(stream, mark)

    def _cudaEventSynchronize(self, event: int) -> None:
        self._not_while_capturing()
        stream = self.objects[event].stream
        while stream is not None and stream.queue:
            stream.queue.popleft()()

    def _cudaEventElapsedTime(self, start: int, end: int) -> float:
        first, last = self.objects[start].time_ms, self.objects[end].time_ms
        if min(first, last) < 0:
            raise Failed(INVALID_HANDLE)
        return float(last - first)

    def _cudaEventDestroy(self, event: int) -> None:
        del self.objects[event]


RESULTS = {name: 1 for name in ("cudaGetDeviceCount", "cudaMalloc", "cudaHostAlloc", "cudaStreamEndCapture")}


class FakeCdll:
    """The same as a library that ctypes loads: results go where the pointers point."""

    def __init__(self, cudart: FakeCudart) -> None:
        self._cudart = cudart
        self._functions: dict[str, _CFunction] = {}

    def __getattr__(self, name: str) -> _CFunction:
        return self._functions.setdefault(name, _CFunction(self._cudart, name))


class _CFunction:
    argtypes: Any = None
    restype: Any = ctypes.c_int

    def __init__(self, cudart: FakeCudart, name: str) -> None:
        self._cudart, self._name = cudart, name

    def __call__(self, *arguments: Any) -> Any:
        targets = [item._obj for item in arguments if hasattr(item, "_obj")]
        given = [item for item in arguments if not hasattr(item, "_obj")]
        if self._name == "cudaGetDeviceProperties":
            buffer, given = given[0], given[1:]
        status, *results = getattr(self._cudart, self._name)(*given)
        if self._name.startswith("cudaGetError"):
            return results[0]
        if self._name == "cudaGetDeviceProperties":
            buffer.value = results[0].name
        for target, result in zip(targets, results, strict=False):
            target.value = result
        return status


def install(patch: pytest.MonkeyPatch, cudart: FakeCudart) -> None:
    """Have `from cuda.bindings import runtime` give this."""
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cudart  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    patch.setitem(sys.modules, "cuda.bindings", bindings)
