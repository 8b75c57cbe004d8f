"""Energy (Liu et al. 2020, arXiv 2010.03759)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.score import LOGIT_RANGE, Array, Given, Score, log_sum_exp, shifted

if TYPE_CHECKING:
    from torch import Tensor


class Energy(Score):
    """-T log sum exp(z / T)."""

    name = "energy"
    meaning = "-T log sum exp(z / T)"

    def drawn_range(self, known: int) -> tuple[float, float]:
        return LOGIT_RANGE

    def reference(self, given: Given[Array]) -> Array:
        return np.asarray(-given.temperature * log_sum_exp(given.known / given.temperature))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        _, exponentials = shifted(given)
        return (-(given.known.amax(dim=1) + given.temperature * exponentials.sum(dim=1).log()),)
