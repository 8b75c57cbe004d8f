"""Static post-training int8 of a checkpoint for PyTorch on a CPU: a program of torch.export, model.pt2.

Two ways to the same operators, quantize, dequantize and convolution of torch.export, which backends/torch.py runs:

pt2e: torchao's export path. The whole detector graph is exported, observed on frames and converted by
X86InductorQuantizer: weights int8 by output channel, values uint8 at the inputs of convolutions.

fx: the graph-mode path of the papers (torch.ao.quantization.quantize_fx, deprecated since torch 2.10 and meant to go).
Its own int8 modules hold packed weights and quantized tensors, which torch.export does not take. So the observed
network is converted to the decomposed reference form instead, plain tensors and the operators above, and exported with
the head. The numbers are those of the path, the file is as safe and as portable as the other. It traces Python code
with placeholders for sizes: padding, normalising and resizing are therefore left outside, in float.

Either way ENet's unpooling by masks (networks/enet.py) is comparisons and selections, which stay as they are. The
classifier and what follows it stay in float, for the reasons that quantize_onnx.py gives; so do transposed
convolutions, for which the compiler has no int8 kernel.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import operator
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import AnomsegError, CompressionError, closest_first
from anomseg_ros.export import DetectorGraph, ExportConfig
from anomseg_ros.networks.base import SegmentationNetwork

TORCH_METHODS = ("pt2e", "fx")
CALIBRATIONS = ("error", "minmax")
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
Progress = Callable[[str, int, int], None]
"""Called with (what, done, of how many)."""


@dataclass(frozen=True)
class TorchQuantizeConfig:
    """How to quantize. calibration: minmax, or error, the range of least squared error by torch's HistogramObserver.

    keep_float: names of modules left in float, beside the classifier.
    """

    method: str = "pt2e"
    calibration: str = "minmax"
    keep_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class TorchQuantized:
    """A quantized program. layers: convolutions in all; float_layers: names of those left in float."""

    program: ExportedProgram
    layers: int
    float_layers: tuple[str, ...]


def quantize_torch(
    network: SegmentationNetwork,
    export: ExportConfig,
    tensors: Sequence[RgbImage],
    config: TorchQuantizeConfig,
    progress: Progress,
) -> TorchQuantized:
    """Quantize a network, which is not changed, calibrated on uint8 (1, H, W, 3) tensors of the export's size.

    Raises CompressionError for a network that torch cannot trace or quantize, with the module or node where torch
    stopped as far as it tells, for a torch without the method, and for unknown layers.
    """
    kept = _float_layers(network, config.keep_float)
    ready = _inference_copy(network)
    images = [torch.from_numpy(tensor.copy()) for tensor in tensors]
    build = _by_pt2e if config.method == "pt2e" else _by_fx
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tools speak to their own developers
        module = build(ready, export, images, config.calibration, kept, progress)
        _forget_what_no_node_uses(module)
        program = _export(module, images[0], ready, config.method)
    if not any("quantize_per_tensor" in str(node.target) for node in program.graph.nodes):
        raise CompressionError("nothing was quantized: the network has no convolution but its classifier")
    convolutions = [name for name, module in network.named_modules() if isinstance(module, CONVOLUTIONS)]
    convolutions = [name for name in convolutions if not name.startswith("auxiliary_heads.")]
    return TorchQuantized(program, len(convolutions), kept)


def save_program(program: ExportedProgram, path: Path) -> Path:
    """Write a program as model.pt2, without the lines of source it came from and without sample inputs.

    Raises CompressionError if torch cannot write it.
    """
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta = {key: value for key, value in node.meta.items() if key in ("val", "tensor_meta")}
    program.example_inputs = None
    try:
        torch.export.save(program, path)
    except Exception as error:  # of the disk, or of an operator that cannot be written
        raise CompressionError(
            f"torch {torch.__version__} cannot write {path}: {_reason(error)}; make room there, or use --backend "
            "onnxruntime if it is the program"
        ) from error
    return path


def _float_layers(network: SegmentationNetwork, names: Sequence[str]) -> tuple[str, ...]:
    """Return all layers left in float: the classifier, transposed convolutions, and what is inside the named ones."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, CONVOLUTIONS)}
    classifier = network.class_parameter[0].rpartition(".")[0]
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules:
            close = ", ".join(closest_first(name, modules)[:5])
            raise CompressionError(f"--keep-float: the network has no module {name!r}; the closest: {close}")
    inside = (classifier, *names)
    return tuple(
        name
        for name, module in layers.items()
        if isinstance(module, nn.ConvTranspose2d) or any(name == top or name.startswith(f"{top}.") for top in inside)
    )


