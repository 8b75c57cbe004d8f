"""The CUDA runtime through functions as cuda-python's `cuda.bindings.runtime` has them.

Each function returns a tuple: the status, then its results. cuda_ctypes.py gives the same functions for libcudart.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from anomseg_ros.backends.cuda import Bytes, CudaError, Device, HostMemory, check_index

NON_BLOCKING_STREAM = 1
BLOCKING_EVENT = 1
MAPPED_HOST_MEMORY = 2
EXTERNAL_EVENT = 1
"""cudaEventRecordExternal: a node of the graph records the event at each launch."""


class RuntimeCuda:
    """Fulfils Cuda by the runtime API, whose context is the device's primary one."""

    def __init__(self, runtime: Any, binding: str, device: int) -> None:
        self.binding = binding
        self._runtime = runtime
        check_index(device, int(self._call("cudaGetDeviceCount")))
        with self._current(device):
            self.device = self._described(device)

    @contextmanager
    def _current(self, index: int) -> Iterator[None]:
        self._call("cudaSetDevice", index)
        yield

    def entered(self) -> Any:
        """See Cuda.entered. cudaSetDevice is expected to cost little where the device is current already."""
        return self._current(self.device.index)

    def malloc(self, size: int) -> int:
        """See Cuda.malloc."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._call("cudaFree", address)

    def host_alloc(self, size: int, mapped: bool) -> HostMemory:
        """See Cuda.host_alloc."""
        address = int(self._call("cudaHostAlloc", size, MAPPED_HOST_MEMORY if mapped else 0))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        seen_at = int(self._call("cudaHostGetDevicePointer", address, 0)) if mapped else None
        return HostMemory(array, seen_at, address)

    def host_free(self, memory: HostMemory) -> None:
        """Give page-locked memory back; its array must not be used afterwards."""
        self._call("cudaFreeHost", memory.address)

    def stream_create(self) -> int:
        """Return a stream that does not wait for the default stream."""
        return int(self._call("cudaStreamCreateWithFlags", NON_BLOCKING_STREAM))

    def stream_destroy(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)

    def copy_to_device_async(self, address: int, source: Bytes, stream: int) -> None:
        """Enqueue a copy from page-locked memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, stream)

    def copy_to_host_async(self, target: Bytes, address: int, stream: int) -> None:
        """Enqueue a copy to page-locked memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, kind, stream)

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """See Cuda.capture. Thread-local: what other threads do in the meantime does not spoil the capture."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            # Takes the stream out of the capture. Its own error says less than the one that led here.
            status, unfinished = self._runtime.cudaStreamEndCapture(stream)
            if int(status) == 0 and int(unfinished):
                self._runtime.cudaGraphDestroy(unfinished)
            self._runtime.cudaGetLastError()
            raise
        graph = int(self._call("cudaStreamEndCapture", stream))
        try:
            return int(self._call("cudaGraphInstantiateWithFlags", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """Enqueue a graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def graph_destroy(self, graph: int) -> None:
        """Destroy an executable graph."""
        self._call("cudaGraphExecDestroy", graph)

    def event_create(self) -> int:
        """See Cuda.event_create."""
        return int(self._call("cudaEventCreateWithFlags", BLOCKING_EVENT))

    def event_record(self, event: int, stream: int, captured: bool = False) -> None:
        """See Cuda.event_record."""
        if captured:
            self._call("cudaEventRecordWithFlags", event, stream, EXTERNAL_EVENT)
        else:
            self._call("cudaEventRecord", event, stream)

    def event_synchronize(self, event: int) -> None:
        """Sleep until what was enqueued before the event is done."""
        self._call("cudaEventSynchronize", event)

    def event_elapsed_ms(self, start: int, end: int) -> float:
        """Return the time between two events, milliseconds."""
        return float(self._call("cudaEventElapsedTime", start, end))

    def event_destroy(self, event: int) -> None:
        """Destroy an event."""
        self._call("cudaEventDestroy", event)

    def memory_info(self) -> tuple[int, int]:
        """See Cuda.memory_info."""
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def close(self) -> None:
        """Nothing to release: the primary context is the process's."""

    def _described(self, index: int) -> Device:
        attributes = self._runtime.cudaDeviceAttr

        def attribute(name: str) -> int:
            return int(self._call("cudaDeviceGetAttribute", getattr(attributes, name), index))

        name = self._call("cudaGetDeviceProperties", index).name
        major, minor = (attribute(f"cudaDevAttrComputeCapability{part}") for part in ("Major", "Minor"))
        return Device(
            index=index,
            name=name.decode(errors="replace") if isinstance(name, bytes) else str(name),
            compute_capability=f"{major}.{minor}",
            multiprocessors=attribute("cudaDevAttrMultiProcessorCount"),
            integrated=bool(attribute("cudaDevAttrIntegrated")),
            memory_bytes=self.memory_info()[1],
            driver_version=int(self._call("cudaDriverGetVersion")),
            runtime_version=int(self._call("cudaRuntimeGetVersion")),
        )

    def _call(self, name: str, *arguments: object) -> Any:
        """Return a function's result, a tuple where there are several. Raises CudaError."""
        status, *results = getattr(self._runtime, name)(*arguments)
        if int(status) != 0:
            self._runtime.cudaGetLastError()  # or the next call would report it again
            raise CudaError(name, self._said(status), int(status))
        return results[0] if len(results) == 1 else tuple(results)

    def _said(self, status: Any) -> str:
        name, text = (
            said.decode(errors="replace") if isinstance(said, bytes) else str(said)
            for said in (getattr(self._runtime, f"cudaGetError{part}")(status)[1] for part in ("Name", "String"))
        )
        return f"{name} ({int(status)}), {text}"
