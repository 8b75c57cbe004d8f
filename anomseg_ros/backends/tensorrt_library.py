"""The installed TensorRT: which versions are used, and its ONNX parser with errors that say what to do.

TensorRT-RTX has the same parser and builder and needs no GPU for them. It serves to check graphs on any computer.
"""

from __future__ import annotations

import importlib
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from anomseg_ros.errors import BackendError, first_line

TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
MODULES = {TENSORRT: ("tensorrt",), RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""Library -> modules that hold it, tried in this order. RTX's wheels come with and without a package of its name."""

OLDEST = (10, 0)
NEWEST_MAJOR = {TENSORRT: 11, RTX: 1}
BROKEN: Mapping[tuple[int, ...], str] = {
    (10, 2, 0): "its wheels for Linux look for a library of Windows (github.com/ultralytics/ultralytics, 24367)"
}
JETPACK = (
    "JetPack 6.1 and later bring 10.3 or newer: flash JetPack 6.2 or 7; elsewhere, pip install 'tensorrt>=10.3,<12'"
)
NOT_INSTALLED = (
    "TensorRT is not installed: on a Jetson, apt install python3-libnvinfer, and make the virtual environment with "
    "--system-site-packages; elsewhere, pip install 'tensorrt>=10.3,<12'"
)
SAME_VERSION = (
    "install the libraries of the module's version: on a Jetson, apt install tensorrt python3-libnvinfer; elsewhere, "
    "pip install --force-reinstall 'tensorrt>=10.3,<12'"
)
CHECK_INSTALLED = "; to check graphs without a GPU, pip install 'anomseg_ros[tensorrt-check]'"
NO_DRIVER = (
    "install NVIDIA's driver; a container needs --runtime nvidia (Jetson) or --gpus all. "
    "Without a GPU, `anomseg build BUNDLE --check` checks a graph: pip install 'anomseg_ros[tensorrt-check]'"
)

_loggers: dict[ModuleType, Any] = {}
_making_loggers = threading.Lock()

_EXPORT_AGAIN = "export the bundle again, with --processor gpu"
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class Library:
    """An imported library. name: "tensorrt" or "tensorrt_rtx"; version_text: as it states its version."""

    module: ModuleType
    name: str
    version: tuple[int, ...]
    version_text: str

    @property
    def title(self) -> str:
        """Name and version for messages."""
        return f"{'TensorRT' if self.name == TENSORRT else 'TensorRT-RTX'} {self.version_text}"


def load_library(parse_only: bool = False) -> Library:
    """Return the installed TensorRT.

    parse_only: TensorRT-RTX will do, and is taken where TensorRT is absent, cannot be loaded or finds no GPU. Raises
    BackendError where there is none, or one that is too old; warns of one that is newer than any that was tried.
    """
    try:
        found = _find(TENSORRT)
    except BackendError as error:  # it is installed, and one of its libraries is missing
        found = _find(RTX) if parse_only else None
        if found is None:
            raise BackendError(f"{error}{CHECK_INSTALLED * parse_only}") from error
    if parse_only and (found is None or not _can_build(found)):
        found = _find(RTX) or found
    if found is None:
        raise BackendError(NOT_INSTALLED + CHECK_INSTALLED * parse_only)
    _check_version(found)
    return found


def logger_of(library: Library) -> Any:
    """Return the one logger of a library. It prints nothing; `collected_errors` collects what it is given.

    The library keeps the first logger that a builder or runtime was made with until the last of them is gone, and
    calls it for all of them, even once Python has freed it. So there is one, which is never freed.
    """
    with _making_loggers:
        if library.module not in _loggers:
            _loggers[library.module] = _logger_class(library.module)()
        return _loggers[library.module]


@contextmanager
def collected_errors(library: Library) -> Iterator[list[str]]:
    """Collect the errors that a library logs in the meantime: of this thread, and of threads of its own."""
    logger = logger_of(library)
    collector = logger.start()
    try:
        yield collector.errors
    finally:
        logger.stop(collector)
    if collector.interrupt is not None:  # such as Ctrl-C while the library was logging
        raise collector.interrupt


def parse_graph(library: Library, model: bytes, name: str) -> tuple[Any, Any, Any]:
    """Parse an ONNX model into a strongly typed network.

    Returns (builder, network, parser); the weights belong to the parser, so keep all three while building.
    name: what the model is, for errors. Raises BackendError that names the refused node and the remedy.
    """
    module = library.module
    builder = _builder(library)
    typed = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = module.OnnxParser(network, logger_of(library))
    with collected_errors(library) as errors:
        is_parsed = parser.parse(model)
    if not is_parsed:
        raise BackendError(f"{name}: {library.title} {_refusal(parser, errors)}")
    return builder, network, parser


def _find(name: str) -> Library | None:
    for module_name in MODULES[name]:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name == module_name:
                continue
            raise BackendError(f"{module_name} is installed, but needs {error.name!r}; {SAME_VERSION}") from error
        except (ImportError, OSError) as error:  # its shared libraries are missing or for another system
            raise BackendError(f"{module_name} cannot be loaded: {first_line(error)}; {SAME_VERSION}") from error
        if hasattr(module, "OnnxParser"):
            text = str(module.__version__)
            return Library(module, name, tuple(map(int, re.findall(r"\d+", text))), text)
    return None


def _check_version(library: Library) -> None:
    version = library.version
    if library.name == TENSORRT and version < OLDEST:
        raise BackendError(f"{library.title} is too old, 10.0 is the oldest that is supported; {JETPACK}")
    if library.name == TENSORRT and version[:3] in BROKEN:
        raise BackendError(f"{library.title} is not used: {BROKEN[version[:3]]}; {JETPACK}")
    newest = NEWEST_MAJOR[library.name]
    if version[0] > newest:
        warnings.warn(f"{library.title} is newer than {newest}.x, which this package was tried with", stacklevel=3)


def _can_build(library: Library) -> bool:
    try:
        _builder(library)
    except BackendError:
        return False
    return True


def _builder(library: Library) -> Any:
    with collected_errors(library) as errors:
        try:
            return library.module.Builder(logger_of(library))
        except Exception as error:  # a bare TypeError of pybind11, and the reason in the log
            reason = one_line("\n".join(errors)) or first_line(error)
            remedy = NO_DRIVER if "CUDA" in reason else "install it again, with all its libraries of one version"
            raise BackendError(f"{library.title} cannot start: {reason}; {remedy}") from error


@dataclass(eq=False)
class _Collector:
    """The errors of one call. thread: that called. interrupt: what was raised while the library logged."""

    thread: int
    errors: list[str] = field(default_factory=list)
    interrupt: BaseException | None = None


def _logger_class(module: ModuleType) -> Any:
    base: Any = module.ILogger
    severities = base.Severity.INTERNAL_ERROR, base.Severity.ERROR

    class Logger(base):  # type: ignore[misc]
        """Hands errors to the call they belong to: the library only writes them to standard output."""

        def __init__(self) -> None:
            base.__init__(self)
            self._collectors: tuple[_Collector, ...] = ()  # replaced, never changed: log() takes no lock
            self._lock = threading.Lock()

        def start(self) -> _Collector:
            """Return a collector for a call of this thread."""
            collector = _Collector(threading.get_ident())
            with self._lock:
                self._collectors += (collector,)
            return collector

        def stop(self, collector: _Collector) -> None:
            """End a call."""
            with self._lock:
                self._collectors = tuple(one for one in self._collectors if one is not collector)

        def log(self, severity: Any, message: str) -> None:
            """Called by the library, from any thread. An error must not pass through it: it would be lost."""
            collectors = self._collectors
            try:
                if severity in severities:
                    mine = [one for one in collectors if one.thread == threading.get_ident()]
                    for collector in mine[-1:] or collectors:  # a thread of the library may work for any call
                        collector.errors.append(message)
            except BaseException as error:
                for collector in collectors:
                    collector.interrupt = error

    return Logger


def _refusal(parser: Any, errors: list[str]) -> str:
    """Return the parser's first error, with the remedy."""
    if not parser.num_errors:
        return f"cannot parse the graph: {one_line(chr(10).join(errors))}; {_EXPORT_AGAIN}"
    error = parser.get_error(0)
    words = one_line(error.desc())
    if error.node() < 0:
        return f"cannot parse the graph: {words}; {_EXPORT_AGAIN}"
    operator = getattr(error, "node_operator", str)()
    node = getattr(error, "node_name", str)() or f"number {error.node()}"
    again = "export the checkpoint with --processor gpu"
    remedy = "quantize with --target tensorrt" if operator in _QUANTIZED else again
    return f"refuses node {node!r} ({operator or 'unknown operator'}): {words}; {remedy}"


def one_line(text: str) -> str:
    """Return the library's words on one line, without its notes that this computer has no driver."""
    lines = [line.strip() for line in text.splitlines() if "catchCudaError" not in line]
    return "; ".join(line for line in lines if line)
