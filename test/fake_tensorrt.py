"""A small fake of the Python module `tensorrt`: a plan is a JSON header and the ONNX model that was parsed.

What the real library does without a GPU (parse, build, monitor, log) is imitated as TensorRT-RTX 1.7.1 was seen to do
it, and with one as its documentation says. `read_plan` gives back the model, for a fake of the runtime that executes it
through ONNX Runtime.
"""

from __future__ import annotations

import enum
import json
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import onnx
import pytest

MAGIC = b"fake plan "
NO_DRIVER = "CUDA initialization failure with error: 35. Please check your CUDA installation"
NO_IMPLEMENTATION = "Error Code 10: Internal Error (Could not find any implementation for node node_conv2d.)"


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    pass


class Registry:
    """The one logger of a library: the first of its builders and runtimes, until the last of them is gone.

    A freed logger stays registered. The real library crashes when it calls it, or does not; here that is an error.
    """

    def __init__(self) -> None:
        self._users = weakref.WeakSet[Any]()
        self._logger: Callable[[], ILogger | None] = lambda: None

    def register(self, user: object, logger: ILogger) -> None:
        """Note a builder or runtime; it keeps its own logger alive."""
        if not len(self._users):
            self._logger = weakref.ref(logger)
        elif self._logger() is not logger:
            self.log(Severity.WARNING, "The logger passed in differs from one already registered, and is ignored.")
        self._users.add(user)

    def log(self, severity: Severity, words: str) -> None:
        """Call the logger, as whoever the words are about."""
        logger = self._logger()
        assert logger is not None, "a logger that is freed is called"
        logger.log(severity, words)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    GPU_FALLBACK = 2
    TF32 = 5


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class DeviceType(enum.IntEnum):
    GPU = 0
    DLA = 1


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    UINT8 = 5
    INT64 = 8


_TYPES = {1: DataType.FLOAT, 2: DataType.UINT8, 3: DataType.INT8, 6: DataType.INT32, 7: DataType.INT64}


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class LayerType(enum.IntEnum):
    CONVOLUTION = 0
    CAST = 1
    ELEMENTWISE = 2


@dataclass
class Faults:
    """What goes wrong. build_error: logged by the builder, which then returns None. in_phase_start: a callback runs it;
    exceptions of callbacks that return nothing are lost, as in the real library. dla_cores: that the machine has."""

    no_driver: bool = False
    build_error: str = ""
    in_phase_start: Callable[[], None] = lambda: None
    dla_cores: int = 2


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: DataType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    name: str
    type: LayerType


@dataclass(frozen=True)
class ParserError:
    index: int
    name: str
    operator: str
    words: str

    def desc(self) -> str:
        return self.words

    def node(self) -> int:
        return self.index

    def node_name(self) -> str:
        return self.name

    def node_operator(self) -> str:
        return self.operator


@dataclass
class Network:
    flags: int
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    model: bytes = b""

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self._network, self._errors = network, list[ParserError]()

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes) -> bool:
        try:
            graph = onnx.load_model_from_string(model).graph
        except Exception:
            self._errors.append(ParserError(-1, "", "", "Failed to parse the ONNX model."))
            return False
        self._network.inputs, self._network.outputs = [
            [_tensor(value) for value in values] for values in (graph.input, graph.output)
        ]
        pixels = {tensor.name for tensor in self._network.inputs if tensor.dtype == DataType.UINT8}
        for index, node in enumerate(graph.node):
            if pixels & set(node.input) and node.op_type != "Cast":
                words = f"{node.name}: first input has type UInt8 but must have type Float"
                self._errors.append(ParserError(index, node.name, node.op_type, words))
                return False
            kind = {"Conv": LayerType.CONVOLUTION, "Cast": LayerType.CAST}.get(node.op_type, LayerType.ELEMENTWISE)
            self._network.layers.append(Layer(node.name, kind))
        self._network.model = model
        return True


class Memory(bytes):
    """IHostMemory: bytes, with their number."""

    @property
    def nbytes(self) -> int:
        return len(self)


@dataclass
class TimingCache:
    content: bytes

    def serialize(self) -> Memory:
        return Memory(self.content)


class BuilderConfig:
    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.pools: dict[MemoryPoolType, int] = {}
        self.progress_monitor: Any = None
        self.default_device_type = DeviceType.GPU
        self.DLA_core = -1
        self.timing_cache: TimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.pools[pool] = size

    def create_timing_cache(self, content: bytes) -> TimingCache:
        return TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if cache.content.startswith(b"of another GPU"):
            return False
        self.timing_cache = TimingCache(cache.content)
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.timing_cache

    def get_device_type(self, layer: Layer) -> DeviceType:
        return self.default_device_type

    def can_run_on_DLA(self, layer: Layer) -> bool:
        return layer.type == LayerType.CONVOLUTION


