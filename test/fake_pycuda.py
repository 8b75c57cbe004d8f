"""`pycuda.driver` on the fake CUDA runtime: contexts are pushed and popped, and nothing works without one."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cudart import Failed, FakeCudart


class FakeDriver:
    """The module. stacks: thread -> depth of its stack of contexts."""

    class Error(Exception):
        """Of this every error of pycuda is."""

    device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT=16, INTEGRATED=18)
    host_alloc_flags = SimpleNamespace(DEVICEMAP=2)
    event_flags = SimpleNamespace(BLOCKING_SYNC=1)

    def __init__(self, cudart: FakeCudart) -> None:
        self.cudart = cudart
        self.depth = threading.local()
        self.no_device = False
        self.retained = 0
        self.Device = _device_class(self)

    def init(self) -> None:
        if self.no_device:
            raise self.Error("cuInit failed: no CUDA-capable device is detected")

    def get_driver_version(self) -> int:
        return 12060

    def get_version(self) -> tuple[int, int, int]:
        return 12, 6, 0

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the runtime in the current context."""
        if not getattr(self.depth, "value", 0):
            raise self.Error(f"{name} failed: invalid device context")
        status, *results = getattr(self.cudart, name)(*arguments)
        if status:
            said = {2: "out of memory", 700: "an illegal memory access was encountered"}.get(status, f"error {status}")
            raise self.Error(f"{name} failed: {said}")
        return results[0] if len(results) == 1 else tuple(results)

    def mem_alloc(self, size: int) -> Any:
        return _Memory(self, self.call("cudaMalloc", size), "cudaFree")

    def pagelocked_empty(self, size: int, dtype: Any, mem_flags: int = 0) -> np.ndarray:
        address = self.call("cudaHostAlloc", size, mem_flags)
        array = self.cudart.host[address][1].view(_Owned)
        array.owner = _Memory(self, address, "cudaFreeHost")
        return array

    def mem_get_info(self) -> Any:
        return self.call("cudaMemGetInfo")

    def memcpy_htod_async(self, target: int, source: np.ndarray, stream: Any) -> None:
        self.call("cudaMemcpyAsync", target, source.ctypes.data, source.nbytes, 1, stream.handle)

    def memcpy_dtoh_async(self, target: np.ndarray, source: int, stream: Any) -> None:
        self.call("cudaMemcpyAsync", target.ctypes.data, source, target.nbytes, 2, stream.handle)

    def Stream(self, flags: int) -> Any:
        return SimpleNamespace(handle=self.call("cudaStreamCreateWithFlags", flags))

    def Event(self, flags: int) -> Any:
        return _Event(self, self.call("cudaEventCreateWithFlags", flags))


class _Owned(np.ndarray):
    owner: Any = None

    @property
    def base(self) -> Any:
        return self.owner


class _Memory:
    def __init__(self, driver: FakeDriver, address: int, frees: str) -> None:
        self._driver, self._address, self._frees = driver, address, frees

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._driver.call(self._frees, self._address)

    def get_device_pointer(self) -> int:
        return int(self._driver.call("cudaHostGetDevicePointer", self._address, 0))


class _Event:
    def __init__(self, driver: FakeDriver, handle: int) -> None:
        self._driver, self._handle = driver, handle

    def record(self, stream: Any) -> None:
        self._driver.call("cudaEventRecord", self._handle, stream.handle)

    def synchronize(self) -> None:
        self._driver.call("cudaEventSynchronize", self._handle)

    def time_since(self, start: _Event) -> float:
        return float(self._driver.call("cudaEventElapsedTime", start._handle, self._handle))


def _device_class(driver: FakeDriver) -> Any:
    class Device:
        def __init__(self, index: int) -> None:
            self._index, self._gpu = index, driver.cudart.gpus[index]

        @staticmethod
        def count() -> int:
            return len(driver.cudart.gpus)

        def name(self) -> str:
            return self._gpu.name

        def compute_capability(self) -> tuple[int, int]:
            return self._gpu.compute_capability

        def total_memory(self) -> int:
            return self._gpu.memory_bytes

        def get_attribute(self, attribute: int) -> int:
            return int(driver.call("cudaDeviceGetAttribute", attribute, self._index))

        def retain_primary_context(self) -> Any:
            driver.retained += 1
            return SimpleNamespace(push=self._push, pop=self._pop, detach=self._detach)

        def _detach(self) -> None:
            assert driver.retained, "detached more often than retained"
            driver.retained -= 1

        def _push(self) -> None:
            driver.cudart.cudaSetDevice(self._index)
            driver.depth.value = getattr(driver.depth, "value", 0) + 1

        def _pop(self) -> None:
            driver.depth.value -= 1

    return Device


def install(patch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    """Have `from pycuda import driver` give this, and `import pycuda.autoinit` fail."""
    package = ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "pycuda", package)
    patch.setitem(sys.modules, "pycuda.autoinit", None)


__all__ = ["Failed", "FakeDriver", "install"]
