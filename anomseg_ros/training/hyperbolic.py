"""Losses that keep the two streams of dual-stream adapters apart, by the norms of their tokens.

"Dual-stream adapters for anomaly segmentation", section 4.3. The exponential map at the origin of the Poincare ball of
curvature c (equation 8) takes a token x to

    E(x) = tanh(sqrt(c) |x|) x / (sqrt(c) |x|),        |E(x)| = tanh(sqrt(c) |x|) / sqrt(c) < 1 / sqrt(c)

The loss (equation 9) is |E(x)| of tokens of the stream for others and -|E(x)| of tokens of the stream for known
objects: known objects move away from the origin, all else to it. The paper writes the distance of E(x) from the origin.
The geodesic distance is 2 |x| for every c. Since the results of table 7 depend on c, the Euclidean norm is meant.

Which tokens count is stated twice: equation 9 says by stream, the text by the void label. By default (`cells`
"labels"), tokens of the known stream count on labelled cells and tokens of the other one on void cells. With "all", all
tokens do. A cell has the label of its centre. The mean is over the tokens of a level, then over the levels.

The paper's table 8 replaces the loss by others, without their equations. Here, with n = |x|:

    bce           -log(1 - exp(-n)) of the known stream, n of the other: cross-entropy where exp(-n) means unknown
    contrastive   1/2 max(0, m - n)^2 of the known stream, 1/2 n^2 of the other, m = 1

Norms are computed in float32 whatever the precision of the tokens: squares of half precision overflow from 256 on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

STREAM_LOSSES = ("hyperbolic", "bce", "contrastive")
CELLS = ("labels", "all")
KNOWN, VOID, UNCOUNTED = 0, 1, 2
"""Values of the target of `stream_loss`."""
LEAST_NORM = 1e-6
"""Below it, the logarithm of the cross-entropy has no useful gradient."""


def exponential_map(vectors: Tensor, curvature: float) -> Tensor:
    """Return E(x) of vectors (..., D), in their type; 0 for 0."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    scaled = math.sqrt(curvature) * norms
    safe = torch.where(scaled > 0, scaled, torch.ones_like(scaled))
    return torch.where(scaled > 0, safe.tanh() / safe, torch.ones_like(scaled)) * vectors


def mapped_norm(norms: Tensor, curvature: float) -> Tensor:
    """Return |E(x)| of the norms |x|."""
    root = math.sqrt(curvature)
    return (root * norms).tanh() / root


def token_losses(norms: Tensor, unknown: bool, kind: str, curvature: float, margin: float) -> Tensor:
    """Return the loss of each token.

    Args:
        norms: float (...), |x|.
        unknown: whether the tokens are of the stream for others.
        kind: of STREAM_LOSSES.
        curvature: c.
        margin: m.
    """
    if kind == "hyperbolic":
        mapped = mapped_norm(norms, curvature)
        return mapped if unknown else -mapped
    if kind == "bce":
        return norms if unknown else -(-torch.expm1(-norms.clamp_min(LEAST_NORM))).log()
    return 0.5 * (norms if unknown else (margin - norms).clamp_min(0.0)).square()


def stream_loss(
    levels: Sequence[Tensor], target: Tensor, kind: str, cells: str, curvature: float, margin: float
) -> Tensor:
    """Return the loss of two streams, a scalar; a level without a token that counts gives 0.

    Args:
        levels: float (N, 2 D, h, w) of each level, the known stream first.
        target: int64 (N, H, W) of KNOWN, VOID and UNCOUNTED.
        kind: of STREAM_LOSSES.
        cells: of CELLS.
        curvature: c.
        margin: m.
    """
    losses = []
    for maps in levels:
        small = F.interpolate(target[:, None].float(), maps.shape[2:], mode="nearest-exact")[:, 0]
        total, count = maps.new_zeros((), dtype=torch.float32), torch.zeros((), device=maps.device)
        for stream, value in zip(maps.float().chunk(2, 1), (KNOWN, VOID), strict=True):
            counted = (small != UNCOUNTED) if cells == "all" else (small == value)
            norms = torch.linalg.vector_norm(stream, dim=1)
            total = total + (token_losses(norms, value == VOID, kind, curvature, margin) * counted).sum()
            count = count + counted.sum()
        losses.append(total / count.clamp_min(1))
    return torch.stack(losses).mean()
