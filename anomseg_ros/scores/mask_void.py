"""The learned anomaly class of mask networks (EoMT-LoRA-ArcFace, table 4): its semantic score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomseg_ros.scores.mask_score import MaskScore, semantic_array, semantic_tensor
from anomseg_ros.scores.score import Array, Given

if TYPE_CHECKING:
    from torch import Tensor


class MaskVoid(MaskScore):
    """S of the void class. `void` is its share among all classes, which is large where no mask is sure, too."""

    name = "mask_void"
    meaning = "S of the void class"
    needs_void = True
    natural_threshold = 0.5

    def reference(self, given: Given[Array]) -> Array:
        assert given.void is not None
        return semantic_array(given.void)

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        assert given.void is not None
        return (semantic_tensor(given.void),)
