"""OpenVINO: runs model.onnx. Its int8 is faster than ONNX Runtime's on CPUs with VNNI, its float often as well.

`import openvino` (2026.4) reports itself over the network through the package openvino-telemetry, which pip installs
with it. Only its model converter does that. Running a graph does not need the converter, so the import leaves it out.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.graph_outputs import check_graph, keep_outputs, next_outputs
from anomseg_ros.core.bundle import GRAPH_FILE, GRAPH_INPUT, LABELS_OUTPUT, Bundle
from anomseg_ros.core.processor import has_exact_int8_for
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, unknown_name

REPORTING_MODULE = "openvino.tools.ovc"


@contextmanager
def _left_out(module: str) -> Iterator[None]:
    """Let imports of this module fail in the meantime, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with _left_out(REPORTING_MODULE):
    import openvino as ov

PROVIDERS = {"cpu": "CPU", "gpu": "GPU"}
"""Provider -> OpenVINO's device. Excludes NPU, which only has float16, and AUTO, which changes at run time."""

VERSION = ov.__version__.split("-")[0]

_FLOAT32 = "f32"
INT8_FORM = "LP_TRANSFORMS_MODE"
"""Whether layers of int8 bundles become int8 kernels. On processors without VNNI these overflow (core/processor.py).
OpenVINO has no exact ones, so that the layers are computed in float, on the same rounded values.
"""

_CORE = ov.Core()
"""The process's only core. Its CPU plugin (2026.4) gives the thread that loads it a signal stack, and unmaps that when
the core is destroyed. If another thread destroyed it, the next signal handler of the first would be a segmentation
fault.
"""


class OpenVinoBackend:
    """Runs model.onnx as a compiled model of OpenVINO.

    There is one compiled model at a time. It computes the scores that were requested last and, once requested, the
    labels; at first the labels and the default score. Other scores are compiled in about a second. A missing device is
    replaced by the CPU; `actual` shows the device and the precision in use. The options arena and spin have no effect.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        if options.provider not in PROVIDERS:
            raise BackendError(unknown_name("openvino provider", options.provider, PROVIDERS))
        self.requested = f"openvino:{options.provider}"
        self._bundle = bundle
        self._path = bundle.require_program(GRAPH_FILE)
        self._model = self._path.read_bytes()
        self._shape = (1, bundle.contract.input.height_px, bundle.contract.input.width_px, 3)
        self._core = _CORE
        self._device = _device_here(self._core, options.provider)
        self._settings = settings(self._device, options, has_exact_int8_for(bundle.contract))
        # The whole graph is checked before anything is cut off.
        graph = self._read(self._model)
        check_graph(
            bundle,
            [(_name_of(item), item.element_type.get_type_name(), _shape_of(item)) for item in graph.inputs],
            {name: item.element_type.get_type_name() for item in graph.outputs for name in item.names},
            {"uint8": "u8", "float32": _FLOAT32},
        )
        self._lock = threading.Lock()
        self._outputs: frozenset[str] = frozenset()
        self._prepare(frozenset({LABELS_OUTPUT, *bundle.contract.score_names[:1]}))
        self.actual = f"openvino:{_in_use(self._compiled)}"

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the graph; see Backend.run."""
        # OpenVINO converts other types silently.
        if tensor.shape != self._shape or tensor.dtype != np.uint8:
            raise BackendError(f"expected a uint8 {self._shape} tensor, got {tensor.dtype} {tensor.shape}")
        with self._lock:
            self._prepare(frozenset(outputs))
            try:
                self._request.infer({GRAPH_INPUT: tensor})
                # Copies, since the next frame is written to the same memory.
                return [np.array(self._request.get_tensor(name).data) for name in outputs]
            except Exception as error:  # openvino raises bare RuntimeError
                raise BackendError(f"openvino {VERSION} failed on {self._path}: {_one_line(error)}") from error

    def close(self) -> None:
        """Release the compiled model."""
        del self._request, self._compiled

    def _prepare(self, wanted: frozenset[str]) -> None:
        """Compile a model for the wanted outputs unless the current one fits."""
        outputs = next_outputs(wanted, self._outputs)
        if outputs is not None:
            self._compiled = self._compile(outputs)
            self._request = self._compiled.create_infer_request()
            self._outputs = outputs

    def _compile(self, outputs: Collection[str]) -> Any:
        model = self._read(keep_outputs(self._model, outputs))
        try:
            return self._core.compile_model(model, self._device, self._settings)
        except Exception as error:
            raise BackendError(
                f"openvino {VERSION} cannot compile {self._path} for its device {self._device}: "
                f"{_one_line(error)}; run it with --backend onnxruntime"
            ) from error

    def _read(self, model: bytes) -> Any:
        try:
            return self._core.read_model(model=model)
        except Exception as error:
            raise BackendError(
                f"{self._path} cannot be loaded by openvino {VERSION}: {_one_line(error)}; is it the graph that "
                "`anomseg export` wrote? If it is, run it with --backend onnxruntime"
            ) from error


def settings(device: str, options: BackendOptions, exact_int8: bool) -> dict[str, Any]:
    """Return the properties for compiling a model.

    exact_int8: whether the processor's int8 instructions compute its layers exactly.
    """
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # On a CPU with bfloat16, OpenVINO uses it for float graphs by default. Its 8 bits of mantissa change scores too
        # much for calibrated thresholds.
        "INFERENCE_PRECISION_HINT": _FLOAT32,
    }
    if device == PROVIDERS["cpu"]:
        if not exact_int8:
            properties[INT8_FORM] = "NO"
        # With pinning, the threads of every process and detector start at the first core.
        properties["ENABLE_CPU_PINNING"] = False
        if options.threads:
            properties["INFERENCE_NUM_THREADS"] = options.threads
    return properties


def _device_here(core: Any, provider: str) -> str:
    """Return the requested device, or the CPU where it is missing, as ONNX Runtime does."""
    cpu, wanted = PROVIDERS["cpu"], PROVIDERS[provider]
    if wanted == cpu:  # looking for devices loads every plugin
        return cpu
    return wanted if any(name.split(".")[0] == wanted for name in core.available_devices) else cpu


def _in_use(compiled: Any) -> str:
    """Return the devices of a compiled model, and its precision unless that is float32."""
    devices = "+".join(name.split(".")[0] for name in compiled.get_property("EXECUTION_DEVICES"))
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return devices.lower() + ("" if precision == _FLOAT32 else f" ({precision})")


def _name_of(item: Any) -> str:
    return " ".join(sorted(item.names))


def _shape_of(item: Any) -> list[Any]:
    return [size.get_length() if size.is_static else str(size) for size in item.partial_shape]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    # The names of missing operators come last, after everything that depends on them.
    return text.partition("Summary: ")[2].partition(" To facilitate")[0] or text[:500]
