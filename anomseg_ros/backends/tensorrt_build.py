"""Build engines of a bundle's graph with TensorRT."""

from __future__ import annotations

import functools
import platform
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from anomseg_ros.backends.built_engines import Built
from anomseg_ros.backends.engine_cache import EngineKey, Hardware
from anomseg_ros.backends.graph_outputs import check_graph, keep_outputs
from anomseg_ros.backends.tensorrt_library import TENSORRT, Library, collected_errors, one_line, parse_graph
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.errors import BackendError

PER_CENT = 100
MEBIBYTE = 1 << 20
_SHOWN_ERRORS = 3


@dataclass(frozen=True)
class BuildOptions:
    """How to build. None stands for the library's own value.

    workspace_bytes: the most scratch memory of a layer. dla_core: run what it can on this accelerator.
    """

    workspace_bytes: int | None = None
    dla_core: int | None = None


def engine_key(
    bundle: Bundle, outputs: Collection[str], library: Library, gpu: Hardware, options: BuildOptions
) -> EngineKey:
    """Return the key of an engine.

    Args:
        bundle: whose graph it runs.
        outputs: of the graph that it computes.
        library: that builds and runs it.
        gpu: that it is for.
        options: of the builder.
    """
    bundle.require_program(GRAPH_FILE)
    return EngineKey(
        program_sha256=bundle.contract.files[GRAPH_FILE],
        outputs=tuple(sorted(outputs)),
        library=library.name,
        version=library.version_text,
        gpu_name=gpu.name,
        compute_capability=gpu.compute_capability,
        multiprocessors=gpu.multiprocessors,
        integrated=gpu.integrated,
        architecture=platform.machine(),
        dla_core=options.dla_core,
        workspace_bytes=options.workspace_bytes,
    )


def build_engine(
    library: Library,
    bundle: Bundle,
    outputs: Collection[str],
    options: BuildOptions,
    timings: bytes | None = None,
    progress: Progress = no_progress,
) -> Built:
    """Build an engine of a bundle's graph, cut down to some outputs, on the current CUDA device.

    Args:
        library: TensorRT; TensorRT-RTX builds as well, for checking graphs.
        bundle: its graph takes the precision of its types.
        outputs: to compute.
        options: of the builder.
        timings: the timing cache of an earlier build with the same version and GPU.
        progress: called with per cents, perhaps from a thread of the library. An error from it cancels the build.

    Raises:
        BackendError: the parser refuses the graph, or the builder fails.
        KeyboardInterrupt: Ctrl-C was pressed in the meantime; the builder's step in work is finished first.
    """
    model = keep_outputs(bundle.require_program(GRAPH_FILE).read_bytes(), outputs)
    builder, network, parser = parse_graph(library, model, f"bundle {bundle.contract.name!r}")
    _check_network(bundle, network, outputs)
    _check_dla(library, builder, options)
    config = builder.create_builder_config()
    _configure(library, config, options)
    monitor = _monitor_class(library.module)(progress)
    config.progress_monitor = monitor
    if library.name == TENSORRT:  # TensorRT-RTX has no timing cache
        _use_timings(config, timings or b"")
    started = time.monotonic()
    with collected_errors(library) as errors, _interrupts_cancel(monitor):
        memory = builder.build_serialized_network(network, config)
    if monitor.error is not None:
        raise monitor.error
    if memory is None:
        raise BackendError(_failure(library, bundle, errors, options))
    del parser  # it owns the weights, so it is there until the engine is built
    plan = bytes(memory)
    facts = {
        "bundle": bundle.contract.name,
        "precision": bundle.contract.precision,
        "build_s": round(time.monotonic() - started, 2),
        "plan_bytes": len(plan),
        **_layers(network, config),
    }
    return Built(plan, facts, bytes(config.get_timing_cache().serialize()) if library.name == TENSORRT else b"")


