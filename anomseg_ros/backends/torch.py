"""PyTorch on a CPU: runs model.pt2, without the network's source, compiled to int8 kernels where possible.

A program of torch.export holds each int8 layer as dequantize, convolution, quantize. Run like that ("eager"), it is
slower than float. torch's compiler (inductor, with the weights frozen into the program) makes one int8 kernel of the
three operators. It needs a C++ compiler and Python's headers on this machine. Compiling takes half a minute to some
minutes for each set of outputs; torch caches the result in its own folder.
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

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.torch_archive import EXPECTED, read_plain_program
from anomseg_ros.core.bundle import LABELS_OUTPUT, TORCH_FILE, Bundle
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError, unknown_name

PROVIDERS = {"cpu": "inductor", "inductor": "inductor", "eager": "eager"}
"""Provider -> how the program runs. Every backend has the provider cpu."""

_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
Program = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


class TorchBackend:
    """Runs model.pt2. There is one compiled program at a time, for the outputs that were requested last."""

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
            # The number belongs to the process; another bundle may have changed it.
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            try:
                names, program = self._program(tuple(sorted(set(outputs), key=self._names.index)))
                values = dict(zip(names, program(torch.from_numpy(np.array(tensor))), strict=True))
            except Exception as error:  # the compiler raises errors of many classes
                hint = "; `--provider eager` does without the compiler" if self._compiles else ""
                where = f"torch {torch.__version__} failed on {self._path}"
                raise BackendError(f"{where}: {_one_line(error)}{hint}") from error
        return [values[name].numpy() for name in outputs]

    def close(self) -> None:
        """Release the program."""
        self._programs.clear()
        del self._graph

    def _program(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], Program]:
        """Return a program with its outputs. It computes these outputs, and perhaps the labels."""
        for compiled, program in self._programs.items():
            # Unwanted labels take little time; another program takes minutes to compile.
            if set(compiled) - set(names) <= {LABELS_OUTPUT} and set(names) <= set(compiled):
                return compiled, program
        wanted: Program = _cut(self._graph, [self._names.index(name) for name in names])
        if self._compiles:
            wanted = _compiled(wanted, torch.zeros(self._shape, dtype=torch.uint8))
        self._programs = {names: wanted}
        return names, wanted


def _compiled(program: Program, example: torch.Tensor) -> Program:
    compiled: Program = torch.compile(program, fullgraph=True, dynamic=False)
    # Set for the whole first call: the weights become constants before inductor's own options apply.
    with torch._inductor.config.patch(freezing=True):
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


def _load(path: Path) -> torch.fx.GraphModule:
    checked = read_plain_program(path)
    # Registers the operators quantized_decomposed.* of programs.
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    try:
        # module() gives one that only infers; quantized programs have no training mode.
        module: torch.fx.GraphModule = torch.export.load(checked).module()
    except Exception as error:
        raise BackendError(
            f"{path} cannot be loaded by torch {torch.__version__}: {_one_line(error)}; {EXPECTED}"
        ) from error
    return module


def _check_outputs(graph: torch.fx.GraphModule, bundle: Bundle, shape: tuple[int, ...]) -> None:
    """Raise BackendError unless the program has the inputs and outputs that bundle.yaml describes."""
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
    """Return the program with only these outputs."""
    whole = torch.fx.Graph()
    made: Any = whole.graph_copy(graph.graph, {})
    whole.output(tuple(made[index] for index in indices))
    for node in list(whole.nodes):
        # Checks of types keep the checked values in the graph.
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            whole.erase_node(node)
    whole.eliminate_dead_code()
    return torch.fx.GraphModule(graph, whole)


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