def fake_tensorrt(version: str = "10.3.0", faults: Faults | None = None, name: str = "tensorrt") -> Any:
    """Return a module. Its `builds` lists (header, timing cache given) of each engine that was built."""
    module: Any = ModuleType(name)
    module.__version__ = version
    module.faults = faults or Faults()
    module.builds = []
    module.registry = Registry()
    flags = (NetworkDefinitionCreationFlag, BuilderFlag, MemoryPoolType)
    parts = (ILogger, IProgressMonitor, *flags, DeviceType, DataType)
    for part in (*parts, TensorIOMode, LayerType, OnnxParser):
        setattr(module, part.__name__, part)

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self._logger = logger
            module.registry.register(self, logger)
            if module.faults.no_driver:
                module.registry.log(Severity.ERROR, NO_DRIVER)
                raise TypeError("pybind11::init(): factory function returned nullptr")

        num_DLA_cores = property(lambda self: module.faults.dla_cores)

        def create_network(self, flags: int = 0) -> Network:
            return Network(flags)

        def create_builder_config(self) -> BuilderConfig:
            return BuilderConfig()

        def build_serialized_network(self, network: Network, config: BuilderConfig) -> Memory | None:
            if not _monitored(config.progress_monitor, module.faults.in_phase_start):
                module.registry.log(Severity.ERROR, "Error Code 7: BuildCanceled (Build canceled by user)")
                return None
            if module.faults.build_error:
                words = Severity.ERROR, module.faults.build_error
                _on_a_thread(lambda: module.registry.log(*words))
                return None
            header = _header(module.__version__, network, config)
            module.builds.append((header, config.timing_cache and config.timing_cache.content))
            if config.timing_cache is not None:
                config.timing_cache.content += b"+timings"
            return Memory(MAGIC + json.dumps(header).encode() + b"\n" + network.model)

    module.Builder = Builder
    return module


def install(monkeypatch: pytest.MonkeyPatch, version: str = "10.3.0", faults: Faults | None = None) -> Any:
    """Have `import tensorrt` give a fake, and return it."""
    module = fake_tensorrt(version, faults)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def read_plan(plan: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the ONNX model of a plan. Raises ValueError for anything else."""
    if not plan.startswith(MAGIC):
        raise ValueError("no plan of the fake")
    header, _, model = plan[len(MAGIC) :].partition(b"\n")
    return json.loads(header), model


def _header(version: str, network: Network, config: BuilderConfig) -> dict[str, Any]:
    return {
        "version": version,
        "strongly_typed": bool(network.flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        "flags": sorted(flag.name for flag in config.flags),
        "workspace": config.pools.get(MemoryPoolType.WORKSPACE),
        "outputs": sorted(tensor.name for tensor in network.outputs),
        "dla_core": config.DLA_core,
    }


def _monitored(monitor: Any, in_phase_start: Callable[[], None]) -> bool:
    """Go through nested phases as the library does, two of them at once; return whether the monitor let them pass."""
    if monitor is None:
        return True
    answers: list[bool] = []

    def step(name: str, index: int) -> None:
        if all(answers):
            try:
                answers.append(bool(monitor.step_complete(name, index)))
            except BaseException:  # the library prints it, and takes it for a no
                answers.append(False)

    def inner(name: str) -> None:
        _lost(monitor.phase_start, name, "Building engine", 4)
        for index in range(4):
            step(name, index)
        _lost(monitor.phase_finish, name)

    def first() -> None:
        in_phase_start()
        monitor.phase_start("Building engine", None, 2)

    _lost(first)
    step("Building engine", 0)
    _on_a_thread(lambda: inner("Timing tactics"), meanwhile=lambda: inner("Timing other tactics"))
    step("Building engine", 1)
    _lost(monitor.phase_finish, "Building engine")
    return all(answers)


def _lost(callback: Callable[..., None], *arguments: object) -> None:
    """Call what returns nothing; the library prints its exceptions and goes on."""
    try:
        callback(*arguments)
    except BaseException:
        return


def _on_a_thread(work: Callable[[], None], meanwhile: Callable[[], None] = lambda: None) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    meanwhile()
    thread.join()


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    return Tensor(value.name, _TYPES[kind.elem_type], tuple(dim.dim_value for dim in kind.shape.dim))
