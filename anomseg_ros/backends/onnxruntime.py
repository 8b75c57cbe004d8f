"""ONNX Runtime: the default on a CPU, and other execution providers that the installed build has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.graph_outputs import check_graph, keep_outputs, next_outputs
from anomseg_ros.backends.onnxruntime_gpu import (
    CPU,
    CUDA,
    ON_GPU,
    RECORD_PLACEMENT,
    TENSORRT,
    BoundSession,
    nodes_by_provider,
    nodes_of_a_run,
    placement_in_words,
    provider_list,
)
from anomseg_ros.core.bundle import GRAPH_FILE, GRAPH_INPUT, LABELS_OUTPUT, Bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, unknown_name

PROVIDERS = {
    "cpu": CPU,
    "cuda": CUDA,
    "tensorrt": TENSORRT,
    "openvino": "OpenVINOExecutionProvider",
}

_ERRORS_ONLY = 3


class OnnxRuntimeBackend:
    """Runs model.onnx in an onnxruntime.InferenceSession.

    There is one session at a time. It computes the scores that were requested last and, once requested, the labels;
    on a GPU, at first the labels and the default score. Other scores need a new session, which takes some tenths of a
    second, and minutes where TensorRT builds an engine for it. `actual` names every provider that has a node.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        if options.provider not in PROVIDERS:
            raise BackendError(unknown_name("onnxruntime provider", options.provider, PROVIDERS))
        self.requested = f"onnxruntime:{options.provider}"
        self._bundle = bundle
        self._options = options
        self._model = bundle.require_program(GRAPH_FILE).read_bytes()
        # The whole graph is checked before anything is cut off. On the CPU: elsewhere it may take minutes to open.
        self._session = _open_session(bundle, self._model, replace(options, provider="cpu"))
        check_graph(
            bundle,
            [(item.name, item.type, list(item.shape)) for item in self._session.get_inputs()],
            {item.name: item.type for item in self._session.get_outputs()},
            {"uint8": "tensor(uint8)", "float32": "tensor(float)"},
        )
        self._outputs: frozenset[str] = frozenset()
        self._bound: BoundSession | None = None
        self.actual = "onnxruntime:cpu"
        if options.provider != "cpu":
            self._prepare(frozenset({LABELS_OUTPUT, *bundle.contract.score_names[:1]}))

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the graph; see Backend.run."""
        needed = next_outputs(frozenset(outputs), self._outputs)
        if needed is not None:
            self._prepare(needed)
        try:
            if self._bound is not None:
                return self._bound.run(tensor, outputs)
            return list(self._session.run(list(outputs), {GRAPH_INPUT: tensor}))
        except Exception as error:  # onnxruntime raises bare pybind exceptions of many classes
            raise BackendError(
                f"onnxruntime failed on a {tensor.dtype} {tensor.shape} tensor: {_one_line(error)}"
            ) from error

    def close(self) -> None:
        """Release the session."""
        self._bound = None
        del self._session

    def _prepare(self, outputs: frozenset[str]) -> None:
        """Open a session that computes these outputs, and look where its nodes are."""
        model = keep_outputs(self._model, outputs)
        self._bound = None
        self._session = _open_session(self._bundle, model, self._options)
        self.actual = f"onnxruntime:{_in_use(self._session, model, self._options)}"
        if self._session.get_providers()[0] in ON_GPU:
            self._bound = BoundSession(self._session, "cuda", self._options.device)
        self._outputs = outputs


def _open_session(bundle: Bundle, model: bytes, options: BackendOptions) -> ort.InferenceSession:
    providers = _providers_here(model, options)
    try:
        return ort.InferenceSession(model, session_options(options), providers=providers)
    except Exception as error:
        remedy = "is it the graph that `anomseg export` wrote?"
        if bundle.contract.precision == "bf16":
            remedy = "ONNX Runtime has few kernels for bf16: use the backend tensorrt, or a bundle in fp16 or fp32"
        raise BackendError(
            f"{bundle.graph_path} cannot be loaded by onnxruntime {ort.__version__}: {_one_line(error)}; {remedy}"
        ) from error


def _providers_here(model: bytes, options: BackendOptions) -> list[tuple[str, dict[str, str]]]:
    """Return the wanted provider and those that take what it leaves, of those that are here.

    A missing one is no error: ONNX Runtime falls back to the CPU, and `actual` shows it.
    """
    available = ort.get_available_providers()
    wanted = PROVIDERS[options.provider]
    chain = provider_list(wanted if wanted in available else CPU, options.device, model)
    return [each for each in chain if each[0] in available]


def session_options(options: BackendOptions) -> ort.SessionOptions:
    """Return the session's settings for the user's options."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = _ERRORS_ONLY
    settings.enable_cpu_mem_arena = options.arena
    # Planning one block for a whole frame takes half as much memory again and saves no measurable time.
    settings.enable_mem_pattern = False
    if PROVIDERS.get(options.provider) != CPU:
        settings.add_session_config_entry(RECORD_PLACEMENT, "1")
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    return settings


def _in_use(session: ort.InferenceSession, model: bytes, options: BackendOptions) -> str:
    """Return where the nodes of a session are. The list of providers does not tell: a node may be on any of them."""
    providers = session.get_providers()
    if providers == [CPU]:
        return "cpu"
    counts = nodes_by_provider(session)
    if counts is None:
        counts = nodes_of_a_run(model, session_options(options), _providers_here(model, options))
    return placement_in_words(counts, {name: short for short, name in PROVIDERS.items()})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
