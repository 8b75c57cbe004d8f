"""A classifier by cosines, for angular margins (ArcFace, Deng et al., CVPR 2019, arXiv 1801.07698, equation 2).

The logit of class c for a feature x is s cos(x, w_c), in training and at inference, so that a margin that is learnt is
the one that scores use. The logit of "no object" is one learnt number: a query that resembles no class is none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError


class CosineHead(nn.Module):
    """Features (N, Q, D) -> logits (N, Q, C + 1), the last "no object", in float32 also under autocast."""

    def __init__(self, width: int, num_classes: int, scale: float) -> None:
        """scale: s. Raises ConfigError unless it is above 0."""
        super().__init__()
        if not scale > 0:
            raise ConfigError(f"cosine_scale is {scale!r}; expected a number above 0, such as 30, or null")
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(num_classes, width) / width**0.5)
        self.no_object = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            directions = F.normalize(features.float(), dim=-1)
            logits = self.scale * F.linear(directions, F.normalize(self.weight, dim=-1))
            return torch.cat((logits, self.no_object.expand(*logits.shape[:-1], 1)), -1)
