"""The networks of benchmarks/gpu.py: whole detectors in each precision, their parity, work, and two forms of labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import WEIGHTS
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from anomseg_ros.export import DetectorGraph, ExportConfig
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.counting import count_multiply_adds
from anomseg_ros.networks.network import SegmentationNetwork, pixels_to_input
from anomseg_ros.scores import default_scores

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NUM_CLASSES, VOID_CLASS = 20, 19
CHECKPOINTS = {
    "erfnet": "erfnet_void20_dequantized.safetensors",
    "enet": "enet_560_epochs_finetuned.pth",
    "mide_net": "midenet_distilled.pth",
}
"""Network -> file in the folder of weights."""
SAMPLED_PX = 20_000
"""Pixels per frame for the rank correlation."""

Frame = npt.NDArray[np.uint8]
Outputs = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]
"""Labels and default score of a frame."""


class TypedGraph(DetectorGraph):
    """A DetectorGraph with its network in the given type; pixels, upsampling, labels and score are float32.

    Images need a height and width that are multiples of the network's stride.
    """

    def __init__(self, network: SegmentationNetwork, config: ExportConfig, dtype: torch.dtype) -> None:
        # A copy, since the graph moves to the device and the reference stays on the processor.
        super().__init__(
            copy.deepcopy(network.for_gpu()) if dtype == torch.float32 else in_half(network, dtype), config
        )
        self.dtype = dtype

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """image: uint8 (1, H, W, 3)."""
        network, size_px = self.network, (image.shape[1], image.shape[2])
        images = network._normalise(pixels_to_input(image))
        tensors, maps = network.compute(images.to(self.dtype), self.features)
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
        maps = {name: tensor.float() for name, tensor in maps.items()}
        prediction = network.kind(size_px=size_px, padded_px=size_px, features=maps, **tensors)
        logits = prediction.pixel_logits()
        scores = self.scores.frame_scores(self.scores.pixel_maps(logits), prediction)
        return self.labels(logits).to(torch.uint8), *scores


def in_half(network: SegmentationNetwork, dtype: torch.dtype) -> SegmentationNetwork:
    """Return a copy of the network, as exported for GPUs, in half precision.

    As in exported graphs, normalisations are first folded into their convolutions, because variances can be too small
    for float16. A normalisation that follows no convolution stays in float32.
    """
    network = folded(network.for_gpu())
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.PReLU)):
            # Camera pixels arrive with their channels last, so the convolutions take them as they are.
            layout = torch.channels_last if module.weight.ndim == 4 else torch.preserve_format
            module.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
    return network


def folded(network: SegmentationNetwork) -> SegmentationNetwork:
    """Return a copy, in evaluation mode, with the normalisations folded into the convolutions before them."""
    network = copy.deepcopy(network)
    made: list[tuple[Tensor, nn.Module]] = []
    pairs: list[tuple[Any, Any]] = []
    hooks = []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            hooks.append(module.register_forward_hook(lambda conv, _, output: made.append((output, conv))))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(
                module.register_forward_hook(
                    lambda norm, inputs, _: pairs.extend((conv, norm) for value, conv in made if value is inputs[0])
                )
            )
    with torch.no_grad():
        network.predict(torch.zeros((1, 3, 2 * network.stride, 2 * network.stride)))
        for conv, norm in pairs:
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            transposed = isinstance(conv, nn.ConvTranspose2d)
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, transpose=transposed)
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in network.named_modules()}
    for _, norm in pairs:
        network.set_submodule(names[norm], nn.Identity())
    return network


def config_of(name: str, size: tuple[int, int]) -> ExportConfig:
    """Return the configuration of a void classifier with the default score."""
    scores = default_scores(with_void=True)[:1]
    return ExportConfig(name, NUM_CLASSES, VOID_CLASS, height_px=size[0], width_px=size[1], scores=scores)


def load_network(name: str) -> tuple[SegmentationNetwork, str]:
    """Return a network in evaluation mode and where its weights are from: a file's name, or "random"."""
    path = WEIGHTS / CHECKPOINTS.get(name, "none")
    if path.is_file():
        return load_checkpoint(path, name, NUM_CLASSES).eval(), path.name
    torch.manual_seed(0)
    return settled(build_network(name, NUM_CLASSES)), "random"


