"""Static post-training int8 of a checkpoint for PyTorch on a CPU: a program of torch.export, model.pt2.

Two methods give the same operators of torch.export, quantize, dequantize and convolution, for backends/torch.py:

pt2e: torchao's export path. The whole detector graph is exported, observed on frames and converted by
X86InductorQuantizer. Weights become int8 by output channel, inputs of convolutions uint8.

fx: the papers' graph mode (torch.ao.quantization.quantize_fx, deprecated since torch 2.10). torch.export does not take
its int8 modules, which hold packed weights. So the observed network becomes the decomposed reference form, plain
tensors and the operators above, with the same numbers, and is exported with the head. FX traces Python code with
placeholders for sizes, so padding, normalising and resizing stay outside, in float.

ENet's unpooling by masks (networks/enet.py) is comparisons and selections, which do not change. Classifier and head
stay in float (see quantize_onnx.py). Transposed convolutions do too: the compiler has no int8 kernel for them.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import operator
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from anomseg_ros.compression.convolutions import convolutions_of
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import AnomsegError, CompressionError, closest_first
from anomseg_ros.export import DetectorGraph, ExportConfig
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.networks.torch_program import delete_unused_tensors, inference_copy, reason_of

RANGE_METHODS = ("error", "minmax")


@dataclass(frozen=True)
class TorchQuantizeConfig:
    """How to quantize.

    method: "pt2e" or "fx". ranges: "minmax", or "error", the range of least squared error by torch's HistogramObserver.
    keep_float: names of modules to leave in float, beside the classifier.
    """

    method: str = "pt2e"
    ranges: str = "minmax"
    keep_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class TorchQuantized:
    """A quantized program. layers: number of convolutions; float_layers: names of those left in float."""

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
    """Quantize a network.

    Args:
        network: is not changed.
        export: of the detector graph around the network.
        tensors: calibration frames, uint8 (1, H, W, 3) of the export's size.
        config: how to quantize.
        progress: called after each step and frame.

    Raises:
        CompressionError: torch cannot trace or quantize the network (the message names the module or node where torch
            reports one), this torch lacks the method, or a layer is unknown.
    """
    float_layers = _float_layers(network, config.keep_float)
    ready = inference_copy(network)
    images = [torch.from_numpy(tensor.copy()) for tensor in tensors]
    build = _by_pt2e if config.method == "pt2e" else _by_fx
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # they are for torch's developers
        module = build(ready, export, images, config.ranges, float_layers, progress)
        delete_unused_tensors(module)
        program = _export(module, images[0], ready, config.method)
    if not any("quantize_per_tensor" in str(node.target) for node in program.graph.nodes):
        raise CompressionError("nothing was quantized: the network has no convolution but its classifier")
    return TorchQuantized(program, len(convolutions_of(network)), float_layers)


def _float_layers(network: SegmentationNetwork, names: Sequence[str]) -> tuple[str, ...]:
    """Return all layers left in float: the classifier, transposed convolutions, and those inside the named modules."""
    classifier = network.class_parameter[0].rpartition(".")[0]
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules:
            close = ", ".join(closest_first(name, modules)[:5])
            raise CompressionError(f"`keep_float`: the network has no module {name!r}; the closest: {close}")
    inside = (classifier, *names)
    return tuple(
        name
        for name, module in convolutions_of(network).items()
        if isinstance(module, nn.ConvTranspose2d) or any(name == top or name.startswith(f"{top}.") for top in inside)
    )


def _by_pt2e(
    network: SegmentationNetwork,
    export: ExportConfig,
    images: Sequence[torch.Tensor],
    ranges: str,
    float_layers: Sequence[str],
    progress: Progress,
) -> torch.fx.GraphModule:
    try:
        with _no_logs():  # they report missing kernels for graphics cards
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    except ImportError as error:
        raise CompressionError(
            f"PT2E needs torchao 0.15 or later beside torch {torch.__version__}: pip install 'anomseg_ros[offline]'"
        ) from error
    progress("exporting", 0, 3)
    graph = DetectorGraph(network, export).eval()
    graph.network = copy.deepcopy(network)
    _put_body(graph.network, _Body(network, graph.features))
    exported = _export(graph, images[0], network, "pt2e").module()
    progress("exporting", 1, 3)
    with _step("prepare it for int8", network, "pt2e"):
        prepared = prepare_pt2e(exported, _pt2e_quantizer(ranges, float_layers))
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
    """Turn all errors of torch, which have many classes, into a CompressionError that names the place."""
    try:
        with _no_logs():
            yield
    except AnomsegError:
        raise
    except Exception as error:
        place = _place(error, network)
        # Layers in float are traced and run too.
        keep = "leave that part in float with `keep_float`, or " if doing in _QUANTIZING else ""
        raise CompressionError(
            f"torch {torch.__version__} cannot quantize {network.name} by {method}, it fails to {doing}"
            f"{' at ' + place if place else ''}: {reason_of(error)}; {keep}use `torch_method` "
            f"{'fx' if method == 'pt2e' else 'pt2e'} or the `backend` onnxruntime"
        ) from error


_QUANTIZING = ("prepare it for int8", "convert it to int8", "round the weights")


def _export(module: nn.Module, image: torch.Tensor, network: SegmentationNetwork, method: str) -> ExportedProgram:
    # torch prints the unfinished graph before it raises.
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
                # An observed network is inside another one (_put_body).
                name = names[id(owner)].removeprefix("quantized").removeprefix(".").removeprefix("network.")
                module = f"module {name!r} ({type(owner).__name__})" if name else module
            node = next((value for value in frame.f_locals.values() if isinstance(value, torch.fx.Node)), node)
        error = error.__cause__ or error.__context__
    if module or node is None:
        return module
    # For an observer, report what it observes.
    if node.op == "call_module" and node.args and isinstance(node.args[0], torch.fx.Node):
        node = node.args[0]
    tensor = str(node.target).removeprefix(f"{BODY}.").removeprefix("network.")
    return f"tensor {tensor!r}" if node.op == "get_attr" else f"node {node.name!r} ({node.target})"


def _pt2e_quantizer(ranges: str, float_layers: Sequence[str]) -> Any:
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config()
    if ranges == "minmax":
        observer = MinMaxObserver.with_args(eps=2**-12)
        values = replace(config.input_activation, observer_or_fake_quant_ctr=observer)
        config = replace(config, input_activation=values, output_activation=values)
    quantizer = x86.X86InductorQuantizer()
    for name in float_layers:
        quantizer.set_module_name_qconfig(f"{BODY}.network.{name}", None)
    # A global configuration would quantize products of the scores too.
    quantizer.set_module_name_qconfig(BODY, config)
    return quantizer


def _norms_as_scale_and_shift(module: torch.fx.GraphModule) -> None:
    """Replace batch normalisations that follow no convolution by a product and a sum per channel.

    With such a normalisation in the graph, converting traces 48 forms of fine-tuned convolution and normalisation pairs
    and searches for them. There are none here, and the search takes many times as long as everything else.
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
        progress("ranges of values", index + 1, len(images))


