"""One TensorRT engine on one GPU: its buffers, its stream and its captured graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends.cuda import LOST_REMEDY, MEMORY_REMEDY, Cuda, CudaError, HostMemory
from anomseg_ros.backends.graph_outputs import check_graph, next_outputs
from anomseg_ros.backends.tensorrt_library import Library, collected_errors, logger_of, one_line
from anomseg_ros.core.bundle import GRAPH_INPUT, Bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, first_line

DTYPES = {"UINT8": "uint8", "FLOAT": "float32"}
BUILD_REMEDY = "build it again on this computer: anomseg build BUNDLE"
_REFUSED = {
    # words of the library's log, in lower case -> what they mean
    ("version tag", "serialization version", "not compatible with this version", "expecting library version"): (
        f"it is of another version of TensorRT; {BUILD_REMEDY}"
    ),
    ("incompatible device", "expecting compute", "not compatible with this device", "compute capability"): (
        f"it was built for another GPU; {BUILD_REMEDY}"
    ),
    ("out of memory", "outofmemory", "could not find any implementation", "cannot allocate", "unable to allocate"): (
        MEMORY_REMEDY
    ),
    ("illegal memory access", "launch failure"): LOST_REMEDY,
}


class Times(NamedTuple):
    """Of one frame on the GPU, milliseconds."""

    upload_ms: float = 0.0
    compute_ms: float = 0.0
    download_ms: float = 0.0


@dataclass(frozen=True)
class _Buffer:
    """A tensor: page-locked memory as an array of its shape, and the address that the GPU uses."""

    view: npt.NDArray[Any]
    memory: HostMemory
    address: int


class TensorRtEngine:
    """Runs a plan; fulfils Backend. Frames take turns.

    On a card, a frame is copied to page-locked memory, uploaded and computed, and its outputs are downloaded. A GPU
    that shares the processor's memory uses the page-locked memory itself. All of that is one CUDA graph on one stream,
    which is captured anew when other outputs are wanted. If that fails, each step is enqueued by itself, and
    `cuda_graph` says why.
    """

    requested = actual = "tensorrt:gpu"

    def __init__(self, library: Library, cuda: Cuda, bundle: Bundle, plan: bytes, dla_core: int | None = None) -> None:
        """plan: of bundle's graph or of that graph cut to some outputs, for this DLA core. Raises BackendError."""
        self._library, self._cuda, self._name = library, cuda, bundle.contract.name
        self._dla_core = dla_core
        self._lock = threading.Lock()
        self._resources = ExitStack()
        self._downloads: frozenset[str] = frozenset()
        self._graph: int | None = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._is_prepared = False
        self._stream = self._done = 0
        self.cuda_graph = "not captured yet"
        self.times = Times()
        try:
            with cuda.entered():
                free_before, _ = cuda.memory_info()
                self._load(plan)
                self.outputs = self._checked_outputs(bundle)
                self._allocate(bundle)
                # What other programs took or freed meanwhile is in it; the library tells only parts of its own memory.
                self.device_memory_bytes = max(0, free_before - cuda.memory_info()[0])
        except BaseException:
            self.close()
            raise

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the engine; see Backend.run."""
        if tensor.shape != self._input.view.shape or tensor.dtype != np.uint8:
            raise BackendError(f"expected a uint8 {self._input.view.shape} tensor, got {tensor.dtype} {tensor.shape}")
        if not self.outputs.issuperset(outputs):
            raise BackendError(f"the engine computes {', '.join(sorted(self.outputs))}, not {', '.join(outputs)}")
        with self._lock, self._cuda.entered():
            np.copyto(self._input.view, tensor)
            self._start(frozenset(outputs))
            self._wait()
            with suppress(CudaError):  # a frame is not lost because nobody can time it
                self.times = Times(*map(self._cuda.event_elapsed_ms, self._marks, self._marks[1:]))
            # Copies, since the next frame is written to the same memory.
            return [self._buffers[name].view.copy() for name in outputs]

    def close(self) -> None:
        """Release everything on the GPU."""
        # After a fault of the GPU nothing of the process there can be released, and nothing needs to be.
        with self._lock, suppress(CudaError), self._cuda.entered():
            if self._done:  # a frame that failed may still be in work
                with suppress(CudaError):
                    self._wait()
            self._drop_graph()
            self._context = self._engine = self._runtime = None
            self._resources.close()
            self._stream = self._done = 0

    def _load(self, plan: bytes) -> None:
        make_runtime = self._library.module.Runtime
        self._runtime = self._made("cannot start, to load the engine", make_runtime, logger_of(self._library))
        if self._dla_core is not None:  # otherwise it runs on the first core, whatever it was built for
            self._runtime.DLA_core = self._dla_core
        self._engine = self._made("cannot load the engine", self._runtime.deserialize_cuda_engine, plan)
        self._context = self._made("cannot prepare the engine", self._engine.create_execution_context)

    def _checked_outputs(self, bundle: Bundle) -> frozenset[str]:
        """Return the engine's outputs. Raises BackendError unless they are as bundle.yaml says."""
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        kinds = {name: DTYPES.get(engine.get_tensor_dtype(name).name, "another type") for name in names}
        inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
        outputs = {name: kinds[name] for name in names if name not in inputs}
        known = {output.name: output.dtype for output in bundle.contract.outputs}
        check_graph(
            bundle,
            [(name, kinds[name], list(engine.get_tensor_shape(name))) for name in inputs],
            {**known, **outputs},  # an engine may have fewer, but no others
            {"uint8": "uint8", "float32": "float32"},
        )
        shape = (1, bundle.contract.input.height_px, bundle.contract.input.width_px)
        if not known.keys() >= outputs.keys() or {tuple(engine.get_tensor_shape(name)) for name in outputs} != {shape}:
            raise BackendError(f"the engine gives {outputs}, which is not what bundle {self._name!r} describes")
        return frozenset(outputs)

    def _allocate(self, bundle: Bundle) -> None:
        cuda, spec = self._cuda, bundle.contract.input
        shape = (1, spec.height_px, spec.width_px)
        self._stream = cuda.stream_create()
        self._resources.callback(cuda.stream_destroy, self._stream)
        events = [cuda.event_create() for _ in range(5)]
        for event in events:
            self._resources.callback(cuda.event_destroy, event)
        *self._marks, self._done = events
        self._input = self._buffer(GRAPH_INPUT, (*shape, 3), np.dtype(np.uint8))
        dtypes = {output.name: np.dtype(output.dtype) for output in bundle.contract.outputs}
        self._buffers: Mapping[str, _Buffer] = {
            name: self._buffer(name, shape, dtypes[name]) for name in sorted(self.outputs)
        }

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Buffer:
        """Allocate a tensor's memory, and have the engine use it."""
        cuda, size = self._cuda, int(np.prod(shape)) * dtype.itemsize
        memory = cuda.host_alloc(size, mapped=cuda.device.integrated)
        self._resources.callback(cuda.host_free, memory)
        address = memory.device_address
        if address is None:
            address = cuda.malloc(size)
            self._resources.callback(cuda.free, address)
        self._made(f"refuses memory for the tensor {name!r}", self._context.set_tensor_address, name, address)
        return _Buffer(memory.array.view(dtype).reshape(shape), memory, address)

    def _start(self, wanted: frozenset[str]) -> None:
        """Enqueue a frame."""
        outputs = next_outputs(wanted, self._downloads)
        if outputs is not None and not (self._cuda.device.integrated and self._is_prepared):
            self._prepare(outputs)
        if self._graph is None:
            self._enqueue(captured=False)
        else:
            self._cuda.launch(self._graph, self._stream)

    def _wait(self) -> None:
        """Sleep until all that was enqueued is done."""
        # This event is not in the graph: until a launch reaches such an event, it is still that of the frame before.
        self._cuda.event_record(self._done, self._stream)
        self._cuda.event_synchronize(self._done)

    def _prepare(self, outputs: frozenset[str]) -> None:
        """Run once, since TensorRT allocates at the first run and a capture forbids that; then capture."""
        self._drop_graph()
        self._downloads = outputs
        try:
            self._enqueue(captured=False)
            self._wait()
        except BackendError:
            self._downloads = frozenset()  # so that the next frame tries again
            raise
        try:
            self._graph = self._cuda.capture(self._stream, lambda: self._enqueue(captured=True))
            self.cuda_graph = "yes"
        except BackendError as error:
            self.cuda_graph = f"no: {first_line(error)}"
        self._is_prepared = True

    def _enqueue(self, captured: bool) -> None:
        """Enqueue upload, compute and download, with events between them."""
        cuda, stream, copies = self._cuda, self._stream, not self._cuda.device.integrated
        steps: tuple[Callable[[], None], ...] = (
            lambda: cuda.copy_to_device_async(self._input.address, self._input.memory.array, stream),
            self._compute,
            self._download,
        )
        for mark, step in zip(self._marks, steps, strict=False):
            cuda.event_record(mark, stream, captured)
            if copies or step == self._compute:
                step()
        cuda.event_record(self._marks[-1], stream, captured)

    def _compute(self) -> None:
        self._made("cannot run the engine", self._context.execute_async_v3, self._stream)

    def _download(self) -> None:
        for name in sorted(self._downloads):
            buffer = self._buffers[name]
            self._cuda.copy_to_host_async(buffer.memory.array, buffer.address, self._stream)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.graph_destroy(self._graph)
            self._graph = None

    def _made(self, failure: str, call: Callable[..., Any], *arguments: object) -> Any:
        """Return what a call of the library gives. Raises BackendError with what it logged, where that is nothing."""
        with collected_errors(self._library) as errors:
            try:
                made = call(*arguments)
            except Exception as error:  # a bare TypeError of pybind11, and the reason in the log
                raise BackendError(self._failure(failure, errors)) from error
        if made is None or made is False:
            raise BackendError(self._failure(failure, errors))
        return made

    def _failure(self, what: str, errors: Sequence[str]) -> str:
        """Return an error's message, with what the library logged and the remedy."""
        words = one_line("\n".join(errors)) or "it does not say why"
        lower = words.lower()
        remedies = [remedy for signs, remedy in _REFUSED.items() if any(sign in lower for sign in signs)]
        return "; ".join([f"{self._library.title} {what} of bundle {self._name!r}: {words}", *remedies[:1]])
