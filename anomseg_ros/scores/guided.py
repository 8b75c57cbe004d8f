"""Shares of clusters enlarged along the edges of the picture, by a guided filter (He, Sun and Tang, ECCV 2010).

The training-free paper enlarges clusters to the nearest value and names better ways as its next step. The fast guided
filter (He and Sun, arXiv 1505.00996) fits p = a I + b in every window at a quarter of the size, I being the brightness
of the picture, and enlarges a and b bilinearly. So an object's outline is that of the picture, not of cells of 16
pixels. It needs box filters alone, which every engine has, and nothing learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from anomseg_ros.scores.clusters import ClusterMix
from anomseg_ros.scores.score import IMAGE, Array, FeatureMaps, Given

if TYPE_CHECKING:
    from torch import Tensor

SCALE = 4
"""Pixels of the picture per value of the fit."""
RADIUS = 8
"""Of the windows, in values of the fit: windows of 68 pixels, twice the diagonal of two cells."""
SMOOTHNESS = 1e-2
"""Added to the variance of the brightness, whose own variance over the frame is 1."""


class ClusterGuided(ClusterMix):
    """`cluster_mix` with guided shares."""

    name = "cluster_guided"
    meaning = "as cluster_mix, the clusters' shares enlarged along the picture's edges by a guided filter"

    def choose_features(self, names: Sequence[str]) -> tuple[str, ...]:
        return (*super().choose_features(names), IMAGE)

    def cluster_means(self, given: Given[Array], values: Array) -> Array:
        map_, image = given.features.maps
        shares = super().cluster_means(replace(given, features=replace(given.features, maps=(map_,))), values)
        return guided(shares, image[:, : shares.shape[0], : shares.shape[1]].astype(np.float64))

    def cluster_means_graph(
        self, values: Tensor, fitted: Mapping[str, Tensor], features: FeatureMaps[Tensor]
    ) -> Tensor:
        map_, image = features.maps
        shares = super().cluster_means_graph(values, fitted, replace(features, maps=(map_,)))
        return _guided_graph(shares, image[:, :, : shares.shape[1], : shares.shape[2]])


def guided(values: Array, image: Array) -> Array:
    """Return values (H, W) filtered with the brightness of an image (C, H, W) as the guide, within their own range."""
    height, width = values.shape
    guide = image.mean(axis=0)
    guide = (guide - guide.mean()) / max(float(guide.std()), 1e-6)

    def resized(map_: Array, rows: int, columns: int) -> Array:
        return np.asarray(cv2.resize(map_, (columns, rows), interpolation=cv2.INTER_LINEAR), np.float64)

    def box(map_: Array) -> Array:
        size = (2 * RADIUS + 1, 2 * RADIUS + 1)
        return np.asarray(cv2.blur(map_, size, borderType=cv2.BORDER_REPLICATE), np.float64)

    low, target = (resized(map_, max(1, height // SCALE), max(1, width // SCALE)) for map_ in (guide, values))
    mean, target_mean = box(low), box(target)
    slope = (box(low * target) - mean * target_mean) / (box(low * low) - mean * mean + SMOOTHNESS)
    offset = resized(box(target_mean - slope * mean), height, width)
    return np.asarray(np.clip(resized(box(slope), height, width) * guide + offset, 0.0, 1.0))


def _guided_graph(values: Tensor, image: Tensor) -> Tensor:
    """`guided` of values (1, H, W) and an image (1, C, H, W)."""
    from torch.nn.functional import avg_pool2d, interpolate, pad

    height, width = values.shape[1:]
    small = max(1, height // SCALE), max(1, width // SCALE)

    def resized(map_: Tensor, size: tuple[int, int]) -> Tensor:
        return interpolate(map_, size=size, mode="bilinear", align_corners=False)

    def box(map_: Tensor) -> Tensor:
        for axis in (2, 3):  # one axis after the other: 34 sums in place of 289
            side = (0, 0, RADIUS, RADIUS) if axis == 2 else (RADIUS, RADIUS, 0, 0)
            window = (2 * RADIUS + 1, 1) if axis == 2 else (1, 2 * RADIUS + 1)
            map_ = avg_pool2d(pad(map_, side, mode="replicate"), window, stride=1)
        return map_

    guide = image.mean(dim=1, keepdim=True)
    guide = guide - guide.mean(dim=(2, 3), keepdim=True)
    guide = guide / (guide * guide).mean(dim=(2, 3), keepdim=True).sqrt().clamp(min=1e-6)
    low, target = resized(guide, small), resized(values.unsqueeze(1), small)
    mean, target_mean = box(low), box(target)
    slope = (box(low * target) - mean * target_mean) / (box(low * low) - mean * mean + SMOOTHNESS)
    offset = resized(box(target_mean - slope * mean), (height, width))
    return (resized(box(slope), (height, width)) * guide + offset).clamp(0.0, 1.0).squeeze(1)
