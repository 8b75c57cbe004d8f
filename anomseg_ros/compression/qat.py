"""Quantization-aware fine-tuning: train a float checkpoint so that its int8 form is closer to the original network.

During training the network computes as int8 will: weights are symmetric by output channel, inputs of convolutions have
256 levels per tensor. Gradients pass through the rounding unchanged (Bengio et al., arXiv 1308.3432; Jacob et al., CVPR
2018, arXiv 1712.05877). The network learns the class probabilities of its float parent by the Kullback-Leibler
divergence (Hinton et al., arXiv 1503.02531), so the camera's own frames suffice, without labels. Batch normalisations
keep their statistics. They scale whole output channels, so rounding the raw weights by output channel equals rounding
the folded ones.

The result is an ordinary checkpoint with the same keys; both quantizers calibrate it as any other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from anomseg_ros.compression.convolutions import convolutions_of
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError, ConfigError
from anomseg_ros.networks.network import SegmentationNetwork, pixels_to_input
from anomseg_ros.training.losses import distillation, mean_probability

SMALLEST_SCALE = 1e-8


@dataclass(frozen=True)
class FineTuneConfig:
    """How to fine-tune.

    steps: batches to train on; batch: crops per batch; crop: share of the frame's height and width, 1 by default, since
    the borders and ranges of crops are not those of frames. label_weight: of the cross-entropy with the parent's labels
    beside its probabilities. range_momentum: how far each frame's range moves the range in use.
    """

    steps: int = 200
    learning_rate: float = 3e-5
    batch: int = 1
    crop: float = 1.0
    temperature: float = 1.0
    label_weight: float = 0.0
    range_momentum: float = 0.01
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError for a value that cannot work."""
        if self.steps < 1 or self.batch < 1 or not 0 < self.crop <= 1 or not self.learning_rate > 0:
            raise ConfigError(
                f"{self}: steps and batch must be at least 1, crop above 0 and at most 1, learning_rate above 0"
            )


@dataclass(frozen=True)
class FineTuned:
    """The float network in evaluation mode, and its mean loss as int8 over the frames, before and after."""

    network: SegmentationNetwork
    loss_before: float
    loss_after: float


def fine_tune(
    parent: SegmentationNetwork,
    tensors: Sequence[RgbImage],
    config: FineTuneConfig,
    progress: Progress,
    weight_bits: int = 8,
) -> FineTuned:
    """Return a copy of a network that is fine-tuned for int8.

    Args:
        parent: is not changed.
        tensors: frames, uint8 (1, H, W, 3).
        config: how to fine-tune.
        progress: called after each frame and step.
        weight_bits: bits of the integer weights.

    Raises:
        CompressionError: the loss is not finite.
    """
    config.check()
    teacher = copy.deepcopy(parent).eval().requires_grad_(False)
    student = copy.deepcopy(parent).eval().requires_grad_(True)
    student.auxiliary_heads.requires_grad_(False)
    images = [pixels_to_input(torch.from_numpy(tensor.copy())) for tensor in tensors]
    handles = _simulate_int8(student, config.range_momentum, weight_bits)
    _find_ranges(student, images, progress)
    before = _mean_loss(student, teacher, images, config)
    _train(student, teacher, images, config, progress)
    after = _mean_loss(student, teacher, images, config)
    for handle in handles:
        handle.remove()
    _back_to_float(student)
    result = copy.deepcopy(parent).eval().requires_grad_(False)
    result.load_state_dict(student.state_dict())
    return FineTuned(result, before, after)


class RoundedWeight(nn.Module):
    """Rounds weights to symmetric integers of some bits by output channel; gradients pass through."""

    def __init__(self, axis: int, bits: int = 8) -> None:
        super().__init__()
        self.axis, self.most = axis, 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        others = [axis for axis in range(weight.dim()) if axis != self.axis]
        scale = (weight.detach().abs().amax(others) / self.most).clamp_min(SMALLEST_SCALE)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, self.axis, -self.most, self.most)