@contextmanager
def _interrupts_cancel(monitor: Any) -> Iterator[None]:
    """Have Ctrl-C cancel the build. The exception that Python would raise in a callback is lost in the library.

    A program that handles Ctrl-C in another way keeps its way, and so do threads, which get no signals.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: monitor.cancel(KeyboardInterrupt()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _use_timings(config: Any, timings: bytes) -> None:
    """Start from an earlier timing cache, or from an empty one where the library does not take it."""
    for content in (timings, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _check_network(bundle: Bundle, network: Any, outputs: Collection[str]) -> None:
    """Raise BackendError unless the network takes and gives what bundle.yaml says."""
    kept = tuple(output for output in bundle.contract.outputs if output.name in outputs)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    results = [network.get_output(index) for index in range(network.num_outputs)]
    check_graph(
        Bundle(bundle.directory, replace(bundle.contract, outputs=kept)),
        [(tensor.name, tensor.dtype.name, list(tensor.shape)) for tensor in inputs],
        {tensor.name: tensor.dtype.name for tensor in results},
        {"uint8": "UINT8", "float32": "FLOAT"},
    )


def _check_dla(library: Library, builder: Any, options: BuildOptions) -> None:
    cores = getattr(builder, "num_DLA_cores", 0)  # TensorRT-RTX knows of none
    if options.dla_core is not None and options.dla_core >= cores:
        raise BackendError(
            f"there is no DLA core {options.dla_core}: {library.title} finds {cores} on this computer; "
            "build for the GPU"
        )


def _configure(library: Library, config: Any, options: BuildOptions) -> None:
    module = library.module
    # It is on unless cleared, and thresholds that were calibrated in float32 would not hold.
    config.clear_flag(module.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.dla_core is not None:
        config.default_device_type = module.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(module.BuilderFlag.GPU_FALLBACK)


def _layers(network: Any, config: Any) -> dict[str, Any]:
    """Return the number of the network's layers, by device and kind, before the builder fuses many of them."""
    by_device: dict[str, Counter[str]] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        device = config.get_device_type(layer).name
        if device == "DLA" and not config.can_run_on_DLA(layer):
            device = "GPU"
        by_device.setdefault(device, Counter())[layer.type.name.lower()] += 1
    return {
        "layers": network.num_layers,
        "layers_by_device": {device: dict(counts.most_common()) for device, counts in sorted(by_device.items())},
    }


class _Phases:
    """How far a build is. Phases are nested: each step of one may hold phases of its own."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._reported = progress, -1
        self._phases: dict[str, list[Any]] = {}  # name -> [parent or None, steps, steps that are done]

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Note a phase."""
        self._phases[name] = [parent, steps, 0]

    def complete(self, name: str, step: int) -> None:
        """Report how far the build is after a step."""
        if name in self._phases:
            self._phases[name][2] = step + 1
            shares = (self._share(outer) for outer, phase in self._phases.items() if not phase[0])
            self._report(max(shares, default=0))

    def finish(self, name: str) -> None:
        """Forget a phase; the outermost one is the whole build."""
        phase = self._phases.pop(name, None)
        if phase and not phase[0]:
            self._report(1.0)

    def _report(self, done: float) -> None:
        """Report a share of the build."""
        per_cent = int(PER_CENT * min(1.0, done))
        if per_cent > self._reported:
            self._reported = per_cent
            self._progress("building the engine, per cent", per_cent, PER_CENT)

    def _share(self, name: str) -> float:
        _, steps, done = self._phases[name]
        inner = max((self._share(other) for other, phase in self._phases.items() if phase[0] == name), default=0.0)
        return float((done + min(inner, 1.0) * (done < steps)) / max(steps, 1))


@functools.cache
def _monitor_class(module: ModuleType) -> Any:
    base: Any = module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        """Reports how far a build is. The library calls it from any thread and from several at once."""

        def __init__(self, progress: Progress) -> None:
            base.__init__(self)
            self.error: BaseException | None = None
            self._phases, self._lock = _Phases(progress), threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """See _Phases.start."""
            self._guard(self._phases.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """See _Phases.complete; returns whether to go on."""
            self._guard(self._phases.complete, phase_name, step)
            return self.error is None

        def phase_finish(self, phase_name: str) -> None:
            """See _Phases.finish."""
            self._guard(self._phases.finish, phase_name)

        def cancel(self, error: BaseException) -> None:
            """Have the next step end the build; `error` is why."""
            self.error = self.error or error

        def _guard(self, body: Callable[..., None], *arguments: Any) -> None:
            """Run the body of a callback. An error must not pass through the library: it would be lost there."""
            try:
                with self._lock:
                    body(*arguments)
            except BaseException as error:
                self.cancel(error)

    return Monitor


def _failure(library: Library, bundle: Bundle, errors: list[str], options: BuildOptions) -> str:
    """Return why a build failed, with what to do."""
    words = one_line("\n".join(errors[:_SHOWN_ERRORS])) or "it does not say why"
    text = f"{library.title} cannot build an engine of bundle {bundle.contract.name!r}: {words}"
    if re.search(r"could not find any implementation|out ?of ?memory|cannot allocate|insufficient memory", words, re.I):
        workspace = options.workspace_bytes
        given = "no limit was set" if workspace is None else f"{workspace // MEBIBYTE} MiB"
        return (
            f"{text}. That is also how it reports too little memory: free memory of the GPU (on a Jetson, end the "
            f"desktop and other programs), allow more scratch memory with --workspace ({given}), and add swap"
        )
    return f"{text}; `anomseg build --check` shows whether the graph is what it refuses"
