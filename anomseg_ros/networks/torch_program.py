"""A network's graph as a program of torch.export, and the file model.pt2 that holds it."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from anomseg_ros.errors import ExportError
from anomseg_ros.networks.network import SegmentationNetwork


def program_of(graph: nn.Module, image: torch.Tensor) -> ExportedProgram:
    """Return the program of a module that takes one tensor like `image`. Raises ExportError where torch cannot."""
    # torch prints the unfinished graph before it raises, and its warnings are for its developers.
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(graph, (image,))
        except Exception as error:  # of many classes
            raise ExportError(
                f"torch {torch.__version__} cannot export this network as a program: {reason_of(error)}; leave "
                "`torch_program` out"
            ) from error


def save_program(program: ExportedProgram, path: Path) -> Path:
    """Write a program as model.pt2, without references to its source code and without sample inputs.

    Raises ExportError if torch cannot write it.
    """
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta = {key: value for key, value in node.meta.items() if key in ("val", "tensor_meta")}
    program.example_inputs = None
    try:
        torch.export.save(program, path)
    except Exception as error:  # of the disk, or of an operator that cannot be written
        raise ExportError(
            f"torch {torch.__version__} cannot write {path}: {reason_of(error)}; make room there, or use the "
            "`backend` onnxruntime if it is the program"
        ) from error
    return path


def inference_copy(network: SegmentationNetwork) -> SegmentationNetwork:
    """Return a copy without dropout, which would keep a convolution and a sum from becoming one kernel."""
    ready = copy.deepcopy(network).eval().requires_grad_(False)
    ready.auxiliary_heads = nn.ModuleList()
    for module in list(ready.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.Dropout, nn.Dropout2d)):
                setattr(module, name, nn.Identity())
    return ready


def delete_unused_tensors(module: torch.fx.GraphModule) -> None:
    """Delete tensors that the graph does not use, such as the float form of int8 weights."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)


def reason_of(error: Exception) -> str:
    """Return the class of an error and its first paragraph; the rest is for torch's developers."""
    message = str(error).strip().partition("\n\n")[0]
    return f"{type(error).__name__}: {' '.join(message.split())[:200]}"
