"""Maximum softmax probability (Hendrycks and Gimpel 2016, arXiv 1610.02136), with T of Guo et al. 2017."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.score import MISTAKE, Array, Given, Score, shifted, softmax

if TYPE_CHECKING:
    from torch import Tensor


class Msp(Score):
    """1 - max p, in [0, 1); equation 2 of the MiDE paper."""

    name = "msp"
    meaning = "1 - max p"
    probability_of = MISTAKE
    natural_threshold = 0.5
    bounded = True
    default_rank = 2

    def reference(self, given: Given[Array]) -> Array:
        return np.asarray(1.0 - softmax(given.known / given.temperature).max(axis=0))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        _, exponentials = shifted(given)  # the largest is 1
        return (1.0 - 1.0 / exponentials.sum(dim=1),)
