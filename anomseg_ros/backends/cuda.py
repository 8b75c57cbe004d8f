"""Memory, streams and graphs of an NVIDIA GPU, by whichever of three bindings is installed.

open_cuda tries NVIDIA's cuda-python, then the library libcudart itself, then pycuda. All of them use the device's
primary context, which TensorRT and torch use as well. The current device belongs to a thread, so every call has to be
inside `with cuda.entered():`. Handles (streams, events, graphs) and addresses are integers. Nothing of NVIDIA is
imported before open_cuda is called.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from anomseg_ros.errors import BackendError

Bytes = npt.NDArray[np.uint8]

DRIVER_REMEDY = (
    "no NVIDIA driver is loaded, or it is too old for this CUDA: check nvidia-smi (on a Jetson, the JetPack version); "
    "start a container with --runtime nvidia or --gpus all"
)
MEMORY_REMEDY = "free memory of the GPU: close other programs, use a smaller input size, or add swap on a Jetson"
LOST_REMEDY = "the GPU's context of this process is lost; restart the process"
_REMEDIES = {
    2: MEMORY_REMEDY,
    35: DRIVER_REMEDY,
    46: "another process holds the GPU exclusively; end it, or set the compute mode to Default with nvidia-smi",
    100: "no GPU can be seen: check CUDA_VISIBLE_DEVICES, and start a container with --runtime nvidia or --gpus all",
    209: "this GPU is too old or too new for the installed CUDA; install the one that its driver came with",
    700: LOST_REMEDY,
    719: LOST_REMEDY,
    803: "the driver was updated without a restart; restart the machine",
    804: "the compatibility libraries do not fit this GPU; use the CUDA version of the driver",
}
NO_DEVICE, INSUFFICIENT_DRIVER, INVALID_DEVICE = 100, 35, 101


class CudaError(BackendError):
    """A call of CUDA failed. code: the number of cudaError_t, 0 where the binding does not give it."""

    def __init__(self, call: str, said: str, code: int = 0) -> None:
        remedy = _REMEDIES.get(code, "")
        super().__init__(f"{call} failed: {said}" + (f"; {remedy}" if remedy else ""))
        self.code = code


@dataclass(frozen=True)
class Device:
    """One GPU. integrated: it shares the processor's memory, as on a Jetson. Versions as CUDA numbers them: 12060."""

    index: int
    name: str
    compute_capability: str
    multiprocessors: int
    integrated: bool
    memory_bytes: int
    driver_version: int
    runtime_version: int


@dataclass(frozen=True)
class HostMemory:
    """Page-locked memory. array: uint8 (bytes,); device_address: where the GPU sees it, None unless mapped."""

    array: Bytes
    device_address: int | None
    address: int


class Cuda(Protocol):
    """One GPU as the backends use it. Every method raises CudaError."""

    @property
    def device(self) -> Device: ...

    @property
    def binding(self) -> str:
        """Name of the binding in use."""
        ...

    def entered(self) -> AbstractContextManager[None]:
        """Make the device current on this thread in the meantime."""
        ...

    def malloc(self, size: int) -> int:
        """Return the address of `size` bytes of device memory."""
        ...

    def free(self, address: int) -> None: ...

    def host_alloc(self, size: int, mapped: bool) -> HostMemory:
        """Return page-locked memory; mapped: the GPU reads and writes it without a copy."""
        ...

    def host_free(self, memory: HostMemory) -> None: ...

    def stream_create(self) -> int: ...

    def stream_destroy(self, stream: int) -> None: ...

    def copy_to_device_async(self, address: int, source: Bytes, stream: int) -> None: ...

    def copy_to_host_async(self, target: Bytes, address: int, stream: int) -> None: ...

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Return an executable graph of what `work` enqueues. After an error the stream is as it was before."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def graph_destroy(self, graph: int) -> None: ...

    def event_create(self) -> int:
        """Return an event that times, and that a waiting thread sleeps for."""
        ...

    def event_record(self, event: int, stream: int, captured: bool = False) -> None:
        """Record an event; captured: `stream` is being captured, and each launch of the graph records it anew."""
        ...

    def event_synchronize(self, event: int) -> None: ...

    def event_elapsed_ms(self, start: int, end: int) -> float: ...

    def event_destroy(self, event: int) -> None: ...

    def memory_info(self) -> tuple[int, int]:
        """Return the free and the total bytes of device memory."""
        ...

    def close(self) -> None: ...


def open_cuda(device: int = 0) -> Cuda:
    """Return the GPU of this index by the first binding that works.

    Raises BackendError where no binding is installed, no driver is loaded, or there is no such GPU.
    """
    missing, failed = [], []
    for opener in (_open_bindings, _open_ctypes, _open_pycuda):
        try:
            return opener(device)
        except (ImportError, OSError) as error:
            missing.append(" ".join(str(error).split()))
        except BackendError as error:  # such as a cuda-python that is newer than the driver; another one may work
            failed.append(error)
    if failed:
        raise failed[0]
    raise BackendError(
        f"no CUDA can be found ({'; '.join(missing)}): pip install cuda-python, in the version of the driver's CUDA, "
        "or start a container of JetPack or CUDA"
    )


def check_index(device: int, count: int) -> None:
    """Raise BackendError unless there is a GPU of this index among `count`."""
    if count < 1:
        raise CudaError("cudaGetDeviceCount", "no CUDA-capable device is detected", NO_DEVICE)
    if not 0 <= device < count:
        raise BackendError(f"there is no GPU {device}; expected a device of 0 to {count - 1}")


def _open_bindings(device: int) -> Cuda:
    from cuda.bindings import runtime

    from anomseg_ros.backends.cuda_bindings import RuntimeCuda

    return RuntimeCuda(runtime, "cuda-python", device)


def _open_ctypes(device: int) -> Cuda:
    from anomseg_ros.backends.cuda_bindings import RuntimeCuda
    from anomseg_ros.backends.cuda_ctypes import load_runtime

    runtime = load_runtime()
    return RuntimeCuda(runtime, f"ctypes ({runtime.file_name})", device)


def _open_pycuda(device: int) -> Cuda:
    from pycuda import driver

    from anomseg_ros.backends.cuda_pycuda import PyCuda

    return PyCuda(driver, device)
