"""libcudart through ctypes, with the functions of cuda-python's `cuda.bindings.runtime` that cuda_bindings.py uses."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SONAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
PACKAGE_FOLDERS = ("cu13/lib", "cuda_runtime/lib")
"""Folders of the package `nvidia` that wheels put libcudart in."""

_SIZE, _POINTER, _INT, _UNSIGNED = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
_FUNCTIONS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    # name -> types of the results, which come first in C, and of the arguments
    "cudaGetDeviceCount": ((_INT,), ()),
    "cudaSetDevice": ((), (_INT,)),
    "cudaDeviceGetAttribute": ((_INT,), (_INT, _INT)),
    "cudaMalloc": ((_POINTER,), (_SIZE,)),
    "cudaFree": ((), (_POINTER,)),
    "cudaHostAlloc": ((_POINTER,), (_SIZE, _UNSIGNED)),
    "cudaHostGetDevicePointer": ((_POINTER,), (_POINTER, _UNSIGNED)),
    "cudaFreeHost": ((), (_POINTER,)),
    "cudaStreamCreateWithFlags": ((_POINTER,), (_UNSIGNED,)),
    "cudaStreamDestroy": ((), (_POINTER,)),
    "cudaMemcpyAsync": ((), (_POINTER, _POINTER, _SIZE, _INT, _POINTER)),
    "cudaStreamBeginCapture": ((), (_POINTER, _INT)),
    "cudaGraphInstantiateWithFlags": ((_POINTER,), (_POINTER, ctypes.c_ulonglong)),
    "cudaGraphLaunch": ((), (_POINTER, _POINTER)),
    "cudaGraphExecDestroy": ((), (_POINTER,)),
    "cudaGraphDestroy": ((), (_POINTER,)),
    "cudaEventCreateWithFlags": ((_POINTER,), (_UNSIGNED,)),
    "cudaEventRecord": ((), (_POINTER, _POINTER)),
    "cudaEventRecordWithFlags": ((), (_POINTER, _POINTER, _UNSIGNED)),
    "cudaEventSynchronize": ((), (_POINTER,)),
    "cudaEventElapsedTime": ((ctypes.c_float,), (_POINTER, _POINTER)),
    "cudaEventDestroy": ((), (_POINTER,)),
    "cudaMemGetInfo": ((_SIZE, _SIZE), ()),
    "cudaDriverGetVersion": ((_INT,), ()),
    "cudaRuntimeGetVersion": ((_INT,), ()),
    "cudaGetLastError": ((), ()),
}
_PROPERTIES_BYTES = 8192
"""More than cudaDeviceProp has in any version. The name is its first 256 bytes in all of them."""
_NAME_BYTES = 256


class CtypesRuntime:
    """The functions of libcudart; each returns a tuple of the status and the results."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrMultiProcessorCount=16,
        cudaDevAttrIntegrated=18,
        cudaDevAttrComputeCapabilityMajor=75,
        cudaDevAttrComputeCapabilityMinor=76,
    )

    def __init__(self, library: Any, file_name: str) -> None:
        self.file_name = file_name
        self._library = library
        for name, (results, arguments) in _FUNCTIONS.items():
            setattr(self, name, _function(getattr(library, name), results, arguments))
        self._end_capture = getattr(library, "cudaStreamEndCapture")  # noqa: B009
        self._end_capture.argtypes = [_POINTER, ctypes.POINTER(_POINTER)]
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            getattr(library, name).restype = ctypes.c_char_p

    def works(self) -> bool:
        """Return whether the library finds a driver that it can use, and a GPU."""
        status, count = self.cudaGetDeviceCount()  # type: ignore[attr-defined]
        return bool(status == 0 and count > 0)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int]:
        """Return the status and the graph, which comes last in C here."""
        graph = ctypes.c_void_p()
        return int(self._end_capture(stream, ctypes.byref(graph))), graph.value or 0

    def cudaGetDeviceProperties(self, index: int) -> tuple[int, SimpleNamespace]:
        """Return the status and the properties, of which there is only the name."""
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        status = int(self._library.cudaGetDeviceProperties(properties, index))
        return status, SimpleNamespace(name=properties.raw[:_NAME_BYTES].split(b"\0")[0])

    def cudaGetErrorName(self, status: int) -> tuple[int, bytes]:
        """Return a status and the name of an error, such as cudaErrorNoDevice."""
        return 0, self._library.cudaGetErrorName(int(status)) or b""

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        """Return a status and the description of an error."""
        return 0, self._library.cudaGetErrorString(int(status)) or b""


def load_runtime() -> CtypesRuntime:
    """Load libcudart of the system or of an installed wheel, the first that works with the driver.

    Where none works, the first that loads is returned, whose errors say why. Raises OSError where there is none.
    """
    loaded: list[CtypesRuntime] = []
    for name in _places():
        try:
            runtime = CtypesRuntime(ctypes.CDLL(name), Path(name).name)
        except (OSError, AttributeError):  # not there, or too old to have all functions
            continue
        if runtime.works():
            return runtime
        loaded.append(runtime)
    if not loaded:
        raise OSError(f"none of {', '.join(SONAMES)} can be loaded")
    return loaded[0]


def _places() -> Iterator[str]:
    yield from SONAMES
    if (found := ctypes.util.find_library("cudart")) is not None:
        yield found
    spec = importlib.util.find_spec("nvidia")
    for package in (spec.submodule_search_locations or ()) if spec is not None else ():
        for folder in PACKAGE_FOLDERS:
            yield from map(str, sorted(Path(package, folder).glob("libcudart.so.*")))


def _function(function: Any, results: tuple[Any, ...], arguments: tuple[Any, ...]) -> Callable[..., tuple[Any, ...]]:
    function.argtypes = [*map(ctypes.POINTER, results), *arguments]
    function.restype = ctypes.c_int

    def call(*given: Any) -> tuple[Any, ...]:
        values = [result() for result in results]
        status = function(*map(ctypes.byref, values), *given)
        return (int(status), *(value.value or 0 for value in values))

    return call
