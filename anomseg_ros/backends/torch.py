"""PyTorch: runs model.pt2, without the network's source, on a processor or an NVIDIA GPU.

A program of torch.export holds each int8 layer as dequantize, convolution, quantize. Run like that ("eager"), it is
slower than float. torch's compiler (inductor, with the weights frozen into the program) makes one int8 kernel of the
three operators. It needs a C++ compiler and Python's headers on this machine. Compiling takes half a minute to some
minutes for each set of outputs; torch caches the result in its own folder. On a processor whose int8 kernels overflow,
weights are not frozen (torch_graph.freezes).

Compiled ahead of time ("aot"), a program is a package in the cache of engines (torch_packages.py), which a computer
without a compiler loads in a second. On a GPU a run is a CUDA graph (torch_device.py).
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch._inductor.config

from anomseg_ros.backends.backend_options import CONFIGURE, BackendOptions
from anomseg_ros.backends.built_engines import EngineSet
from anomseg_ros.backends.engine_cache import EngineCache, default_root
from anomseg_ros.backends.torch_device import Cpu, Gpu, Place, Program
from anomseg_ros.backends.torch_graph import cut, freezes, input_shape, load_graph, one_line
from anomseg_ros.backends.torch_packages import FOLDER, PackageMaker, Runner
from anomseg_ros.core.bundle import LABELS_OUTPUT, TORCH_FILE, Bundle
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, unknown_name

INDUCTOR, EAGER, AOT = "inductor", "eager", "aot"


@dataclass(frozen=True)
class Mode:
    """How a program runs.

    title: as reported. device: cpu or cuda. form: compiled when it is first used, not at all, or ahead of time.
    """

    title: str
    device: str
    form: str


PROVIDERS = {
    "cpu": Mode("inductor", "cpu", INDUCTOR),
    "inductor": Mode("inductor", "cpu", INDUCTOR),
    "eager": Mode("eager", "cpu", EAGER),
    "aot": Mode("aot", "cpu", AOT),
    "cuda": Mode("cuda", "cuda", EAGER),
    "cuda-aot": Mode("cuda-aot", "cuda", AOT),
}
"""Provider -> how the program runs. Every backend has the provider cpu."""


class TorchBackend:
    """Runs model.pt2."""

    BUILDS = True
    """It takes a listener of builds."""

    def __init__(self, bundle: Bundle, options: BackendOptions, progress: Progress = no_progress) -> None:
        if options.provider not in PROVIDERS:
            raise BackendError(unknown_name("torch provider", options.provider, PROVIDERS))
        mode = PROVIDERS[options.provider]
        self.requested = self.actual = f"torch:{mode.title}"
        self._threads = options.threads or _core_count()
        self._shape = input_shape(bundle)
        self._path = bundle.require_program(TORCH_FILE)
        self._place = open_place(options.provider, options.device)
        self._compiles = mode.form == INDUCTOR and compiler_works()
        if mode.form == INDUCTOR and not self._compiles:
            self.actual = "torch:eager (no C++ compiler)"
        self._lock = threading.Lock()
        self._programs: _Programs | EngineSet[Runner]
        if mode.form == AOT:
            self._programs = _open_packages(bundle, self._place, options, progress)
        else:
            self._programs = _Programs(bundle, self._place, self._compiles)

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the program; see Backend.run."""
        if tensor.shape != self._shape or tensor.dtype != np.uint8:
            raise BackendError(f"expected a uint8 {self._shape} tensor, got {tensor.dtype} {tensor.shape}")
        with self._lock, torch.no_grad():
            # The number belongs to the process; another bundle may have changed it.
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            try:
                return self._programs.smallest(outputs).run(tensor, outputs)
            except BackendError:
                raise
            except Exception as error:  # the compiler raises errors of many classes
                hint = "; `--provider eager` does without the compiler" if self._compiles else ""
                where = f"torch {torch.__version__} failed on {self._path}"
                raise BackendError(f"{where}: {one_line(error)}{hint}") from error

    def facts(self) -> dict[str, str]:
        """Return what is in use, in words, for diagnostics. It waits for nothing."""
        return {**self._place.facts(), **self._programs.facts()}

    def close(self) -> None:
        """Release the programs."""
        self._programs.unload()


class _Programs:
    """There is one program at a time, for the outputs that were requested last. Compiling takes minutes."""

    def __init__(self, bundle: Bundle, place: Place, compiles: bool) -> None:
        self.loaded: dict[tuple[str, ...], Runner] = {}
        self._place, self._compiles = place, compiles
        self._shape, self._frozen = input_shape(bundle), freezes(bundle, place.device)
        self._names = [output.name for output in bundle.contract.outputs]
        self._graph = load_graph(bundle, place.device)

    def smallest(self, wanted: Sequence[str]) -> Runner:
        """Return a program of these outputs, and perhaps the labels. What it raises is torch's."""
        names = tuple(sorted(set(wanted), key=self._names.index))
        for made, runner in self.loaded.items():
            # Unwanted labels take little time; another program takes minutes to compile.
            if set(made) - set(names) <= {LABELS_OUTPUT} and set(names) <= set(made):
                return runner
        program: Program = cut(self._graph, [self._names.index(name) for name in names])
        if self._compiles:
            program = _compiled(program, torch.zeros(self._shape, dtype=torch.uint8), self._frozen)
        self.loaded = {names: Runner(names, self._place.prepared(program, self._shape))}
        return self.loaded[names]

    def facts(self) -> dict[str, str]:
        """Return nothing: there are no engines."""
        return {}

    def unload(self) -> None:
        """Release the programs."""
        self.loaded.clear()
        del self._graph


def open_place(provider: str, device: int) -> Place:
    """Return where a provider runs programs. Raises BackendError where there is no such GPU."""
    return Cpu() if PROVIDERS[provider].device == "cpu" else Gpu(device)


def _open_packages(bundle: Bundle, place: Place, options: BackendOptions, progress: Progress) -> EngineSet[Runner]:
    """Return the bundle's compiled programs, the smallest one loaded. Raises BackendError where it is not built."""
    command = f"anomseg build {bundle.directory} --backend torch --provider {options.provider}"
    cache = EngineCache(default_root(FOLDER))
    packages = EngineSet(bundle, cache, PackageMaker(bundle, place, progress), command)
    if options.build_engine == CONFIGURE:
        packages.provide(progress)
    packages.smallest()
    return packages


def _compiled(program: Program, example: torch.Tensor, frozen: bool) -> Program:
    """frozen: whether the weights become constants."""
    compiled: Program = torch.compile(program, fullgraph=True, dynamic=False)
    # Set for the whole first call: the weights become constants before inductor's own options apply.
    with torch._inductor.config.patch(freezing=frozen):
        compiled(example)
    return compiled


@functools.cache
def compiler_works() -> bool:
    """Return whether torch can compile here. One addition is tried, since Python's headers may be missing."""
    try:
        doubled = torch.compile(lambda values: values + values, fullgraph=True)(torch.ones(64))
    except Exception:  # the compiler raises errors of many classes
        return False
    return bool((doubled == 2).all())


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
