"""ONNX Runtime on a GPU: the options of its providers, where its nodes really run, and frames in memory that stays."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from anomseg_ros.backends.engine_cache import default_root, private_folder
from anomseg_ros.core.bundle import GRAPH_INPUT
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
ON_GPU = (CUDA, TENSORRT)
RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
"""Setting of a session, from ONNX Runtime 1.24 on. Older versions ignore it."""
NO_TF32 = "NVIDIA_TF32_OVERRIDE"
"""Variable of NVIDIA's libraries: 0 keeps them from using TF32. The provider for TensorRT has no option for that."""


def provider_list(provider: str, device: int, model: bytes) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a session with their options, the wanted one first and the CPU last.

    TF32 is off: it rounds inputs of float32 to 10 bits of fraction, and thresholds were calibrated without. Engines of
    TensorRT are cached in a folder of the graph and of ONNX Runtime's version, so that no other's is taken for them.
    Raises BackendError where a variable of the environment asks for TF32 with TensorRT.
    """
    here = str(device)
    cuda = (CUDA, {"device_id": here, "use_tf32": "0"})
    if provider == CUDA:
        return [cuda, (CPU, {})]
    if provider != TENSORRT:
        return [(provider, {}), *([] if provider == CPU else [(CPU, {})])]
    if os.environ.setdefault(NO_TF32, "0") != "0":
        raise BackendError(
            f"{NO_TF32}={os.environ[NO_TF32]} may let TensorRT round float32 to 10 bits of fraction (TF32), and "
            f"thresholds were calibrated without: unset it, or set {NO_TF32}=0"
        )
    digest = hashlib.sha256(model + ort.__version__.encode()).hexdigest()
    folder = str(private_folder(default_root().parent / "onnxruntime" / digest))
    cached = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
    timings = {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    return [(TENSORRT, {"device_id": here, **cached, **timings}), cuda, (CPU, {})]


def nodes_by_provider(session: ort.InferenceSession) -> Mapping[str, int] | None:
    """Return provider -> number of nodes that a session gave it, None where this ONNX Runtime does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    counts = Counter[str]()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return counts or None


def nodes_of_a_run(model: bytes, settings: ort.SessionOptions, providers: Sequence[Any]) -> Mapping[str, int]:
    """Return provider -> number of nodes that ran on it, from the profile of one grey frame."""
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder, "profile"))
        session = ort.InferenceSession(model, settings, providers=providers)
        session.run(None, {GRAPH_INPUT: np.full(session.get_inputs()[0].shape, 128, np.uint8)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    names = [event.get("args", {}).get("provider") for event in events if event.get("cat") == "Node"]
    return Counter(name for name in names if name)


def placement_in_words(counts: Mapping[str, int], short_names: Mapping[str, str]) -> str:
    """Return where nodes run: `cuda`, or `cuda (417 nodes) + cpu (3 nodes)`, the CPU last.

    short_names: ONNX Runtime's name of a provider -> ours.
    """
    used = sorted((name for name, count in counts.items() if count), key=lambda name: (name == CPU, -counts[name]))
    if len(used) == 1:
        return short_names.get(used[0], used[0])
    return " + ".join(f"{short_names.get(name, name)} ({counts[name]} nodes)" for name in used)


class BoundSession:
    """Runs a session whose input has a place on the device: nothing is allocated there for a frame."""

    def __init__(self, session: ort.InferenceSession, kind: str, device: int) -> None:
        """kind: of the device, cuda or cpu."""
        self._session = session
        self._lock = threading.Lock()
        self._shape = tuple(session.get_inputs()[0].shape)
        self._input = ort.OrtValue.ortvalue_from_shape_and_type(list(self._shape), np.uint8, kind, device)
        self._names = [output.name for output in session.get_outputs()]
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(GRAPH_INPUT, self._input)
        for name in self._names:
            self._binding.bind_output(name, "cpu")

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Return copies of the outputs, in that order. Raises BackendError for another tensor than the graph's."""
        if tensor.shape != self._shape or tensor.dtype != np.uint8:
            raise BackendError(f"expected a uint8 {self._shape} tensor, got {tensor.dtype} {tensor.shape}")
        with self._lock:
            self._input.update_inplace(np.ascontiguousarray(tensor))
            self._session.run_with_iobinding(self._binding)
            arrays = dict(zip(self._names, self._binding.copy_outputs_to_cpu(), strict=True))
        return [arrays[name] for name in outputs]