def settled(network: SegmentationNetwork) -> SegmentationNetwork:
    """Return the network in evaluation mode, its normalisations fitted to noise of four brightnesses.

    Without it the values of random weights fade from layer to layer, and their rounding says little.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    noise = torch.rand((4, 3, 64, 128)) * torch.tensor([0.25, 0.5, 0.75, 1.0]).view(4, 1, 1, 1)
    with torch.no_grad():
        network.train()(noise)
        for norm in norms:
            norm.running_var.clamp_(min=1e-2)
    return network.eval()


def reference_outputs(network: SegmentationNetwork, config: ExportConfig, frames: Sequence[Frame]) -> list[Outputs]:
    """Return what the float32 graph computes on the processor, per frame."""
    graph = DetectorGraph(network, config).eval()
    return [to_numpy(graph(torch.from_numpy(frame)[None])) for frame in frames]


def to_numpy(outputs: Sequence[Tensor]) -> Outputs:
    """Return copies of labels and score on the host, each (H, W)."""
    labels, score = (output[0].cpu().numpy().copy() for output in outputs)
    return labels, score


def parity(reference: Sequence[Outputs], outputs: Sequence[Outputs]) -> dict[str, Any]:
    """Return the share of equal labels, and the rank correlation and largest difference of the score."""
    equal = [float((one[0] == two[0]).mean()) for one, two in zip(reference, outputs, strict=True)]
    pairs = [np.stack([one[1].ravel(), two[1].ravel()]) for one, two in zip(reference, outputs, strict=True)]
    sampled = np.concatenate([pair[:, :: max(1, pair.shape[1] // SAMPLED_PX)] for pair in pairs], axis=1)
    return {
        "label_agreement": float(np.mean(equal)),
        "rank_correlation": rank_correlation(*sampled),
        "max_difference": max(float(np.abs(one - two).max()) for one, two in pairs),
    }


def rank_correlation(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Return Spearman's rank correlation, as anomseg_ros.compression.drift does.

    That module needs rosbags, which a borrowed machine with a GPU has not.
    """
    ranks = []
    for values in (first, second):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.asarray(np.corrcoef(np.stack(ranks)))[0, 1])


def work_of(network: SegmentationNetwork, size: tuple[int, int]) -> dict[str, int]:
    """Return multiply-adds, and the input and output values of the convolutions, for one image."""
    twin = copy.deepcopy(network).to("meta").eval()
    values: list[int] = []
    for module in twin.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(lambda _, inputs, output: values.append(inputs[0].numel() + output.numel()))
    with torch.no_grad():
        twin(torch.empty((1, 3, *size), device="meta"))
    return {"multiply_adds": count_multiply_adds(network, *size), "convolution_values": sum(values)}


def floor_ms(work: dict[str, int], precision: str, ceilings: dict[str, Any]) -> float:
    """Return the least time that the measured ceilings allow: of the arithmetic or of the convolutions' traffic."""
    arithmetic_ms = 2 * work["multiply_adds"] / ceilings["matmul_tflops"][precision] / 1e9
    bytes_ = work["convolution_values"] * PRECISIONS[precision].itemsize
    return max(arithmetic_ms, bytes_ / ceilings["copy_gb_per_s"] / 1e6)


def labels_by_argmax(logits: Tensor) -> tuple[Tensor, ...]:
    """Return uint8 labels (1, H, W) of logits (1, C, H, W)."""
    return (logits.argmax(dim=1).to(torch.uint8),)


def labels_by_comparisons(logits: Tensor) -> tuple[Tensor, ...]:
    """Return the same by a chain of Greater, Where and Max, which compilers fuse into one pass."""
    best = logits[:, 0]
    index = torch.zeros_like(best, dtype=torch.int32)
    for channel in range(1, logits.shape[1]):
        values = logits[:, channel]
        index = index.masked_fill(values > best, channel)
        best = torch.maximum(best, values)
    return (index.to(torch.uint8),)
