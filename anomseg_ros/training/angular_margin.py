"""ArcFace's additive angular margin (Deng et al., CVPR 2019, arXiv 1801.07698, equation 3).

With theta the angle between a query and the weights of its class y, the logit s cos(theta) of y becomes

    s cos(theta + m)                  where theta <= pi - m
    s (cos(theta) - m sin(m))         beyond, so that the logit still falls with the angle (the paper's code)

before the cross-entropy. The margin holds for the known classes. The class of anomalies and "no object" keep their
logits, so that anomalies are not pulled into one narrow cone (EoMT-LoRA-ArcFace, section 3.3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LEAST_SQUARED_SINE = 1e-6  # the gradient of a square root at 0 is infinite
_LEAST_NORM = 1e-3  # s divided by it is within float16's range


def with_margin(logits: Tensor, wanted: Tensor, scale: float, margin: float, classes: int) -> Tensor:
    """Return logits (N, Q, C + 1) with the margin in the logit of each query's class.

    Args:
        logits: s cos(theta) of the classes, then "no object".
        wanted: int64 (N, Q), the class of each query.
        scale: s.
        margin: m in radians.
        classes: number of the first classes that have the margin.
    """
    logits = logits.float()
    cosine = (logits / scale).clamp(-1.0, 1.0)
    sine = (1.0 - cosine.square()).clamp_min(_LEAST_SQUARED_SINE).sqrt()
    harder = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine <= -math.cos(margin)  # theta > pi - m
    harder = torch.where(beyond, cosine - margin * math.sin(margin), harder)
    places = torch.arange(logits.shape[-1], device=logits.device)
    chosen = (places == wanted[..., None]) & (places < classes)
    return torch.where(chosen, scale * harder, logits)


def released_cosines(logits: Tensor, scale: float) -> Tensor:
    """Return s z / |z| of the classes' logits z, and the raw logit of "no object", of logits (N, Q, C + 1).

    The paper's released code takes these for s cos(theta): MatteoSanna23/AnomalySegmentation at 2b321f4,
    mask_classification_loss_arcFace.py. They are LogitNorm's, no angle to a class's weights is in them.
    """
    logits = logits.float()
    classes = logits[..., :-1]
    norms = classes.square().sum(-1, keepdim=True).clamp_min(_LEAST_NORM**2).sqrt()
    return torch.cat((scale * classes / norms, logits[..., -1:]), -1)
