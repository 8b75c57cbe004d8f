"""ONNX Runtime: the default on a CPU, and other execution providers that the installed build has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.built_engines import engine_outputs
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
from anomseg_ros.core.processor import has_exact_int8_for
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, unknown_name

PROVIDERS = {
    "cpu": CPU,
    "cuda": CUDA,
    "tensorrt": TENSORRT,
    "openvino": "OpenVINOExecutionProvider",
}

_ERRORS_ONLY = 3
_FLOAT_LAYERS = "session.disable_quant_qdq"
"""Whether layers of int8 bundles stay in float, on rounded values, in place of becoming int8 kernels."""
DISABLED_OPTIMIZERS = ("WeightBiasQuantization",)
"""This one quantizes, per tensor, the weights of layers that `anomseg quantize` left in float. ONNX Runtime before 1.20
does not have it and ignores the name."""


@dataclass(frozen=True)
class _Opened:
    """A session that computes these outputs. actual: the providers that have its nodes."""

    session: ort.InferenceSession
    outputs: frozenset[str]
    actual: str
    bound: BoundSession | None = None


class OnnxRuntimeBackend:
    """Runs model.onnx in an onnxruntime.InferenceSession.

    There is one session at a time. It computes the scores that were requested last and, once requested, the labels;
    on a GPU, at first the labels and the default score. Other scores need a new session, which takes some tenths of a
    second. With the provider tensorrt, whose sessions build engines for minutes, both sessions that are ever needed are
    opened with the backend: one for the labels and the default score, one for everything. `actual` names every provider
    that has a node of the session in use.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        if options.provider not in PROVIDERS:
            raise BackendError(unknown_name("onnxruntime provider", options.provider, PROVIDERS))
        self.requested = f"onnxruntime:{options.provider}"
        self._bundle = bundle
        self._options = options
        self._model = bundle.require_program(GRAPH_FILE).read_bytes()
        # The whole graph is checked before anything is cut off. On the CPU: elsewhere it may take minutes to open.
        whole = _open_session(bundle, self._model, replace(options, provider="cpu"))
        check_graph(
            bundle,
            [(item.name, item.type, list(item.shape)) for item in whole.get_inputs()],
            {item.name: item.type for item in whole.get_outputs()},
            {"uint8": "tensor(uint8)", "float32": "tensor(float)"},
        )
        self._builds = PROVIDERS[options.provider] == TENSORRT
        if self._builds:
            self._opened = [self._open(frozenset(outputs)) for outputs in engine_outputs(bundle.contract).values()]
        elif options.provider == "cpu":
            self._opened = [_Opened(whole, frozenset(), "onnxruntime:cpu")]
        else:
            self._opened = [self._open(frozenset({LABELS_OUTPUT, *bundle.contract.score_names[:1]}))]
        self.actual = self._opened[0].actual

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the graph; see Backend.run."""
        opened = self._session_for(frozenset(outputs))
        self.actual = opened.actual
        try:
            if opened.bound is not None:
                return opened.bound.run(tensor, outputs)
            return list(opened.session.run(list(outputs), {GRAPH_INPUT: tensor}))
        except Exception as error:  # onnxruntime raises bare pybind exceptions of many classes
            raise BackendError(
                f"onnxruntime failed on a {tensor.dtype} {tensor.shape} tensor: {_one_line(error)}"
            ) from error

    def close(self) -> None:
        """Release the sessions."""
        del self._opened

    def _session_for(self, wanted: frozenset[str]) -> _Opened:
        """Return the smallest session that computes what is wanted, a new one where none does."""
        if self._builds:
            covering = [opened for opened in self._opened if opened.outputs >= wanted]
            if not covering:
                raise BackendError(f"bundle {self._bundle.contract.name!r} has no {', '.join(sorted(wanted))}")
            return covering[0]
        needed = next_outputs(wanted, self._opened[0].outputs)
        if needed is not None:
            self._opened = [self._open(needed)]
        return self._opened[0]

    def _open(self, outputs: frozenset[str]) -> _Opened:
        """Open a session that computes these outputs, and look where its nodes are."""
        model = keep_outputs(self._model, outputs)
        session = _open_session(self._bundle, model, self._options)
        actual = f"onnxruntime:{_in_use(session, model, self._bundle, self._options)}"
        is_on_gpu = session.get_providers()[0] in ON_GPU
        bound = BoundSession(session, "cuda", self._options.device) if is_on_gpu else None
        return _Opened(session, outputs, actual, bound)


def _open_session(bundle: Bundle, model: bytes, options: BackendOptions) -> ort.InferenceSession:
    providers = _providers_here(model, options)
    try:
        return ort.InferenceSession(
            model, session_options(options, bundle), providers, disabled_optimizers=DISABLED_OPTIMIZERS
        )
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


def session_options(options: BackendOptions, bundle: Bundle) -> ort.SessionOptions:
    """Return the settings of a bundle's session for the user's options."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = _ERRORS_ONLY
    settings.enable_cpu_mem_arena = options.arena
    # Planning one block for a whole frame takes half as much memory again and saves no measurable time.
    settings.enable_mem_pattern = False
    if PROVIDERS.get(options.provider) != CPU:
        settings.add_session_config_entry(RECORD_PLACEMENT, "1")
    if not has_exact_int8_for(bundle.contract):
        compute_int8_in_float(settings)
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    return settings


def compute_int8_in_float(settings: ort.SessionOptions) -> None:
    """Have a session compute int8 layers in float, for processors whose int8 kernels overflow (core/processor.py).

    ONNX Runtime also has exact kernels for these (session.x64quantprecision). They are a fifth faster, still slower
    than a float bundle, and version 1.32 cannot load graphs with them in which two layers share weights.
    """
    settings.add_session_config_entry(_FLOAT_LAYERS, "1")


def _in_use(session: ort.InferenceSession, model: bytes, bundle: Bundle, options: BackendOptions) -> str:
    """Return where the nodes of a session are. The list of providers does not tell: a node may be on any of them."""
    providers = session.get_providers()
    if providers == [CPU]:
        return "cpu"
    counts = nodes_by_provider(session)
    if counts is None:
        counts = nodes_of_a_run(model, session_options(options, bundle), _providers_here(model, options))
    return placement_in_words(counts, {name: short for short, name in PROVIDERS.items()})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
