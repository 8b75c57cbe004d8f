"""Predictions: the only thing that export, calibration, validation and compression know of a network.

There are two kinds. Per-pixel networks give logits of every class at their own stride. Mask networks give a mask per
query and the class of each query (MaskFormer, Cheng et al. 2021, arXiv 2107.06278). Both kinds become logits per pixel
in two steps: maps are enlarged bilinearly, then decoded pixel by pixel. Exported graphs do this strip by strip.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_SCORE = 1e-8
"""Lower bound of a class's score per pixel before its logarithm is taken."""
LEAST_MASK_LOGIT = -60.0
"""Lower bound of mask logits; below it, the exponential in `semantic` or its gradient overflows."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction(ABC):
    """A network's prediction for images (N, 3, H, W)."""

    size_px: tuple[int, int]  # H and W
    padded_px: tuple[int, int]  # height and width of the images after padding below and to the right
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """The requested feature maps of the padded images, name -> (N, D, h, w)."""

    @property
    @abstractmethod
    def maps(self) -> Tensor:
        """Float (N, M, h, w) of the padded images, to be enlarged and then decoded."""

    @abstractmethod
    def decode(self, maps: Tensor) -> Tensor:
        """Return logits (N, C, ...) per pixel of enlarged maps (N, M, ...), or of some of their pixels.

        If there is one image, N may count something else, such as rows.
        """

    def enlarge(self, maps: Tensor) -> Tensor:
        """Return maps (N, M, h, w) of the padded images at the images' own size, (N, M, H, W)."""
        if tuple(maps.shape[-2:]) != self.padded_px:
            maps = F.interpolate(maps, size=self.padded_px, mode="bilinear", align_corners=False)
        height_px, width_px = self.size_px
        return maps if self.padded_px == self.size_px else maps[..., :height_px, :width_px]

    def pixel_logits(self) -> Tensor:
        """Return logits (N, C, H, W). The largest is the label; softmax gives probabilities."""
        return self.decode(self.enlarge(self.maps))


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelPrediction(Prediction):
    """logits: float (N, C, h, w).

    A linear classifier commutes with bilinear upsampling, so networks classify first and logits are enlarged.
    """

    logits: Tensor

    @property
    def maps(self) -> Tensor:
        return self.logits

    def decode(self, maps: Tensor) -> Tensor:
        return maps


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskPrediction(Prediction):
    """mask_logits: float (N, Q, h, w), one mask per query; class_logits: float (N, Q, C + 1), the last "no object"."""

    mask_logits: Tensor
    class_logits: Tensor

    @property
    def maps(self) -> Tensor:
        """The mask logits, at least -60."""
        return self.mask_logits.clamp(min=LEAST_MASK_LOGIT)

    def semantic(self, maps: Tensor) -> Tensor:
        """Return scores S (N, C, ...) per pixel, from 0 to Q, of enlarged mask logits (N, Q, ...).

        S_c = sum over queries of softmax(class)_c sigmoid(mask), without "no object": MaskFormer's semantic inference
        (section 3.4), as in Mask2Former and EoMT. Masks are enlarged before the sigmoid; otherwise labels change.
        """
        shares = self.class_logits.softmax(-1)[..., :-1].transpose(1, 2)
        # ONNX Runtime's Sigmoid is exact to 1e-7 only, too little for the logarithm of small scores.
        masks = 1.0 / (1.0 + torch.exp(-maps))
        scores = shares @ masks.flatten(2)
        return scores.reshape(len(scores), -1, *maps.shape[2:])

    def decode(self, maps: Tensor) -> Tensor:
        """Return log S, S at least 1e-8; see `semantic`.

        softmax(log S) is S / sum S. Scores of these logits order pixels like the scores that mask papers define on S:
        max_logit like 1 - max S (Mask2Anomaly, Rai et al. 2023), energy like -sum S.
        """
        return self.semantic(maps).clamp(min=LEAST_SCORE).log()