def _by_fx(
    network: SegmentationNetwork,
    export: ExportConfig,
    images: Sequence[torch.Tensor],
    ranges: str,
    float_layers: Sequence[str],
    progress: Progress,
) -> torch.fx.GraphModule:
    tools = _fx_tools()
    graph = DetectorGraph(network, export).eval()
    height_px, width_px = (size + -size % network.stride for size in (export.height_px, export.width_px))
    example = (torch.zeros(1, 3, height_px, width_px),)
    mapping = _fx_mapping(ranges, float_layers)
    with _step("trace it", network, "fx"):
        prepared = tools.prepare_fx(_Body(network, graph.features), mapping, example)
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
    """Return torch's module of graph-mode quantization. Raises CompressionError where this torch has none."""
    try:
        from torch.ao.quantization import quantize_fx
    except ImportError as error:
        raise CompressionError(
            f"torch {torch.__version__} has no FX graph-mode quantization (torch.ao.quantization.quantize_fx); use "
            "`torch_method` pt2e"
        ) from error
    if not hasattr(quantize_fx, "_convert_to_reference_decomposed_fx"):
        raise CompressionError(
            f"torch {torch.__version__} cannot export what its FX graph mode quantizes; use `torch_method` pt2e"
        )
    return quantize_fx


def _fx_mapping(ranges: str, float_layers: Sequence[str]) -> Any:
    from torch.ao.quantization import QConfig, QConfigMapping
    from torch.ao.quantization.observer import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver

    observer = HistogramObserver if ranges == "error" else MinMaxObserver
    values = observer.with_args(dtype=torch.quint8)
    weights = PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    mapping = QConfigMapping().set_global(QConfig(activation=values, weight=weights))  # type: ignore[no-untyped-call]
    for name in float_layers:
        mapping.set_module_name(f"network.{name}", None)
    return mapping


BODY = "network.quantized"
"""The place of the quantized part in a detector's graph; see `_put_body`."""


class _Body(nn.Module):
    """The quantized part, which FX can trace: from normalised images of a fitting size to a prediction's tensors."""

    def __init__(self, network: SegmentationNetwork, features: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.features = network, features

    def forward(self, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return self.network.compute(images, self.features)


def _put_body(network: SegmentationNetwork, body: nn.Module) -> None:
    """Replace the network's own layers by `body`."""
    for name in dict(network.named_children()):
        delattr(network, name)
    network.add_module("quantized", body)
    # nn.Module would store a module under this name, behind the method.
    object.__setattr__(network, "compute", lambda images, features: body(images))


def _with_int8_weights(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Round the weights once. The reference form has float weights and quantizes them for every frame."""
    quantize = torch.ops.quantized_decomposed.quantize_per_channel.default
    for index, node in enumerate([node for node in module.graph.nodes if node.target is quantize]):
        name = f"weight_int8_{index}"
        module.register_buffer(name, quantize(*(_value(module, argument) for argument in node.args)))
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(name))
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _value(module: torch.fx.GraphModule, argument: Any) -> Any:
    """Return a constant argument, or the parameter that it names."""
    return operator.attrgetter(str(argument.target))(module) if isinstance(argument, torch.fx.Node) else argument
