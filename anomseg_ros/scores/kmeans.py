"""k-means of one frame's features, in numpy and unrolled for a graph; both give the same clusters.

The start is deterministic: the point farthest from the mean, then each time the point farthest from its nearest centre
(Gonzalez, Theoretical Computer Science 1985). A fixed number of Lloyd steps follows (Lloyd, IEEE T-IT 1982). The first
of equal distances wins. A cluster that loses all its points keeps its centre, so there may be fewer clusters than asked
for: always, if there are fewer different points.

Points are moved to a mean of 0 and scaled to at most 1, which changes no cluster and keeps distances exact enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from anomseg_ros.scores.score import Array

if TYPE_CHECKING:
    from torch import Tensor

LLOYD_STEPS = 10
LEAST_SIZE = 1e-12


def cluster(points: Array, count: int) -> npt.NDArray[np.int64]:
    """Return the cluster of each point, int64 (N,), 0 to count - 1, of points (N, D)."""
    points = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    points = points / max(float(np.abs(points).max()), LEAST_SIZE)
    centres = _start(points, count)
    for _ in range(LLOYD_STEPS):
        members = (_nearest(points, centres) == np.arange(count)[:, None]).astype(np.float64)
        sizes = members.sum(axis=1, keepdims=True)
        centres = np.where(sizes > 0, members @ points / np.maximum(sizes, 1), centres)
    return _nearest(points, centres)


def _start(points: Array, count: int) -> Array:
    squares = (points**2).sum(axis=1)
    distances, centres = squares, []
    for number in range(count):
        centre = points[distances.argmax()]
        centres.append(centre)
        near = np.maximum(squares + (centre**2).sum() - 2.0 * points @ centre, 0.0)
        distances = np.minimum(distances, near) if number else near
    return np.stack(centres)


def _nearest(points: Array, centres: Array) -> npt.NDArray[np.int64]:
    return np.asarray(((centres**2).sum(axis=1) - 2.0 * points @ centres.T).argmin(axis=1))


def cluster_graph(points: Tensor, ids: Tensor) -> Tensor:
    """Return float32 (N, K), 1 in the column of each point's cluster, of points (N, D).

    ids: float32 (K,), 0 to K - 1; a graph needs the number of clusters as a shape.
    """
    from torch import where

    points = points - points.mean(dim=0, keepdim=True)
    points = points / points.abs().amax(dim=(0, 1), keepdim=True).clamp(min=LEAST_SIZE)
    centres = _start_graph(points, len(ids))
    for _ in range(LLOYD_STEPS):
        members = _members(points, centres, ids)
        sizes = members.sum(dim=0).unsqueeze(1)
        centres = where(sizes > 0, (members.t() @ points) / sizes.clamp(min=1.0), centres)
    return _members(points, centres, ids)


def _start_graph(points: Tensor, count: int) -> Tensor:
    from torch import cat, minimum

    # Columns (N, 1), because TensorRT has no ArgMax of one dimension.
    squares = (points * points).sum(dim=1, keepdim=True)
    distances, centres = squares, []
    for number in range(count):
        centre = points.index_select(0, distances.argmax(dim=0))
        centres.append(centre)
        near = (squares + (centre * centre).sum(dim=1) - 2.0 * (points @ centre.t())).clamp(min=0.0)
        distances = minimum(distances, near) if number else near
    return cat(centres)


def _members(points: Tensor, centres: Tensor, ids: Tensor) -> Tensor:
    distances = (centres * centres).sum(dim=1) - 2.0 * (points @ centres.t())
    return (distances.argmin(dim=1).unsqueeze(1).to(ids.dtype) == ids).to(ids.dtype)
