"""Entropy of the softmax (Chan et al. 2020, arXiv 2012.06575)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.score import Array, Given, Score, log_sum_exp, shifted

if TYPE_CHECKING:
    from torch import Tensor


class MaxEntropy(Score):
    """-sum p log p in nats, in [0, ln C]; equation 4 of the MiDE paper."""

    name = "max_entropy"
    meaning = "-sum p log p"
    bounded = True
    default_rank = 3

    def drawn_range(self, known: int) -> tuple[float, float]:
        return (0.0, float(np.log(known)))

    def reference(self, given: Given[Array]) -> Array:
        z = given.known / given.temperature
        log_p = z - log_sum_exp(z)  # the logarithm of p would fail for p = 0
        return np.asarray(-(np.exp(log_p) * log_p).sum(axis=0))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        values, exponentials = shifted(given)
        total = exponentials.sum(dim=1)
        return (total.log() - (exponentials * values).sum(dim=1) / total,)
