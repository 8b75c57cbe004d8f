"""What the losses of RbA and of Mask2Anomaly share: known pixels are pulled to 0, outliers pushed above a margin."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def outlier_margin(
    excess: Tensor, score: Tensor, target: Tensor, outliers: Tensor, known: int, margin: float
) -> Tensor:
    """Return 1/2 [mean over known pixels of excess^2 + mean over outliers of max(0, margin - score)^2], a scalar.

    A mean over no pixels is 0.

    Args:
        excess: float (N, h, w), what is pulled to 0 in known pixels.
        score: float (N, h, w), of anomaly.
        target: int64 (N, H, W); labels from `known` on belong to no known class.
        outliers: bool (N, H, W).
        known: number of known classes, the first ones.
        margin: of outliers.
    """
    size_px = score.shape[-2:]
    is_known = F.interpolate((target < known)[:, None].float(), size_px, mode="nearest")[:, 0] > 0
    is_outlier = F.interpolate(outliers[:, None].float(), size_px, mode="nearest")[:, 0] > 0
    inside = (excess.square() * is_known).sum() / is_known.sum().clamp_min(1)
    outside = ((margin - score).clamp_min(0.0).square() * is_outlier).sum() / is_outlier.sum().clamp_min(1)
    return 0.5 * torch.stack((inside, outside)).sum()
