"""Bilinear upsampling for exported graphs: strips of rows, pixel rows outermost, as products with small matrices.

What follows the upsampling, labels and scores, goes over C values per pixel several times. A whole frame of them, 40 MB
at 512x1024 with 20 classes, comes from memory each time; a strip stays in the processor's cache. And with the classes
of one pixel row side by side, (rows, C, columns), ONNX Runtime reduces over them two to three times as fast as over the
first axis of (C, rows, columns). Measured with 2 threads, 512x1024, labels and void score: 8.6 ms a frame, against 15.2
of Resize and what follows it on the whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

ROWS = 8
"""Rows of logits per strip, before upsampling. At 512x1024 and eightfold: 16 and 64 were slower, and 4 as well."""
COLUMNS = 16
"""Columns of logits that one product enlarges together. Fewer make narrow products, more waste work on zeros."""


class StripUpsampler(nn.Module):
    """Enlarges logits by a whole factor, equal to F.interpolate(mode="bilinear", align_corners=False)."""

    def __init__(self, scale: int, height: int, width: int) -> None:
        """scale: output pixels per logit; height, width: of the logits."""
        super().__init__()
        self._size = scale * height, scale * width
        self._height = height
        self.register_buffer("_down", bilinear_weights(scale, ROWS).T.contiguous(), persistent=False)
        self.register_buffer("_across", bilinear_weights(scale, COLUMNS), persistent=False)
        blocks = COLUMNS * torch.arange(-(-width // COLUMNS)).unsqueeze(1) + torch.arange(-1, COLUMNS + 1)
        # A neighbour beyond the border is the border itself.
        self.register_buffer("_columns", blocks.clamp(0, width - 1).flatten(), persistent=False)
        rows = torch.arange(-1, -(-height // ROWS) * ROWS + 1)
        self.register_buffer("_rows", rows.clamp(0, height - 1), persistent=False)

    def forward(self, logits: Tensor) -> Iterator[Tensor]:
        """Yield float32 (R, C, W) strips from top to bottom, R rows of all W columns, of logits (1, C, h, w)."""
        down, across = self.get_buffer("_down"), self.get_buffer("_across")
        height, width = self._size
        classes = logits.shape[1]
        near = logits[0].permute(1, 0, 2)[self.get_buffer("_rows")][:, :, self.get_buffer("_columns")]
        for top in range(0, self._height, ROWS):
            rows = down @ near[top : top + ROWS + 2].reshape(ROWS + 2, -1)
            strip = (rows.reshape(-1, COLUMNS + 2) @ across).reshape(len(down), classes, -1)
            left = height - top * len(down) // ROWS
            yield strip[:left, :, :width]


def bilinear_weights(scale: int, count: int) -> Tensor:
    """Return float32 (count + 2, count x scale): the share of each of `count` values, and of one more on either side,
    in each of the values between them after enlarging `scale` times."""
    places = (torch.arange(count * scale, dtype=torch.float64) + 0.5) / scale + 0.5
    distance = (places - torch.arange(count + 2, dtype=torch.float64).unsqueeze(1)).abs()
    return (1.0 - distance).clamp(min=0.0).to(torch.float32)
