"""The base of scores over the semantic map of mask networks.

S_k of a pixel is the sum over queries of softmax(class)_k sigmoid(mask), MaskFormer's semantic inference. A network's
logits are log S (networks/prediction.py), so S is their exponential. S is no softmax: it may add up to less than 1,
where no mask is sure, or to more, where masks overlap. The temperature does not apply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anomseg_ros.scores.score import Array, Score

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_LOGIT = 20.0
"""Logits of masks are below the logarithm of the number of queries. The bound keeps exponentials of others finite."""


class MaskScore(Score):
    """A score of S, for networks that predict masks."""

    needs_masks = True
    uses_temperature = False


def semantic_array(logits: Array) -> Array:
    """Return S of log S."""
    return np.asarray(np.exp(np.minimum(logits, LARGEST_LOGIT)))


def semantic_tensor(logits: Tensor) -> Tensor:
    """Return S of log S."""
    return logits.clamp(max=LARGEST_LOGIT).exp()
