"""PyTorch on a CPU: runs model.pt2, without the network's source, compiled to int8 kernels where that is possible.

A program of torch.export holds each int8 layer as dequantize, convolution, quantize. Run as it stands ("eager") that is
slower than float. torch's compiler (inductor, with the weights frozen into the program) makes one int8 kernel of the
three; it needs a C++ compiler and Python's headers on the machine that runs it. Compiling takes from half a minute to
some minutes, once for each set of outputs; torch keeps what it compiled in its own cache folder.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch._inductor.config

from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.backends.torch_archive import EXPECTED, read_plain_program
from anomseg_ros.core.bundle import TORCH_FILE, Bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, unknown_name

PROVIDERS = {"cpu": "inductor", "inductor": "inductor", "eager": "eager"}
"""Provider -> how the program runs; cpu is the default of every backend."""

_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
Program = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


class TorchBackend:
    """Runs model.pt2. There is one compiled program at a time, of the outputs that were asked for last."""

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        if options.provider not in PROVIDERS:
            raise BackendError(unknown_name("torch provider", options.provider, PROVIDERS))
        wanted = PROVIDERS[options.provider]
        self.requested = f"torch:{wanted}"
        self._threads = options.threads or _core_count()
        self._shape = (1, bundle.contract.input.height_px, bundle.contract.input.width_px, 3)
        self._names = [output.name for output in bundle.contract.outputs]
        self._path = bundle.require_program(TORCH_FILE)
        self._graph = _load(self._path)
        _check_outputs(self._graph, bundle, self._shape)
        self._compiles = wanted == "inductor" and compiler_works()
        self.actual = f"torch:{wanted}" if self._compiles or wanted == "eager" else "torch:eager (no C++ compiler)"
        self._programs: dict[tuple[str, ...], Program] = {}
        self._lock = threading.Lock()

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the program; see Backend.run."""
        if tensor.shape != self._shape or tensor.dtype != np.uint8:
            raise BackendError(f"expected a uint8 {self._shape} tensor, got {tensor.dtype} {tensor.shape}")
        with self._lock, torch.no_grad():
            # The number is the process's: another bundle may have set it since.
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            try:
                names, program = self._program(tuple(sorted(set(outputs), key=self._names.index)))
                found = dict(zip(names, program(torch.from_numpy(np.array(tensor))), strict=True))
            except Exception as error:  # the compiler raises errors of many classes
                hint = "; `--provider eager` does without the compiler" if self._compiles else ""
                where = f"torch {torch.__version__} failed on {self._path}"
                raise BackendError(f"{where}: {_one_line(error)}{hint}") from error
        return [found[name].numpy() for name in outputs]

    def close(self) -> None:
        """Release the program."""
        self._programs.clear()
        del self._graph

    def _program(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], Program]:
        """Return what computes these outputs, and no other if they are new."""
        for known, program in self._programs.items():
            # The labels beside a score take little; a program of its own takes minutes to compile.
            if set(names) <= set(known) and len(known) - len(names) <= ("labels" in set(known) - set(names)):
                return known, program
        wanted: Program = _cut(self._graph, [self._names.index(name) for name in names])
        if self._compiles:
            wanted = _compiled(wanted, torch.zeros(self._shape, dtype=torch.uint8))
        self._programs = {names: wanted}
        return names, wanted


def _compiled(program: Program, example: torch.Tensor) -> Program:
    compiled: Program = torch.compile(program, fullgraph=True, dynamic=False)
    # Set for the whole first call: the weights are already made constants, or not, before inductor's own options hold.
    with torch._inductor.config.patch(freezing=True):
        compiled(example)
    return compiled


@functools.cache
def compiler_works() -> bool:
    """Whether torch can compile here: tried on one addition, since a compiler without Python's headers will not do."""
    try:
        doubled = torch.compile(lambda values: values + values, fullgraph=True)(torch.ones(64))
    except Exception:  # the compiler raises errors of many classes
        return False
    return bool((doubled == 2).all())


def _load(path: Path) -> torch.fx.GraphModule:
    checked = read_plain_program(path)
    # It registers the operators quantized_decomposed.*, which a program names.
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    try:
        # Quantized programs have no training mode of their own; module() gives one that only infers.
        module: torch.fx.GraphModule = torch.export.load(checked).module()
    except Exception as error:
        raise BackendError(
            f"{path} cannot be loaded by torch {torch.__version__}: {_one_line(error)}; {EXPECTED}"
        ) from error
    return module


def _check_outputs(graph: torch.fx.GraphModule, bundle: Bundle, shape: tuple[int, ...]) -> None:
    """Raise BackendError unless the program takes and gives what bundle.yaml says."""
    given = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
    made: Any = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    found = [(value.dtype, tuple(value.shape)) for value in given if isinstance(value, torch.Tensor)]
    found += [(node.meta["val"].dtype, tuple(node.meta["val"].shape)) for node in made]
    expected = [(torch.uint8, shape)]
    expected += [(_DTYPES[output.dtype], shape[:3]) for output in bundle.contract.outputs]
    if found != expected:
        raise BackendError(
            f"{bundle.directory / TORCH_FILE} is not the program that bundle.yaml describes: it has {found}, "
            f"expected {expected}"
        )


def _cut(graph: torch.fx.GraphModule, indices: Sequence[int]) -> torch.fx.GraphModule:
    """Return the program with only these outputs and what they need."""
    whole = torch.fx.Graph()
    made: Any = whole.graph_copy(graph.graph, {})
    whole.output(tuple(made[index] for index in indices))
    for node in list(whole.nodes):
        # Checks of types that cannot change would keep alive what they check.
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            whole.erase_node(node)
    whole.eliminate_dead_code()
    return torch.fx.GraphModule(graph, whole)


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
