"""Predictions: the only thing that export, calibration, validation and compression know of a network.

There are two kinds. Per-pixel networks give logits of every class at their own stride. Mask networks give a mask per
query and the class of each query (MaskFormer, Cheng et al. 2021, arXiv 2107.06278). Both kinds become logits per pixel
in two steps: maps are enlarged bilinearly, then decoded pixel by pixel. Exported graphs do this strip by strip.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from anomseg_ros.errors import ConfigError

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

    def evidence(self, maps: Tensor) -> Tensor:
        """Return class logits (N, C, ...) per pixel of maps as for `decode`, where these are another thing."""
        return self.decode(maps)

    def enlarge(self, maps: Tensor) -> Tensor:
        """Return maps (N, M, h, w) of the padded images at the images' own size, (N, M, H, W)."""
        if tuple(maps.shape[-2:]) != self.padded_px:
            maps = F.interpolate(maps, size=self.padded_px, mode="bilinear", align_corners=False)
        height_px, width_px = self.size_px
        return maps if self.padded_px == self.size_px else maps[..., :height_px, :width_px]

    def pixel_logits(self) -> Tensor:
        """Return logits (N, C, H, W). The largest is the label; softmax gives probabilities."""
        return self.decode(self.enlarge(self.maps))

    def pixel_evidence(self) -> Tensor:
        """Return `evidence` (N, C, H, W) of the whole images."""
        return self.evidence(self.enlarge(self.maps))


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
    """mask_logits: float (N, Q, h, w), one mask per query; class_logits: float (N, Q, C + 1), the last "no object".

    released_known: 0, or the number of known classes for the inference of the code of EoMT-LoRA-ArcFace, which differs
    from its paper. Their probabilities are the softmax over them alone, and a mask counts where its sigmoid is at least
    0.5. That code compares masks of its own stride; here they are enlarged first.
    """

    mask_logits: Tensor
    class_logits: Tensor
    released_known: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for another number of known classes than there can be."""
        most = self.class_logits.shape[-1] - 1
        if not 0 <= self.released_known <= most:
            raise ConfigError(f"released_known is {self.released_known!r}; expected 0 to {most}, the number of classes")

    @property
    def maps(self) -> Tensor:
        """The mask logits, at least -60."""
        return self.mask_logits.clamp(min=LEAST_MASK_LOGIT)

    def semantic(self, maps: Tensor) -> Tensor:
        """Return scores S (N, C, ...) per pixel, from 0 to Q, of enlarged mask logits (N, Q, ...).

        S_c = sum over queries of softmax(class)_c sigmoid(mask), without "no object": MaskFormer's semantic inference
        (section 3.4), as in Mask2Former and EoMT. Masks are enlarged before the sigmoid; otherwise labels change.
        """
        shares = self.class_logits.softmax(-1)[..., :-1]
        if self.released_known:
            known = self.class_logits[..., : self.released_known].softmax(-1)
            shares = torch.cat((known, shares[..., self.released_known :]), -1)
        return self._weighted_masks(shares, maps)

    def evidence(self, maps: Tensor) -> Tensor:
        """Return sums over queries of class logit times sigmoid(mask), (N, C, ...) per pixel of enlarged mask logits.

        These are the logits per pixel of the EoMT-LoRA-ArcFace paper's max logit (its evaluation code: class logits
        without "no object", masks after the sigmoid).
        """
        return self._weighted_masks(self.class_logits[..., :-1], maps)

    def _weighted_masks(self, weights: Tensor, maps: Tensor) -> Tensor:
        """Return sums (N, C, ...) of sigmoid(maps), maps (N, Q, ...), with weights (N, Q, C)."""
        # ONNX Runtime's Sigmoid is exact to 1e-7 only, too little for the logarithm of small scores.
        masks = 1.0 / (1.0 + torch.exp(-maps))
        if self.released_known:
            masks = torch.where(maps < 0, torch.zeros_like(masks), masks)
        sums = weights.transpose(1, 2) @ masks.flatten(2)
        return sums.reshape(len(sums), -1, *maps.shape[2:])

    def decode(self, maps: Tensor) -> Tensor:
        """Return log S, S at least 1e-8; see `semantic`.

        softmax(log S) is S / sum S. Scores of these logits order pixels like the scores that mask papers define on S:
        max_logit like 1 - max S (Mask2Anomaly, Rai et al. 2023), energy like -sum S.
        """
        return self.semantic(maps).clamp(min=LEAST_SCORE).log()


@dataclass(frozen=True, eq=False, kw_only=True)
class TiledMaskPrediction(MaskPrediction):
    """A mask prediction of square crops side by side, each with queries of its own: Q is queries times crops.

    mask_logits: of each crop, (N, Q, h, h), where h is the height of the masks. Crops overlap where the width is no
    multiple of the height; scores of overlapping crops are averaged (EoMT's and Segmenter's sliding windows).
    """

    starts_px: tuple[int, ...]  # left column of each crop

    def enlarge(self, maps: Tensor) -> Tensor:
        """Return maps (N, Q, h, h) of the crops at the crops' own size."""
        height_px = self.padded_px[0]
        return F.interpolate(maps, size=(height_px, height_px), mode="bilinear", align_corners=False)

    def pixel_logits(self) -> Tensor:
        height_px, width_px = self.size_px
        return super().pixel_logits()[..., :height_px, :width_px]

    def pixel_evidence(self) -> Tensor:
        height_px, width_px = self.size_px
        return super().pixel_evidence()[..., :height_px, :width_px]

    def _weighted_masks(self, weights: Tensor, maps: Tensor) -> Tensor:
        """Return sums (N, C, ..., W) of maps (N, Q, ..., w) of crops that are w wide."""
        crops = len(self.starts_px)
        sums = [
            super(TiledMaskPrediction, self)._weighted_masks(one, crop)
            for one, crop in zip(weights.chunk(crops, 1), maps.chunk(crops, 1), strict=True)
        ]
        return _side_by_side(sums, self.starts_px, self.padded_px[1])


def _side_by_side(crops: Sequence[Tensor], starts_px: Sequence[int], width_px: int) -> Tensor:
    """Return the mean (..., W) of crops (..., w) that begin at the given columns and cover all W columns."""
    counts = torch.zeros(width_px, device=crops[0].device)
    total: Tensor | None = None
    for crop, start in zip(crops, starts_px, strict=True):
        end = start + crop.shape[-1]
        counts[start:end] += 1.0
        placed = F.pad(crop, (start, width_px - end))
        total = placed if total is None else total + placed
    assert total is not None
    return total / counts
