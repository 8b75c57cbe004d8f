"""RbA, "rejected by all" (Nayal et al., ICCV 2023, arXiv 2211.14293; tanh as in the published code)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.mask_score import MaskScore, semantic_array, semantic_tensor
from anomseg_ros.scores.score import Array, Given

if TYPE_CHECKING:
    from torch import Tensor


class Rba(MaskScore):
    """-sum tanh S, in (-C, 0): no class accepts the pixel."""

    name = "rba"
    meaning = "-sum of tanh S over the known classes"

    def drawn_range(self, known: int) -> tuple[float, float]:
        return (-1.0, 0.0)

    def reference(self, given: Given[Array]) -> Array:
        return np.asarray(-np.tanh(semantic_array(given.known)).sum(axis=0))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        return (-semantic_tensor(given.known).tanh().sum(dim=1),)