def _inference_copy(network: SegmentationNetwork) -> SegmentationNetwork:
    """Return a copy without dropout, which stands between a convolution and the sum it could be one kernel with."""
    ready = copy.deepcopy(network).eval().requires_grad_(False)
    ready.auxiliary_heads = nn.ModuleList()
    for module in list(ready.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.Dropout, nn.Dropout2d)):
                setattr(module, name, nn.Identity())
    return ready


def _forget_what_no_node_uses(module: torch.fx.GraphModule) -> None:
    """Delete tensors that the graph does not name, such as weights that are int8 by now: a program holds them all."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)


def _by_pt2e(
    network: SegmentationNetwork,
    export: ExportConfig,
    images: Sequence[torch.Tensor],
    calibration: str,
    kept: Sequence[str],
    progress: Progress,
) -> torch.fx.GraphModule:
    try:
        with _no_logs():  # about kernels for graphics cards
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    except ImportError as error:
        raise CompressionError(
            f"PT2E needs torchao 0.15 or later beside torch {torch.__version__}: pip install 'anomseg_ros[offline]'"
        ) from error
    progress("exporting", 0, 3)
    exported = _export(DetectorGraph(network, export).eval(), images[0], network, "pt2e").module()
    progress("exporting", 1, 3)
    with _step("prepare it for int8", network, "pt2e"):
        prepared = prepare_pt2e(exported, _pt2e_quantizer(calibration, kept))
    progress("exporting", 2, 3)
    with _step("run it on frames", network, "pt2e"):
        _observe(prepared, images, progress)
    with _step("convert it to int8", network, "pt2e"):
        _norms_as_scale_and_shift(prepared)
        converted: torch.fx.GraphModule = convert_pt2e(prepared)
    progress("exporting", 3, 3)
    return converted


@contextlib.contextmanager
def _no_logs() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _step(doing: str, network: SegmentationNetwork, method: str) -> Iterator[None]:
    """Raise a CompressionError that names the place for whatever torch raises here, of which there are many classes."""
    try:
        with _no_logs():
            yield
    except AnomsegError:
        raise
    except Exception as error:
        place = _place(error, network)
        # What stays in float is traced and run all the same.
        keep = "leave that part in float with --keep-float NAME, or " if doing in _QUANTIZING else ""
        raise CompressionError(
            f"torch {torch.__version__} cannot quantize {network.name} by {method}, it fails to {doing}"
            f"{' at ' + place if place else ''}: {_reason(error)}; {keep}use --torch-method "
            f"{'fx' if method == 'pt2e' else 'pt2e'} or --backend onnxruntime"
        ) from error


def _reason(error: Exception) -> str:
    """Return the class of an error and the first paragraph of what it says, the rest is for torch's developers."""
    said = str(error).strip().partition("\n\n")[0]
    return f"{type(error).__name__}: {' '.join(said.split())[:200]}"


_QUANTIZING = ("prepare it for int8", "convert it to int8", "round the weights")


def _export(module: nn.Module, image: torch.Tensor, network: SegmentationNetwork, method: str) -> ExportedProgram:
    # torch prints the graph that it has so far before it raises.
    with _step("export it", network, method), contextlib.redirect_stderr(io.StringIO()):
        return torch.export.export(module, (image,))


def _place(error: BaseException | None, network: SegmentationNetwork) -> str:
    """Return the innermost module of the network that torch was in when it failed, else the node of the graph."""
    names = {id(module): name for name, module in network.named_modules()}
    module, node = "", None
    while error is not None and not module and node is None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            owner = frame.f_locals.get("self")
            if names.get(id(owner)):
                # An observed network lies inside another (_put_body).
                name = names[id(owner)].removeprefix("quantized").removeprefix(".").removeprefix("network.")
                module = f"module {name!r} ({type(owner).__name__})" if name else module
            node = next((value for value in frame.f_locals.values() if isinstance(value, torch.fx.Node)), node)
        error = error.__cause__ or error.__context__
    if module or node is None:
        return module
    # An observer is nobody's: what it observes tells more.
    if node.op == "call_module" and node.args and isinstance(node.args[0], torch.fx.Node):
        node = node.args[0]
    tensor = str(node.target).removeprefix("network.")
    return f"tensor {tensor!r}" if node.op == "get_attr" else f"node {node.name!r} ({node.target})"


def _pt2e_quantizer(calibration: str, kept: Sequence[str]) -> Any:
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config()
    if calibration == "minmax":
        observer = MinMaxObserver.with_args(eps=2**-12)
        values = replace(config.input_activation, observer_or_fake_quant_ctr=observer)
        config = replace(config, input_activation=values, output_activation=values)
    quantizer = x86.X86InductorQuantizer()
    for name in kept:
        quantizer.set_module_name_qconfig(f"network.{name}", None)
    # Not globally: products of the scores would be quantized as well.
    quantizer.set_module_name_qconfig("network", config)
    return quantizer


