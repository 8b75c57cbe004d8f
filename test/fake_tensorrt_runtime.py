"""The runtime of the fake TensorRT: plans of fake_tensorrt.py run through ONNX Runtime, on memory of the fake CUDA.

Work is done when somebody waits for the stream, as everything of the fake CUDA is. What a user of the real one may not
do is an AssertionError: another thread's device, two frames in one context at once, a capture before the first run.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from fake_cudart import Failed, FakeCudart
from fake_cudart import install as install_cuda
from fake_tensorrt import DataType, Severity, TensorIOMode, read_plan
from fake_tensorrt import install as install_builder

OTHER_VERSION = (
    "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion stdVersionRead == "
    "kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: 239, Serialized Engine Version: "
    "237)"
)
OTHER_GPU = (
    "Error Code 6: The engine plan file is generated on an incompatible device, expecting compute 8.7 got compute 8.6, "
    "please rebuild."
)
NO_MEMORY = "Requested amount of GPU memory (1048576 bytes) could not be allocated: Error Code 2: OutOfMemory"
CONTEXT_BYTES, FIRST_RUN_BYTES = 1 << 20, 1 << 16
COMPUTE_MS = 2.0


@dataclass
class RuntimeFaults:
    """What goes wrong. The texts are logged by the step of that name, which then fails."""

    load: str = ""
    prepare: str = ""
    run: str = ""
    capture: str = ""


@dataclass
class FakeRuntime:
    """What a test sees. executes: False leaves outputs as they are, for many frames. counts: calls by name."""

    cudart: FakeCudart
    module: Any
    faults: RuntimeFaults = field(default_factory=RuntimeFaults)
    counts: Counter[str] = field(default_factory=Counter)
    executes: bool = True
    load_s: float = 0.0
    noise: float = 0.0


def install(patch: pytest.MonkeyPatch, *gpus: Any, version: str = "10.3.0") -> FakeRuntime:
    """Have `import tensorrt` and `from cuda.bindings import runtime` give fakes with these GPUs."""
    fake = FakeRuntime(FakeCudart(*gpus), install_builder(patch, version))
    install_cuda(patch, fake.cudart)

    class Runtime:
        DLA_core = -1

        def __init__(self, logger: Any) -> None:
            self._logger = logger
            fake.module.registry.register(self, logger)

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            fake.counts["load"] += 1
            time.sleep(fake.load_s)
            header, model = read_plan(plan)
            assert header["dla_core"] == self.DLA_core, "the runtime would take another DLA core than the builder"
            error = fake.faults.load or (OTHER_VERSION if header["version"] != fake.module.__version__ else "")
            if error:
                return _failed(fake, error)
            try:
                return Engine(fake, self, model)
            except Failed:
                return _failed(fake, NO_MEMORY)

    fake.module.Runtime = Runtime
    return fake


def _failed(fake: FakeRuntime, words: str) -> Any:
    fake.module.registry.log(Severity.ERROR, words)
    return None


@lru_cache(maxsize=32)
def _session(model: bytes) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


class Engine:
    def __init__(self, fake: FakeRuntime, runtime: Any, model: bytes) -> None:
        self.fake, self.runtime, self.session = fake, runtime, _session(model)
        self.device = fake.cudart.current()
        _hold(self, fake.cudart, len(model))
        self._tensors = {tensor.name: tensor for tensor in (*self.session.get_inputs(), *self.session.get_outputs())}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        is_input = name in [tensor.name for tensor in self.session.get_inputs()]
        return TensorIOMode.INPUT if is_input else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def get_tensor_dtype(self, name: str) -> DataType:
        return {"tensor(uint8)": DataType.UINT8, "tensor(float)": DataType.FLOAT}[self._tensors[name].type]

    def create_execution_context(self) -> Context | None:
        self.fake.counts["prepare"] += 1
        if self.fake.faults.prepare:
            return _failed(self.fake, self.fake.faults.prepare)
        try:
            return Context(self)
        except Failed:
            return _failed(self.fake, NO_MEMORY)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._fake = engine, engine.fake
        self._addresses: dict[str, int] = {}
        self._is_warm = False
        self._busy = threading.Lock()
        _hold(self, self._fake.cudart, CONTEXT_BYTES)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        cudart, engine, faults = self._fake.cudart, self._engine, self._fake.faults
        assert self._busy.acquire(blocking=False), "two threads enqueue in one context"
        try:
            assert cudart.current() == engine.device, "another device is current on this thread"
            stream = cudart.stream(stream_handle)
            capturing = stream.capturing is not None
            error = faults.run or (faults.capture if capturing else "")
            if capturing and not self._is_warm:
                error = "the first run allocates, which a capture forbids"
            if error:
                stream.spoiled = True
                _failed(self._fake, error)
                return False
            if not self._is_warm:
                _hold(self, cudart, FIRST_RUN_BYTES)
                self._is_warm = True
            self._fake.counts["captured" if capturing else "enqueued"] += 1
            cudart.enqueue(stream, self._compute)
            return True
        finally:
            self._busy.release()

    def _compute(self) -> None:
        cudart, session = self._fake.cudart, self._engine.session
        cudart.clock_ms[self._engine.device] += COMPUTE_MS
        self._fake.counts["computed"] += 1
        if not self._fake.executes:
            return
        (given,) = session.get_inputs()
        pixels = self._bytes(given.name, given.shape, np.dtype(np.uint8)).reshape(given.shape)
        for tensor, value in zip(session.get_outputs(), session.run(None, {given.name: pixels}), strict=True):
            if value.dtype != np.uint8:
                value = value + np.float32(self._fake.noise) * np.random.default_rng(0).standard_normal(
                    value.shape, np.float32
                )
            self._bytes(tensor.name, tensor.shape, value.dtype)[:] = np.ascontiguousarray(value).view(np.uint8).ravel()

    def _bytes(self, name: str, shape: Any, dtype: np.dtype[Any]) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        return self._fake.cudart.bytes_at(self._addresses[name], size, self._engine.device)


def _hold(owner: object, cudart: FakeCudart, size: int) -> None:
    """Have an object hold device memory until it is gone."""
    weakref.finalize(owner, cudart.release, cudart.allocate(size))


__all__ = ["NO_MEMORY", "OTHER_GPU", "OTHER_VERSION", "FakeRuntime", "RuntimeFaults", "install"]
