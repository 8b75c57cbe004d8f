"""Max logit of mask networks, as the code of EoMT-LoRA-ArcFace evaluates it: class logits weighted by masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.mask_score import MaskScore
from anomseg_ros.scores.score import LOGIT_RANGE, Array, Given

if TYPE_CHECKING:
    from torch import Tensor


class MaskMaxLogit(MaskScore):
    """-max over classes k of sum over queries q of z_qk sigmoid(mask_q)."""

    name = "mask_max_logit"
    meaning = "-max of the sums of class logits weighted by masks"
    needs_evidence = True

    def drawn_range(self, known: int) -> tuple[float, float]:
        return LOGIT_RANGE

    def reference(self, given: Given[Array]) -> Array:
        assert given.evidence is not None
        return np.asarray(-given.evidence.max(axis=0))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        assert given.evidence is not None
        return (-given.evidence.amax(dim=1),)
