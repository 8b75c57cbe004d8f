"""Entropy of the semantic map, as EoMT-LoRA-ArcFace takes it (table 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.mask_score import MaskScore, semantic_array, semantic_tensor
from anomseg_ros.scores.score import Array, Given

if TYPE_CHECKING:
    from torch import Tensor

LEAST_SCORE = 1e-8


class MaskMaxEntropy(MaskScore):
    """-sum S log(S + 1e-8) over the known classes."""

    name = "mask_max_entropy"
    meaning = "-sum of S log S over the known classes"

    def drawn_range(self, known: int) -> tuple[float, float]:
        return (0.0, float(np.log(known)))

    def reference(self, given: Given[Array]) -> Array:
        scores = semantic_array(given.known)
        return np.asarray(-(scores * np.log(scores + LEAST_SCORE)).sum(axis=0))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        scores = semantic_tensor(given.known)
        return (-(scores * (scores + LEAST_SCORE).log()).sum(dim=1),)