def _norms_as_scale_and_shift(module: torch.fx.GraphModule) -> None:
    """Replace the batch normalisations that follow no convolution (N, C, H, W): a product and a sum by channel.

    While there is one, converting looks for fine-tuned pairs of convolution and normalisation, in each of 48 forms that
    it traces anew; there are none here, and that takes many times as long as all else.
    """
    for index, node in enumerate(list(module.graph.nodes)):
        if node.target is not torch.ops.aten.batch_norm.default:
            continue
        values, *given = node.args[:5]
        weight, bias, mean, variance = (_value(module, argument) for argument in given)
        scale = weight * torch.rsqrt(variance + node.args[7])
        names = (f"scale_{index}", f"shift_{index}")
        for name, value in zip(names, (scale, bias - mean * scale), strict=True):
            module.register_buffer(name, value.detach().reshape(1, -1, 1, 1))
        with module.graph.inserting_before(node):
            for operation, name in zip((torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor), names, strict=True):
                values = module.graph.call_function(operation, (values, module.graph.get_attr(name)))
                values.meta = dict(node.meta)
        node.replace_all_uses_with(values)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _observe(module: nn.Module, images: Sequence[torch.Tensor], progress: Progress) -> None:
    for index, image in enumerate(images):
        module(image)
        progress("calibrating", index + 1, len(images))


def _by_fx(
    network: SegmentationNetwork,
    export: ExportConfig,
    images: Sequence[torch.Tensor],
    calibration: str,
    kept: Sequence[str],
    progress: Progress,
) -> torch.fx.GraphModule:
    tools = _fx_tools()
    graph = DetectorGraph(network, export).eval()
    height_px, width_px = (size + -size % network.stride for size in (export.height_px, export.width_px))
    example = (torch.zeros(1, 3, height_px, width_px),)
    mapping = _fx_mapping(calibration, kept)
    with _step("trace it", network, "fx"):
        prepared = tools.prepare_fx(_Body(network), mapping, example)
    _put_body(network, prepared)
    with _step("run it on frames", network, "fx"):
        _observe(graph, images, progress)
    with _step("convert it to int8", network, "fx"):
        _put_body(network, tools._convert_to_reference_decomposed_fx(prepared))
    exported = _export(graph, images[0], network, "fx").module()
    assert isinstance(exported, torch.fx.GraphModule)
    with _step("round the weights", network, "fx"):
        return _with_int8_weights(exported)


def _fx_tools() -> Any:
    """Return torch's module of graph-mode quantization; raise CompressionError where this torch has none."""
    try:
        from torch.ao.quantization import quantize_fx
    except ImportError as error:
        raise CompressionError(
            f"torch {torch.__version__} has no FX graph-mode quantization (torch.ao.quantization.quantize_fx); use "
            "--torch-method pt2e"
        ) from error
    if not hasattr(quantize_fx, "_convert_to_reference_decomposed_fx"):
        raise CompressionError(
            f"torch {torch.__version__} cannot export what its FX graph mode quantizes; use --torch-method pt2e"
        )
    return quantize_fx


def _fx_mapping(calibration: str, kept: Sequence[str]) -> Any:
    from torch.ao.quantization import QConfig, QConfigMapping
    from torch.ao.quantization.observer import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver

    observer = HistogramObserver if calibration == "error" else MinMaxObserver
    values = observer.with_args(dtype=torch.quint8)
    weights = PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    mapping = QConfigMapping().set_global(QConfig(activation=values, weight=weights))  # type: ignore[no-untyped-call]
    for name in kept:
        mapping.set_module_name(f"network.{name}", None)
    return mapping


class _Body(nn.Module):
    """Only what FX can trace: from normalised images of a size that fits to logits."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.classify(images)


def _put_body(network: SegmentationNetwork, body: nn.Module) -> None:
    """Have the network classify with `body`, in place of its own layers."""
    for name, _ in list(network.named_children()):
        delattr(network, name)
    network.add_module("quantized", body)
    # Past nn.Module, which would keep a module under this name where the method hides it.
    object.__setattr__(network, "classify", body)


def _with_int8_weights(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Round the weights now, once: the reference form keeps them in float and quantizes them with every frame."""
    quantize = torch.ops.quantized_decomposed.quantize_per_channel.default
    for index, node in enumerate(list(module.graph.nodes)):
        if node.target is not quantize:
            continue
        given = (_value(module, arg) for arg in node.args)
        name = f"weight_int8_{index}"
        module.register_buffer(name, quantize(*given))
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(name))
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _value(module: torch.fx.GraphModule, argument: Any) -> Any:
    """Return a constant argument, or the parameter that it names."""
    return operator.attrgetter(str(argument.target))(module) if isinstance(argument, torch.fx.Node) else argument
