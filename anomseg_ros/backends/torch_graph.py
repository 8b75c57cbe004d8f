"""The program in model.pt2 as torch's graph: loaded once it is known to be data, compared with bundle.yaml, cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from anomseg_ros.backends.torch_archive import EXPECTED, read_plain_program
from anomseg_ros.core.bundle import TORCH_FILE, Bundle
from anomseg_ros.core.processor import has_exact_int8_for
from anomseg_ros.errors import BackendError

_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
_SHOWN_ERROR = 500


def load_program(path: Path) -> ExportedProgram:
    """Return the program in a file. Raises BackendError for a file that is damaged, or more than data."""
    checked = read_plain_program(path)
    # Registers the operators quantized_decomposed.* of programs.
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    try:
        return torch.export.load(checked)
    except Exception as error:  # of many classes
        raise BackendError(
            f"{path} cannot be loaded by torch {torch.__version__}: {one_line(error)}; {EXPECTED}"
        ) from error


def load_graph(bundle: Bundle, device: torch.device) -> torch.fx.GraphModule:
    """Return the program of a bundle on a device, for inference. Raises BackendError."""
    path = bundle.require_program(TORCH_FILE)
    program = load_program(path)
    try:
        tensors = (*program.state_dict.values(), *program.constants.values())
        if device.type != "cpu" or any(tensor.device != device for tensor in tensors):
            program = move_to_device_pass(program, device)
        # module() gives one that only infers; quantized programs have no training mode.
        graph: torch.fx.GraphModule = program.module()
    except Exception as error:
        raise BackendError(
            f"{path} cannot be put onto {device} by torch {torch.__version__}: {one_line(error)}"
        ) from error
    _check_outputs(graph, bundle)
    return graph


def freezes(bundle: Bundle, device: torch.device) -> bool:
    """Return whether a compiled program of a bundle gets constant weights.

    With these, layers of int8 programs become int8 kernels, which overflow on some processors (core/processor.py).
    There, the layers are computed in float on the same rounded values.
    """
    return device.type != "cpu" or has_exact_int8_for(bundle.contract)


def cut(graph: torch.fx.GraphModule, indices: Sequence[int]) -> torch.fx.GraphModule:
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


def input_shape(bundle: Bundle) -> tuple[int, int, int, int]:
    """Return the shape of a bundle's uint8 input."""
    spec = bundle.contract.input
    return 1, spec.height_px, spec.width_px, 3


def one_line(error: Exception) -> str:
    """Return an error's message on one line, not too long."""
    return " ".join(str(error).split())[:_SHOWN_ERROR]


def _check_outputs(graph: torch.fx.GraphModule, bundle: Bundle) -> None:
    """Raise BackendError unless the program has the inputs and outputs that bundle.yaml describes."""
    given = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
    made: Any = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    found = [(value.dtype, tuple(value.shape)) for value in given if isinstance(value, torch.Tensor)]
    found += [(node.meta["val"].dtype, tuple(node.meta["val"].shape)) for node in made]
    shape = input_shape(bundle)
    expected = [(torch.uint8, tuple(shape))]
    expected += [(_DTYPES[output.dtype], shape[:3]) for output in bundle.contract.outputs]
    if found != expected:
        raise BackendError(
            f"{bundle.directory / TORCH_FILE} is not the program that bundle.yaml describes: it has {found}, "
            f"expected {expected}"
        )
