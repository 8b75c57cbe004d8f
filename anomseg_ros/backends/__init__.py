"""Engines that run a bundle's graph: one table, and one file for each engine."""

from __future__ import annotations

import functools
import importlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.fallback import FallbackBackend
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.detector import Backend, Detector
from anomseg_ros.core.processor import has_exact_int8_for
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.errors import BackendError, ConfigError, unknown_name

_log = logging.getLogger(__name__)

BACKENDS = {
    "onnxruntime": "anomseg_ros.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "anomseg_ros.backends.openvino:OpenVinoBackend",
    "tensorrt": "anomseg_ros.backends.tensorrt:TensorRtBackend",
    "torch": "anomseg_ros.backends.torch:TorchBackend",
}

# Optional package of a backend -> the extra that installs it.
EXTRAS = {"openvino": "openvino", "torch": "offline"}
_SLOW_WITHOUT_VNNI = ("onnxruntime:cpu", "openvino:cpu", "torch:inductor", "torch:aot")


def open_backend(
    name: str, bundle: Bundle, options: BackendOptions | None = None, progress: Progress = no_progress
) -> Backend:
    """Load a bundle's graph into a backend, or into the options' fallback where that is impossible.

    Args:
        name: of the table.
        bundle: whose graph it runs.
        options: of the backend.
        progress: told how far a build is, by backends that build their engines, perhaps from another thread.

    Raises:
        ConfigError, BackendError: there is no such backend, or it cannot run the bundle.
    """
    options = options or BackendOptions()
    for given in filter(None, (name, options.fallback_backend)):
        if given not in BACKENDS:
            raise ConfigError(unknown_name("backend", given, BACKENDS))
    try:
        return _open(name, bundle, options, progress)
    except BackendError as error:
        if options.fallback_backend in ("", name):
            raise
        default = BackendOptions().provider
        requested = name if options.provider == default else f"{name}:{options.provider}"
        inner = _open(options.fallback_backend, bundle, replace(options, provider=default), progress)
        return FallbackBackend(requested, str(error), inner)


def known_providers(name: str) -> tuple[str, ...]:
    """Return the providers of a backend of the table. Raises BackendError where its package is not installed."""
    return tuple(_module(name).PROVIDERS)


def check_usable(name: str) -> None:
    """Raise BackendError where a backend of the table is not installed, or needs a GPU and there is none."""
    getattr(_module(name), "check_usable", lambda: None)()


def _open(name: str, bundle: Bundle, options: BackendOptions, progress: Progress) -> Backend:
    kind = getattr(_module(name), BACKENDS[name].partition(":")[2])
    backend: Backend = kind(bundle, options, progress) if hasattr(kind, "BUILDS") else kind(bundle, options)
    if backend.actual in _SLOW_WITHOUT_VNNI and not has_exact_int8_for(bundle.contract):
        _warn_of_slow_int8()
    return backend


@functools.cache
def _warn_of_slow_int8() -> None:
    _log.warning(
        "warning: this processor has no VNNI instructions. Without them, int8 layers with weights of 8 bits are "
        "computed in float, no faster than a float bundle: take that one, or, for ONNX Runtime and OpenVINO, quantize "
        "it again with --weight-bits 7"
    )


def _module(name: str) -> Any:
    try:
        return importlib.import_module(BACKENDS[name].partition(":")[0])
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        raise BackendError(
            f"the backend {name!r} needs the package {error.name!r}, which is not installed: "
            f"pip install 'anomseg_ros[{EXTRAS[error.name]}]'"
        ) from error


def open_requested_backend(
    name: str, bundle: Bundle, options: BackendOptions | None = None, progress: Progress = no_progress
) -> Backend:
    """Return open_backend's backend; log a warning if it runs elsewhere than requested.

    The node uses open_backend, and reports the same in its log and diagnostics.
    """
    backend = open_backend(name, bundle, options, progress)
    if backend.actual != backend.requested:
        _warn_once(backend.requested, backend.actual)
    return backend


@functools.cache
def _warn_once(requested: str, actual: str) -> None:
    _log.warning("warning: %s was asked for, %s is in use; `anomseg doctor` says what works here", requested, actual)


def open_detector(
    bundle: str | Path | Bundle, backend: str = "onnxruntime", options: BackendOptions | None = None
) -> Detector:
    """Return the detector of a bundle or its directory. Raises BundleError, ConfigError or BackendError."""
    loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    return Detector(loaded, open_requested_backend(backend, loaded, options))
