"""Engines that run a bundle's graph: one file each, one table."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.detector import Backend, Detector
from anomseg_ros.errors import BackendError, ConfigError, unknown_name

BACKENDS = {
    "onnxruntime": "anomseg_ros.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "anomseg_ros.backends.openvino:OpenVinoBackend",
    "torch": "anomseg_ros.backends.torch:TorchBackend",
}

# Package of a backend that is optional -> the extra that brings it.
EXTRAS = {"openvino": "openvino", "torch": "offline"}


def open_backend(name: str, bundle: Bundle, options: BackendOptions | None = None) -> Backend:
    """Load `bundle`'s graph into the backend called `name`. Raises ConfigError or BackendError."""
    if name not in BACKENDS:
        raise ConfigError(unknown_name("backend", name, BACKENDS))
    backend: Backend = _backend_class(name)(bundle, options or BackendOptions())
    return backend


def known_providers(name: str) -> tuple[str, ...]:
    """Return the providers that a backend of the table knows. Raises BackendError where it is not installed."""
    return tuple(_module(name).PROVIDERS)


def _backend_class(name: str) -> Any:
    return getattr(_module(name), BACKENDS[name].partition(":")[2])


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


def open_detector(
    bundle: str | Path | Bundle, backend: str = "onnxruntime", options: BackendOptions | None = None
) -> Detector:
    """Load a bundle directory and run it on a backend. Raises BundleError, ConfigError or BackendError."""
    loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    return Detector(loaded, open_backend(backend, loaded, options))
