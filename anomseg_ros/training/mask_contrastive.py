"""The mask contrastive loss of Mask2Anomaly (Rai et al., ICCV 2023, arXiv 2307.13316, section 3.2) on outliers.

With S_c the semantic scores of a pixel and l = 1 - max over the known classes of S_c, the score "mask_msp":

    1/2 [mean over known pixels of l^2 + mean over outliers of max(0, margin - l)^2]

The published code (criterion.py of github.com/shyam671/Mask2Anomaly-Unmasking-Anomalies-in-Road-Scene-Segmentation) has
l = -max S_c, with which both terms push max S_c to 0. `released` takes that one.
"""

from __future__ import annotations

from torch import Tensor

from anomseg_ros.training.outlier_margin import outlier_margin


def mask_contrastive(
    semantic: Tensor, target: Tensor, outliers: Tensor, known: int, margin: float, released: bool = False
) -> Tensor:
    """Return the loss, a scalar; a mean over no pixels is 0.

    Args:
        semantic: float (N, C, h, w), S of all classes.
        target: int64 (N, H, W); labels from `known` on belong to no known class.
        outliers: bool (N, H, W).
        known: number of known classes, the first ones.
        margin: of outliers.
        released: whether l is that of the published code.
    """
    largest = semantic.float()[:, :known].amax(1)
    score = -largest if released else 1.0 - largest
    return outlier_margin(score, score, target, outliers, known, margin)
