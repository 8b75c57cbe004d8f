"""Void classifier: the probability of a class that was trained on anomalies (PTQ 4.4; equation 5 of the MiDE paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.score import ANOMALY, Array, Given, Score, scaled, softmax

if TYPE_CHECKING:
    from torch import Tensor


class Void(Score):
    """Probability of the void class, in (0, 1)."""

    name = "void"
    meaning = "probability of the void class"
    needs_void = True
    probability_of = ANOMALY
    natural_threshold = 0.5
    bounded = True
    default_rank = 0

    def reference(self, given: Given[Array]) -> Array:
        assert given.void is not None
        return np.asarray(softmax(np.concatenate([given.known, given.void[None]]) / given.temperature)[-1])

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        """Return 1 / (1 + sum exp(z - z_void)): an overflow gives 1 / inf = 0, which the probability rounds to."""
        assert given.void is not None
        differences = scaled(given.known - given.void.unsqueeze(1), given.temperature)
        return (1.0 / (1.0 + differences.exp().sum(dim=1)),)
