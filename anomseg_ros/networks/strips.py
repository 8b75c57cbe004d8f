"""Classification at full size in strips of rows, for exported graphs.

Engines run one operator after another, and labels and scores read C logits per pixel several times. The logits of a
whole frame (40 MB at 512x1024 with 20 classes) come from memory each time; those of a strip stay in the processor's
cache. Engines also reduce over the classes of (rows, C, columns) two to three times as fast as over the first axis of
(C, rows, columns). benchmarks/strips.py measures both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.core.transposed_convolution import phase_kernels
from anomseg_ros.errors import ConfigError

STRIP_ROWS = 64
"""Pixel rows per strip. At 512x1024, 32 and 128 were slower, and so was the whole frame."""
COLUMNS = 16
"""Columns of logits that one product enlarges. Fewer make narrow products; more waste work on zeros."""
SLOW_CHANNELS, LEAST_CHANNELS = 64, 80
"""OpenVINO is slow to convert the layout of a convolution's result with up to 64 channels: 44 channels take 27 ms a
frame, 80 channels 6 ms. So classifiers with at most 64 channels are padded to 80."""


class Strips(Protocol):
    """A last layer that yields its logits strip by strip."""

    def __call__(self, features: Tensor) -> Iterator[Tensor]:
        """Yield float32 (R, C, W) strips from top to bottom; each layer has its own order of pixels."""
        ...

    def join(self, strips: Sequence[Tensor]) -> Tensor:
        """Return (H, W) in the usual order of pixels from the (R, W) computed of each strip."""
        ...


class StripUpsampler(nn.Module):
    """Enlarges logits by a whole factor, equal to F.interpolate(mode="bilinear", align_corners=False)."""

    def __init__(self, scale: int, height: int, width: int) -> None:
        """scale: output pixels per logit. height, width: size of the logits."""
        super().__init__()
        self._width, self._height = scale * width, height
        self._rows = max(1, STRIP_ROWS // scale)
        self.register_buffer("_down", bilinear_weights(scale, self._rows).T.contiguous(), persistent=False)
        self.register_buffer("_across", bilinear_weights(scale, COLUMNS), persistent=False)
        blocks = COLUMNS * torch.arange(-(-width // COLUMNS)).unsqueeze(1) + torch.arange(-1, COLUMNS + 1)
        # Beyond the border, the border's value is repeated.
        self.register_buffer("_near_columns", blocks.clamp(0, width - 1).flatten(), persistent=False)
        rows = torch.arange(-1, -(-height // self._rows) * self._rows + 1)
        self.register_buffer("_near_rows", rows.clamp(0, height - 1), persistent=False)

    def forward(self, features: Tensor) -> Iterator[Tensor]:
        """Yield strips of logits (1, C, h, w) after enlarging; see Strips."""
        down, across = self.get_buffer("_down"), self.get_buffer("_across")
        classes, scale = features.shape[1], len(down) // self._rows
        near = features.squeeze(0).permute(1, 0, 2)[self.get_buffer("_near_rows")]
        near = near[:, :, self.get_buffer("_near_columns")]
        for top in range(0, self._height, self._rows):
            rows = down @ near[top : top + self._rows + 2].reshape(self._rows + 2, -1)
            strip = (rows.reshape(-1, COLUMNS + 2) @ across).reshape(len(down), classes, -1)
            yield strip[: scale * (self._height - top), :, : self._width]

    def join(self, strips: Sequence[Tensor]) -> Tensor:
        """Return (H, W); see Strips."""
        return torch.cat(list(strips))


class StripClassifier(nn.Module):
    """A transposed convolution that enlarges by its stride, as an ordinary one.

    Pixels of its strips have the order (row, row phase, column phase, column), so C values per pixel need not be moved.
    `join` moves the one value per pixel that is left.
    """

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        """Raises ConfigError if the layer does not enlarge by exactly its stride."""
        super().__init__()
        self._stride = layer.stride[0]
        self._rows = max(1, STRIP_ROWS // self._stride)
        weight = layer.weight.detach().numpy()
        begins = int(layer.padding[0]), int(layer.padding[1])
        kernels = phase_kernels(weight, self._stride, begins) if _enlarges_by_stride(layer, begins) else None
        if kernels is None:
            raise ConfigError(f"{layer} is no transposed convolution that enlarges by its stride")
        self._pads = kernels.left, kernels.right, kernels.top, kernels.bottom
        self._channels = len(kernels.weight)
        more = LEAST_CHANNELS - self._channels if self._channels <= SLOW_CHANNELS else 0
        padded = F.pad(torch.from_numpy(kernels.weight), (0, 0, 0, 0, 0, 0, 0, more))
        self.register_buffer("_weight", padded, persistent=False)
        bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()
        self.register_buffer("_bias", F.pad(bias.repeat(self._stride**2), (0, more)), persistent=False)

    def forward(self, features: Tensor) -> Iterator[Tensor]:
        """Yield strips of the logits of features (1, D, h, w); see Strips."""
        weight, bias = self.get_buffer("_weight"), self.get_buffer("_bias")
        height, width = features.shape[-2:]
        padded = F.pad(features, self._pads) if any(self._pads) else features
        for top in range(0, height, self._rows):
            rows = min(self._rows, height - top)
            logits = F.conv2d(padded[:, :, top : top + rows + weight.shape[2] - 1], weight, bias)
            strip = logits.squeeze(0)[: self._channels]
            yield strip.permute(1, 0, 2).reshape(rows * self._stride**2, -1, width)

    def join(self, strips: Sequence[Tensor]) -> Tensor:
        """Return (H, W); see Strips."""
        phases = torch.cat(list(strips))
        width = phases.shape[-1]
        blocks = phases.reshape(-1, self._stride, self._stride, width).permute(0, 1, 3, 2)
        return blocks.reshape(-1, self._stride * width)


def _enlarges_by_stride(layer: nn.ConvTranspose2d, begins: tuple[int, int]) -> bool:
    """Return whether the output is larger than the input by the stride, which is equal in both directions."""
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.stride[0] == layer.stride[1]
    sizes = zip(layer.kernel_size, begins, layer.output_padding, strict=True)
    return plain and not any(kernel - layer.stride[0] - 2 * pad + extra for kernel, pad, extra in sizes)


def bilinear_weights(scale: int, count: int) -> Tensor:
    """Return float32 (count + 2, count x scale): weights of `count` values and of one more on either side.

    Column i has the weights for value i of the `count` values enlarged `scale` times.
    """
    places = (torch.arange(count * scale, dtype=torch.float64) + 0.5) / scale + 0.5
    distance = (places - torch.arange(count + 2, dtype=torch.float64).unsqueeze(1)).abs()
    return (1.0 - distance).clamp(min=0.0).to(torch.float32)