class RoundedInput:
    """A pre-hook of a layer that rounds its input to 256 levels.

    The range is at first that of all frames (`widening`), then a moving average that follows the weights.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.low, self.high = 0.0, 0.0
        self.widening = True

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = inputs[0]
        low, high = (float(edge) for edge in values.detach().aminmax())
        if not math.isfinite(high - low):
            return inputs  # the loss is not finite then, which is reported
        # Zero is a level in any range: padding is zero.
        low, high = min(low, 0.0), max(high, 0.0)
        if self.widening:
            self.low, self.high = min(self.low, low), max(self.high, high)
            return inputs
        self.low += self.momentum * (low - self.low)
        self.high += self.momentum * (high - self.high)
        scale = max((self.high - self.low) / 255, SMALLEST_SCALE)
        return (torch.fake_quantize_per_tensor_affine(values, scale, round(-self.low / scale), 0, 255), *inputs[1:])


def layers_in_int8(network: SegmentationNetwork) -> list[nn.Module]:
    """Return the layers that the quantizers round: convolutions but the classifier and auxiliary heads."""
    return [layer for layer in convolutions_of(network).values() if layer is not network.classifier_layer]


def _simulate_int8(network: SegmentationNetwork, momentum: float, bits: int) -> list[Any]:
    handles = []
    for layer in layers_in_int8(network):
        rounded = RoundedWeight(int(isinstance(layer, nn.ConvTranspose2d)), bits)
        parametrize.register_parametrization(layer, "weight", rounded)
        handles.append(layer.register_forward_pre_hook(RoundedInput(momentum)))
    return handles


def _find_ranges(student: SegmentationNetwork, images: Sequence[Tensor], progress: Progress) -> None:
    with torch.no_grad():
        for index, image in enumerate(images):
            student.predict(image)
            progress("ranges", index + 1, len(images))
    for module in student.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, RoundedInput):
                hook.widening = False


def _train(
    student: SegmentationNetwork,
    teacher: SegmentationNetwork,
    images: Sequence[Tensor],
    config: FineTuneConfig,
    progress: Progress,
) -> None:
    generator = torch.Generator().manual_seed(config.seed)
    # In evaluation mode the normalisations keep their statistics; their scale and shift learn like any weight.
    optimizer = torch.optim.Adam([value for value in student.parameters() if value.requires_grad], config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
    for step in range(config.steps):
        batch = torch.cat([_crop(images, student.stride, config.crop, generator) for _ in range(config.batch)])
        with torch.no_grad():
            expected = teacher.predict(batch).pixel_logits()
        loss = _distance(student.predict(batch).pixel_logits(), expected, config)
        if not torch.isfinite(loss):
            raise CompressionError(
                f"fine-tuning: the loss is {float(loss.detach())} at step {step + 1}; give a lower learning rate than "
                f"{config.learning_rate:g}"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress("fine-tuning", step + 1, config.steps)


def _rate(step: int, steps: int) -> float:
    """Return the share of the learning rate: it rises over a tenth of the steps and follows half a cosine to almost 0.

    Adam's first steps move every weight by the whole rate, whatever the gradient. That is much more than int8 does.
    """
    rising = min(1.0, (step + 1) / max(1, steps // 10))
    return rising * (1 + math.cos(math.pi * step / steps)) / 2


def _mean_loss(
    student: SegmentationNetwork, teacher: SegmentationNetwork, images: Sequence[Tensor], config: FineTuneConfig
) -> float:
    with torch.no_grad():
        pairs = ((student.predict(image), teacher.predict(image)) for image in images)
        losses = (float(_distance(ours.pixel_logits(), theirs.pixel_logits(), config)) for ours, theirs in pairs)
        return sum(losses) / len(images)


def _distance(logits: Tensor, expected: Tensor, config: FineTuneConfig) -> Tensor:
    """Return the mean over pixels of the divergence of the student's probabilities (N, C, H, W) from the teacher's."""
    loss = distillation(logits, mean_probability([expected], config.temperature), temperature=config.temperature)
    return loss + config.label_weight * F.cross_entropy(logits, expected.argmax(1)) if config.label_weight else loss


def _crop(images: Sequence[Tensor], stride: int, share: float, generator: torch.Generator) -> Tensor:
    """Return a random part (1, 3, h, w) of a random image, mirrored half of the time."""

    def draw(most: int) -> int:
        return int(torch.randint(most + 1, (1,), generator=generator))

    image = images[draw(len(images) - 1)]
    height, width = image.shape[-2:]
    inner = [min(size, max(stride, round(share * size / stride) * stride)) for size in (height, width)]
    top, left = draw(height - inner[0]), draw(width - inner[1])
    part = image[..., top : top + inner[0], left : left + inner[1]]
    return part.flip(-1) if draw(1) else part


def _back_to_float(student: SegmentationNetwork) -> None:
    """Put the learned float weights back under their own keys."""
    for layer in layers_in_int8(student):
        learned = layer.parametrizations["weight"].original.detach().clone()  # type: ignore[index, union-attr]
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        with torch.no_grad():
            layer.weight.copy_(learned)  # type: ignore[operator]
