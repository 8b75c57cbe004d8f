"""OpenVINO: runs model.onnx; int8 faster than ONNX Runtime does on CPUs with VNNI instructions, float often as well.

`import openvino` (2026.4) reports itself over the network, unasked, through the package openvino-telemetry, which pip
installs with it. Only the model converter does so, which running a graph does not need: it is left out of the import.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends.graph_outputs import keep_outputs
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import GRAPH_FILE, GRAPH_INPUT, LABELS_OUTPUT, Bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, unknown_name

REPORTING_MODULE = "openvino.tools.ovc"


@contextmanager
def _left_out(module: str) -> Iterator[None]:
    """Have imports of this module fail meanwhile, unless somebody imported it before."""
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
"""Provider -> OpenVINO's device. Not NPU, which computes in float16 only, nor AUTO, which changes while it runs."""

VERSION = ov.__version__.split("-")[0]

_FLOAT32 = "f32"
_DTYPES = {"uint8": "u8", "float32": _FLOAT32}


class OpenVinoBackend:
    """Runs model.onnx as a compiled model of OpenVINO.

    There is one at a time, of the scores that were asked for last and, once they were asked for, the labels: another
    set of scores is compiled anew, which takes about a second, once. It begins with the labels and the default score.
    A device that is not here is replaced by the CPU, and a precision by the one in use: `actual` says so. The options
    arena and spin have no counterpart and change nothing.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        if options.provider not in PROVIDERS:
            raise BackendError(unknown_name("openvino provider", options.provider, PROVIDERS))
        self.requested = f"openvino:{options.provider}"
        self._bundle = bundle
        self._path = bundle.require_program(GRAPH_FILE)
        self._model = self._path.read_bytes()
        self._shape = (1, bundle.contract.input.height_px, bundle.contract.input.width_px, 3)
        self._core = ov.Core()
        self._device = _device_here(self._core, options.provider)
        self._settings = settings(self._device, options)
        # Checked whole, before anything is cut off.
        _check_graph(self._read(self._model), bundle)
        self._lock = threading.Lock()
        self._outputs: frozenset[str] = frozenset()
        self._prepare(frozenset({LABELS_OUTPUT, *bundle.contract.score_names[:1]}))
        self.actual = f"openvino:{_in_use(self._compiled)}"

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the graph; see Backend.run."""
        # OpenVINO would convert other types silently.
        if tensor.shape != self._shape or tensor.dtype != np.uint8:
            raise BackendError(f"expected a uint8 {self._shape} tensor, got {tensor.dtype} {tensor.shape}")
        with self._lock:
            self._prepare(frozenset(outputs))
            try:
                self._request.infer({GRAPH_INPUT: tensor})
                # Copied, since the next frame is written to the same memory.
                return [np.array(self._request.get_tensor(name).data) for name in outputs]
            except Exception as error:  # openvino raises bare RuntimeError
                raise BackendError(f"openvino {VERSION} failed on {self._path}: {_one_line(error)}") from error

    def close(self) -> None:
        """Release the compiled model."""
        del self._request, self._compiled

    def _prepare(self, wanted: frozenset[str]) -> None:
        """Have a compiled model that computes what is wanted, and no other score."""
        scores = wanted - {LABELS_OUTPUT}
        # A subscriber of the labels alone comes and goes; that is not worth compiling each time.
        if wanted <= self._outputs and (not scores or scores == self._outputs - {LABELS_OUTPUT}):
            return
        outputs = wanted | (self._outputs & {LABELS_OUTPUT})
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


def settings(device: str, options: BackendOptions) -> dict[str, Any]:
    """Return the properties that a model is compiled with."""
    found: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # Where the CPU has bfloat16, OpenVINO takes it for a float graph by itself: 8 bits of mantissa move scores
        # beyond what thresholds were calibrated for.
        "INFERENCE_PRECISION_HINT": _FLOAT32,
    }
    if device == PROVIDERS["cpu"]:
        # Pinned, the threads of every process begin at the first core, and so do those of a second detector.
        found["ENABLE_CPU_PINNING"] = False
        if options.threads:
            found["INFERENCE_NUM_THREADS"] = options.threads
    return found


def _device_here(core: Any, provider: str) -> str:
    """Return the device that was asked for, or the CPU where it is absent, as ONNX Runtime falls back."""
    cpu, wanted = PROVIDERS["cpu"], PROVIDERS[provider]
    if wanted == cpu:  # looking for devices loads every plugin
        return cpu
    return wanted if any(name.split(".")[0] == wanted for name in core.available_devices) else cpu


def _in_use(compiled: Any) -> str:
    """Return the devices of a compiled model, and its precision unless that is float32."""
    devices = "+".join(name.split(".")[0] for name in compiled.get_property("EXECUTION_DEVICES"))
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return devices.lower() + ("" if precision == _FLOAT32 else f" ({precision})")


def _check_graph(model: Any, bundle: Bundle) -> None:
    spec = bundle.contract.input
    expected = [(GRAPH_INPUT, "u8", f"[1,{spec.height_px},{spec.width_px},3]")]
    found = [(_name_of(item), item.element_type.get_type_name(), str(item.partial_shape)) for item in model.inputs]
    if found != expected:
        raise BackendError(f"{bundle.graph_path} is not an anomseg graph: its inputs are {found}, expected {expected}")
    types = {name: item.element_type.get_type_name() for item in model.outputs for name in item.names}
    for output in bundle.contract.outputs:
        if types.get(output.name) != _DTYPES.get(output.dtype):
            raise BackendError(
                f"{bundle.graph_path} is not the graph that bundle.yaml describes: output {output.name!r} should be "
                f"{output.dtype}, the graph's outputs are {types}"
            )


def _name_of(item: Any) -> str:
    return " ".join(sorted(item.names))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    # Of operators that it lacks, the names come last, after everything that fails for want of them.
    return text.partition("Summary: ")[2].partition(" To facilitate")[0] or text[:500]
