"""RbA as "Efficient Anomaly Segmentation via Angular Margins and Low-Rank Adaptation" writes it (equation 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.mask_score import MaskScore, semantic_array, semantic_tensor
from anomseg_ros.scores.score import Array, Given

if TYPE_CHECKING:
    from torch import Tensor


class RbaSum(MaskScore):
    """1 - sum S, below 0 where masks overlap."""

    name = "rba_sum"
    meaning = "1 - sum of S over the known classes"

    def reference(self, given: Given[Array]) -> Array:
        return np.asarray(1.0 - semantic_array(given.known).sum(axis=0))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        return (1.0 - semantic_tensor(given.known).sum(dim=1),)
