"""pycuda on the device's primary context, for machines where it is what is installed.

pycuda.autoinit is never imported: it makes a context of its own that stays on the thread, where TensorRT and other
libraries do not expect one. The primary context is pushed for each use and popped after it, on whatever thread that
is. pycuda cannot capture graphs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from anomseg_ros.backends.cuda import (
    INSUFFICIENT_DRIVER,
    INVALID_DEVICE,
    NO_DEVICE,
    Bytes,
    CudaError,
    Device,
    HostMemory,
    check_index,
)

NON_BLOCKING_STREAM = 1
OUT_OF_MEMORY, ILLEGAL_ADDRESS, LAUNCH_FAILURE = 2, 700, 719
_WORDS = {
    "out of memory": OUT_OF_MEMORY,
    "no CUDA-capable device": NO_DEVICE,
    "invalid device ordinal": INVALID_DEVICE,
    "insufficient": INSUFFICIENT_DRIVER,
    "illegal address": ILLEGAL_ADDRESS,
    "illegal memory access": ILLEGAL_ADDRESS,
    "launch fail": LAUNCH_FAILURE,
    "unspecified launch failure": LAUNCH_FAILURE,
}
"""Words of pycuda's messages -> the runtime's number of that error."""


class PyCuda:
    """Fulfils Cuda by `pycuda.driver`."""

    binding = "pycuda"

    def __init__(self, driver: Any, device: int) -> None:
        self._driver = driver
        self._handles: dict[int, Any] = {}
        self._is_closed = False
        with self._worded("cuInit"):
            driver.init()
            check_index(device, driver.Device.count())
            chosen = driver.Device(device)
            self._context = chosen.retain_primary_context()
        with self.entered(), self._worded("cuDeviceGetAttribute"):
            attributes = driver.device_attribute
            major, minor = chosen.compute_capability()
            self.device = Device(
                index=device,
                name=chosen.name(),
                compute_capability=f"{major}.{minor}",
                multiprocessors=int(chosen.get_attribute(attributes.MULTIPROCESSOR_COUNT)),
                integrated=bool(chosen.get_attribute(attributes.INTEGRATED)),
                memory_bytes=int(chosen.total_memory()),
                driver_version=int(driver.get_driver_version()),
                runtime_version=_as_number(driver.get_version()),
            )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """See Cuda.entered."""
        with self._worded("cuCtxPushCurrent"):
            self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def malloc(self, size: int) -> int:
        """See Cuda.malloc."""
        with self._worded("cuMemAlloc"):
            memory = self._driver.mem_alloc(size)
        return self._kept(int(memory), memory)

    def free(self, address: int) -> None:
        """Give device memory back."""
        with self._worded("cuMemFree"):
            self._handles.pop(address).free()

    def host_alloc(self, size: int, mapped: bool) -> HostMemory:
        """See Cuda.host_alloc."""
        flags = self._driver.host_alloc_flags.DEVICEMAP if mapped else 0
        with self._worded("cuMemHostAlloc"):
            array = self._driver.pagelocked_empty(size, np.uint8, mem_flags=flags)
            seen_at = int(array.base.get_device_pointer()) if mapped else None
        return HostMemory(array, seen_at, self._kept(array.ctypes.data, array.base))

    def host_free(self, memory: HostMemory) -> None:
        """Give page-locked memory back; its array must not be used afterwards."""
        with self._worded("cuMemFreeHost"):
            self._handles.pop(memory.address).free()

    def stream_create(self) -> int:
        """Return a stream that does not wait for the default stream."""
        with self._worded("cuStreamCreate"):
            stream = self._driver.Stream(NON_BLOCKING_STREAM)
        return self._kept(int(stream.handle), stream)

    def stream_destroy(self, stream: int) -> None:
        """Destroy a stream."""
        del self._handles[stream]

    def copy_to_device_async(self, address: int, source: Bytes, stream: int) -> None:
        """Enqueue a copy from page-locked memory."""
        with self._worded("cuMemcpyHtoDAsync"):
            self._driver.memcpy_htod_async(address, source, self._handles[stream])

    def copy_to_host_async(self, target: Bytes, address: int, stream: int) -> None:
        """Enqueue a copy to page-locked memory."""
        with self._worded("cuMemcpyDtoHAsync"):
            self._driver.memcpy_dtoh_async(target, address, self._handles[stream])

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Raise CudaError: pycuda has no capture."""
        raise CudaError("capture", "pycuda cannot capture graphs; cuda-python can")

    def launch(self, graph: int, stream: int) -> None:
        """Raise CudaError: there are no graphs."""
        raise CudaError("launch", "pycuda cannot launch graphs")

    def graph_destroy(self, graph: int) -> None:
        """Nothing to destroy: there are no graphs."""

    def event_create(self) -> int:
        """See Cuda.event_create."""
        with self._worded("cuEventCreate"):
            event = self._driver.Event(self._driver.event_flags.BLOCKING_SYNC)
        return self._kept(id(event), event)

    def event_record(self, event: int, stream: int, captured: bool = False) -> None:
        """Record an event; nothing is ever captured here."""
        with self._worded("cuEventRecord"):
            self._handles[event].record(self._handles[stream])

    def event_synchronize(self, event: int) -> None:
        """Sleep until what was enqueued before the event is done."""
        with self._worded("cuEventSynchronize"):
            self._handles[event].synchronize()

    def event_elapsed_ms(self, start: int, end: int) -> float:
        """Return the time between two events, milliseconds."""
        with self._worded("cuEventElapsedTime"):
            return float(self._handles[end].time_since(self._handles[start]))

    def event_destroy(self, event: int) -> None:
        """Destroy an event."""
        del self._handles[event]

    def memory_info(self) -> tuple[int, int]:
        """See Cuda.memory_info."""
        with self._worded("cuMemGetInfo"):
            free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def close(self) -> None:
        """Release the primary context. pycuda needs it current while it drops what is left."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(CudaError), self.entered():
            self._handles.clear()
        with suppress(CudaError), self._worded("cuDevicePrimaryCtxRelease"):
            self._context.detach()

    def _kept(self, handle: int, owner: Any) -> int:
        """Keep pycuda's object, which frees what it stands for when it is dropped."""
        self._handles[handle] = owner
        return handle

    @contextmanager
    def _worded(self, call: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:  # every class of pycuda's errors, MemoryError among them
            said = " ".join(str(error).split())
            code = next((number for words, number in _WORDS.items() if words in said), 0)
            name = re.match(r"(cu\w+) failed: (.*)", said)
            raise CudaError(name[1] if name else call, name[2] if name else said, code) from error


def _as_number(version: tuple[int, ...]) -> int:
    """Return (12, 6, 0) as 12060."""
    return version[0] * 1000 + version[1] * 10
