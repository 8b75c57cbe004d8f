"""1 - the largest semantic score (Mask2Anomaly, Rai et al., ICCV 2023, arXiv 2307.13316, section 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.mask_score import MaskScore, semantic_array, semantic_tensor
from anomseg_ros.scores.score import Array, Given

if TYPE_CHECKING:
    from torch import Tensor


class MaskMsp(MaskScore):
    """1 - max S."""

    name = "mask_msp"
    meaning = "1 - max S"

    def reference(self, given: Given[Array]) -> Array:
        return np.asarray(1.0 - semantic_array(given.known).max(axis=0))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        return (1.0 - semantic_tensor(given.known).amax(dim=1),)
