"""ONNX Runtime: the default on a CPU; other execution providers where the installed build has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from anomseg_ros.backends.graph_outputs import keep_outputs
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import GRAPH_FILE, GRAPH_INPUT, LABELS_OUTPUT, Bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, unknown_name

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}

_ERRORS_ONLY = 3
_DTYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


class OnnxRuntimeBackend:
    """Runs model.onnx in an onnxruntime.InferenceSession.

    There is one session at a time, of the scores that were asked for last and, once they were asked for, the labels:
    another set of scores makes another session, which takes some tenths of a second, once.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self.requested = f"onnxruntime:{options.provider}"
        self._bundle = bundle
        self._options = options
        self._model = bundle.require_program(GRAPH_FILE).read_bytes()
        # Checked whole, before anything is cut off.
        self._session = _open_session(bundle, self._model, options)
        _check_graph(self._session, bundle)
        self._outputs: frozenset[str] = frozenset()
        self.actual = f"onnxruntime:{_provider_in_use(self._session)}"

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the graph; see Backend.run."""
        self._prepare(frozenset(outputs))
        try:
            return list(self._session.run(list(outputs), {GRAPH_INPUT: tensor}))
        except Exception as error:  # onnxruntime raises bare pybind exceptions of many classes
            raise BackendError(
                f"onnxruntime failed on a {tensor.dtype} {tensor.shape} tensor: {_one_line(error)}"
            ) from error

    def close(self) -> None:
        """Release the session."""
        del self._session

    def _prepare(self, wanted: frozenset[str]) -> None:
        """Have a session that computes what is wanted, and no other score."""
        scores = wanted - {LABELS_OUTPUT}
        # A subscriber of the labels alone comes and goes; that is not worth a new session each time.
        if wanted <= self._outputs and (not scores or scores == self._outputs - {LABELS_OUTPUT}):
            return
        outputs = wanted | (self._outputs & {LABELS_OUTPUT})
        self._session = _open_session(self._bundle, keep_outputs(self._model, outputs), self._options)
        self._outputs = outputs


def _open_session(bundle: Bundle, model: bytes, options: BackendOptions) -> ort.InferenceSession:
    if options.provider not in PROVIDERS:
        raise BackendError(unknown_name("onnxruntime provider", options.provider, PROVIDERS))
    provider = PROVIDERS[options.provider]
    available = ort.get_available_providers()
    # A missing provider is not an error here: onnxruntime falls back to the CPU, and `actual` says so.
    providers = [name for name in dict.fromkeys((provider, PROVIDERS["cpu"])) if name in available]
    try:
        return ort.InferenceSession(model, session_options(options), providers=providers)
    except Exception as error:
        raise BackendError(
            f"{bundle.graph_path} cannot be loaded by onnxruntime {ort.__version__}: {_one_line(error)}; "
            "is it the graph that `anomseg export` wrote?"
        ) from error


def session_options(options: BackendOptions) -> ort.SessionOptions:
    """Return the session's settings for the user's options."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = _ERRORS_ONLY
    settings.enable_cpu_mem_arena = options.arena
    # Planning one block for a whole frame costs half as much memory again and saves no time that could be measured.
    settings.enable_mem_pattern = False
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    return settings


def _check_graph(session: ort.InferenceSession, bundle: Bundle) -> None:
    spec = bundle.contract.input
    expected = [(GRAPH_INPUT, "tensor(uint8)", [1, spec.height_px, spec.width_px, 3])]
    found = [(item.name, item.type, list(item.shape)) for item in session.get_inputs()]
    if found != expected:
        raise BackendError(f"{bundle.graph_path} is not an anomseg graph: its inputs are {found}, expected {expected}")
    types = {item.name: item.type for item in session.get_outputs()}
    for output in bundle.contract.outputs:
        if types.get(output.name) != _DTYPES.get(output.dtype):
            raise BackendError(
                f"{bundle.graph_path} is not the graph that bundle.yaml describes: output {output.name!r} should be "
                f"{output.dtype}, the graph's outputs are {types}"
            )


def _provider_in_use(session: ort.InferenceSession) -> str:
    first = session.get_providers()[0]
    return next((short for short, name in PROVIDERS.items() if name == first), first)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
