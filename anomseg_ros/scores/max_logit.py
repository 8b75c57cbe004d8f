"""Maximum logit (Hendrycks et al. 2022, arXiv 1911.11132)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.score import LOGIT_RANGE, Array, Given, Score

if TYPE_CHECKING:
    from torch import Tensor


class MaxLogit(Score):
    """-max z, without the temperature; equation 3 of the MiDE paper."""

    name = "max_logit"
    meaning = "-max z"
    uses_temperature = False
    default_rank = 1

    def drawn_range(self, known: int) -> tuple[float, float]:
        return LOGIT_RANGE

    def reference(self, given: Given[Array]) -> Array:
        return np.asarray(-given.known.max(axis=0))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        return (-given.known.amax(dim=1),)
