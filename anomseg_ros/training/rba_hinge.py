"""RbA's squared hinge on outliers (Nayal et al., ICCV 2023, arXiv 2211.14293, section 3.3).

With S_k the semantic scores of a pixel and s = -sum over the known classes of tanh(S_k), the score "rejected by all":

    1/2 [mean over known pixels of max(0, s)^2 + mean over outliers of max(0, margin - s)^2]

The published code has 5 for the margin, which s, at most 0, never reaches: outliers are pushed as far as they go.
"""

from __future__ import annotations

from torch import Tensor

from anomseg_ros.training.outlier_margin import outlier_margin


def rba_hinge(semantic: Tensor, target: Tensor, outliers: Tensor, known: int, margin: float) -> Tensor:
    """Return the loss, a scalar; a mean over no pixels is 0.

    Args:
        semantic: float (N, C, h, w), S of all classes.
        target: int64 (N, H, W); labels from `known` on belong to no known class.
        outliers: bool (N, H, W).
        known: number of known classes, the first ones.
        margin: of outliers.
    """
    score = -semantic.float()[:, :known].tanh().sum(1)
    return outlier_margin(score.clamp_min(0.0), score, target, outliers, known, margin)
