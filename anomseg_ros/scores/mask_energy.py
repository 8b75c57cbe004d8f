"""Energy (Liu et al. 2020, arXiv 2010.03759) of the semantic map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.mask_score import MaskScore, semantic_array, semantic_tensor
from anomseg_ros.scores.score import Array, Given, log_sum_exp

if TYPE_CHECKING:
    from torch import Tensor


class MaskEnergy(MaskScore):
    """-log sum exp S over the known classes."""

    name = "mask_energy"
    meaning = "-log sum exp S"

    def drawn_range(self, known: int) -> tuple[float, float]:
        return (-float(np.log(known - 1 + np.e)), -float(np.log(known)))

    @property
    def lowest(self) -> float:
        """Below the range of any number of classes."""
        return -10.0

    def reference(self, given: Given[Array]) -> Array:
        return -log_sum_exp(semantic_array(given.known))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        scores = semantic_tensor(given.known)
        peak = scores.amax(dim=1, keepdim=True)
        return (-(peak.squeeze(1) + (scores - peak).exp().sum(dim=1).log()),)
