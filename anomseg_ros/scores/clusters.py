"""Training-free scores of feature clusters (Nayal et al., "Training-free out-of-distribution segmentation with
foundation models", sections 3.2 to 3.5), for the features of any network.

k-means groups the features of a frame into K clusters (kmeans.py). With m = max z of a pixel, a cluster has the share
r = mean [m < tau] of its pixels, and is out of distribution if r > T. `cluster_binary` is that mask. The paper leaves
open which score its average precision is of, so each score here has a name of its own:

- `cluster_ratio`: r of the pixel's cluster
- `cluster_binary`: 1 if r > T, else 0
- `cluster_mean`: mean of -m over the pixel's cluster
- `cluster_mix`, ours: -m, raised where r > T and kept elsewhere

Constants are the paper's: K = 5 and T = 0.3 for Cityscapes (K = 6, T = 0.4 for ADE-OoD). It estimated tau from
distributions of logits on training frames, without a rule; here it is a quantile of m, or a given value. The options
of `cluster_mix` were chosen on frames with pasted objects (docs/training_free.md).

Deviations, where the paper is silent or a vehicle needs it:

- Features are the map before the classifier's input, as for cDNP: the third stage of InternImage, as in the paper, and
  the encoder's of other networks. Finer maps are averaged to 16 pixels per feature, the paper's stride.
- The start of k-means is deterministic, with a fixed number of steps.
- Clusters are enlarged to the nearest value: labels have no average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from anomseg_ros.errors import ConfigError
from anomseg_ros.scores.kmeans import cluster, cluster_graph
from anomseg_ros.scores.score import LOGIT_RANGE, Array, FeatureMaps, Fit, Given, Score

if TYPE_CHECKING:
    from torch import Tensor

FEATURE_PX = 16
"""Least pixels per feature in each direction: the stride of InternImage's third stage."""
MOST_CLUSTERS = 64
PIXELS_AT_TAU = 20.0
"""Change of a share, per unit of the logits' rounding, for pixels whose max z is tau up to rounding."""
SAMPLES_PER_FRAME = 10_000
"""Pixels of each training frame, evenly spread, whose max logits give the quantile."""


class ClusterScore(Score):
    """Shared parts: features, clusters of a frame, and means of a map over each cluster."""

    uses_temperature = False
    tensor_names: ClassVar[tuple[str, ...]]
    """Fitted tensors of one value beside `clusters`."""
    ood_share: ClassVar[float] = 0.3
    """Default of T."""
    jumps = True
    of_clusters = True

    def choose_features(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the feature map before the classifier's input, or that input if it is the only map."""
        return (names[-2:][0],)

    def start_fit(self, known: int) -> Fit:
        return _ClusterFit(self.tensor_names, self.ood_share)

    def fitted_shapes(self, known: int, widths: Sequence[int]) -> dict[str, tuple[int | None, ...]]:
        """Return shapes: `clusters` is 0 to K - 1, whose length is a shape, as a graph needs it."""
        return {"clusters": (None,), **dict.fromkeys(self.tensor_names, (1,))}

    def describe(self, fitted: Mapping[str, Array]) -> str:
        """Return the meaning with K and the constants."""
        values = [f"K {len(fitted['clusters'])}", *(f"{name} {fitted[name][0]:.4g}" for name in self.tensor_names)]
        return f"{self.meaning}; {', '.join(values)}"

    def check_fitted(self, fitted: Mapping[str, npt.NDArray[Any]], known: int, widths: Sequence[int]) -> None:
        super().check_fitted(fitted, known, widths)
        if not np.array_equal(fitted["clusters"], np.arange(len(fitted["clusters"]))):
            raise ConfigError(
                f"score {self.name!r}: fitted tensor 'clusters' is not 0, 1, 2 and so on: run `anomseg calibrate score "
                f"BUNDLE --score {self.name} --dataset NAME=PATH`"
            )

    def cluster_means(self, given: Given[Array], values: Array) -> Array:
        """Return the mean of a map (H, W) over the cluster of each pixel, (H, W)."""
        labels = cluster_labels(given.features, len(given.fitted["clusters"]))[: values.shape[0], : values.shape[1]]
        sizes = np.bincount(labels.ravel())
        means = np.bincount(labels.ravel(), values.astype(np.float64).ravel()) / np.maximum(sizes, 1)
        return np.asarray(means[labels])

    def cluster_means_graph(
        self, values: Tensor, fitted: Mapping[str, Tensor], features: FeatureMaps[Tensor]
    ) -> Tensor:
        """`cluster_means` of a map (1, H, W)."""
        map_ = _coarse_graph(features)
        key = "members", len(fitted["clusters"]), id(features.maps[0])
        if key not in features.shared:
            features.shared[key] = cluster_graph(map_.flatten(2).squeeze(0).t(), fitted["clusters"])
        members = features.shared[key]
        sums, sizes = _cell_means(values, map_.shape[2:], features.padded_px)
        means = (members.t() @ sums) / (members.t() @ sizes).clamp(min=1e-6)
        return _enlarged((members @ means).reshape(1, 1, *map_.shape[2:]), features.padded_px, values.shape)


class ClusterRatio(ClusterScore):
    """r of the pixel's cluster."""

    name = "cluster_ratio"
    meaning = "share of the pixels of the feature cluster with max z < tau"
    tensor_names: ClassVar[tuple[str, ...]] = ("tau",)
    bounded = True

    def steepness(self, fitted: Mapping[str, Array]) -> float:
        return PIXELS_AT_TAU

    def reference(self, given: Given[Array]) -> Array:
        low = given.known.max(axis=0) < given.fitted["tau"][0]
        return self.cluster_means(given, low)

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        return ((given.known.amax(dim=1) < given.fitted["tau"]).to(given.known.dtype),)

    def frame_graph(
        self, maps: tuple[Tensor, ...], fitted: Mapping[str, Tensor], features: FeatureMaps[Tensor]
    ) -> Tensor:
        return self.cluster_means_graph(maps[0], fitted, features)


class ClusterBinary(ClusterRatio):
    """The paper's mask."""

    name = "cluster_binary"
    meaning = "1 where the share of the cluster's pixels with max z < tau is above T, else 0"
    tensor_names = ("tau", "T")
    natural_threshold = 0.5

    def reference(self, given: Given[Array]) -> Array:
        return np.asarray(super().reference(given) > given.fitted["T"][0], np.float64)

    def frame_graph(
        self, maps: tuple[Tensor, ...], fitted: Mapping[str, Tensor], features: FeatureMaps[Tensor]
    ) -> Tensor:
        return (super().frame_graph(maps, fitted, features) > fitted["T"]).to(maps[0].dtype)


class ClusterMean(ClusterScore):
    """Mean of -m over the pixel's cluster."""

    name = "cluster_mean"
    meaning = "mean of -max z over the feature cluster"
    tensor_names = ()

    def drawn_range(self, known: int) -> tuple[float, float]:
        return LOGIT_RANGE

    def reference(self, given: Given[Array]) -> Array:
        return self.cluster_means(given, -given.known.max(axis=0))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        return (-given.known.amax(dim=1),)

    def frame_graph(
        self, maps: tuple[Tensor, ...], fitted: Mapping[str, Tensor], features: FeatureMaps[Tensor]
    ) -> Tensor:
        return self.cluster_means_graph(maps[0], fitted, features)


class ClusterMix(ClusterRatio):
    """The pixel's score and that of its cluster: -m + w max(0, r - T) / (1 - T).

    w is a number of standard deviations of m on training frames, so that it fits logits of any size.
    """

    name = "cluster_mix"
    meaning = "-max z, raised by up to w where more than T of the feature cluster's pixels have max z < tau"
    tensor_names = ("tau", "T", "w")
    ood_share = 0.9
    bounded = False

    def drawn_range(self, known: int) -> tuple[float, float]:
        return LOGIT_RANGE

    def steepness(self, fitted: Mapping[str, Array]) -> float:
        return float(1.0 + PIXELS_AT_TAU * abs(fitted["w"][0]) / (1.0 - fitted["T"][0]))

    def reference(self, given: Given[Array]) -> Array:
        share, weight = given.fitted["T"][0], given.fitted["w"][0]
        excess = np.maximum(super().reference(given) - share, 0.0) / (1.0 - share)
        return np.asarray(weight * excess - given.known.max(axis=0))

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        best = given.known.amax(dim=1)
        return (best < given.fitted["tau"]).to(best.dtype), -best

    def frame_graph(
        self, maps: tuple[Tensor, ...], fitted: Mapping[str, Tensor], features: FeatureMaps[Tensor]
    ) -> Tensor:
        excess = (super().frame_graph(maps, fitted, features) - fitted["T"]).clamp(min=0.0)
        return maps[1] + fitted["w"] / (1.0 - fitted["T"]) * excess


class _ClusterFit(Fit):
    """tau as a quantile of the max logits of training frames, and w as a multiple of their standard deviation."""

    options: Mapping[str, float | None] = MappingProxyType(
        {"clusters": 5, "quantile": 0.1, "tau": None, "T": None, "strength": 1.0}
    )
    """clusters: K. quantile: share of the training pixels with max z < tau, unless tau is given. T: of a cluster.
    strength: of cluster_mix, in standard deviations of m."""

    def __init__(self, names: Sequence[str], ood_share: float) -> None:
        self._names = names
        self.options = {**self.options, "T": ood_share}
        self._samples: list[Array] = []

    def choose(self, options: Mapping[str, float]) -> None:
        super().choose(options)
        count = options.get("clusters", 2)
        if count != round(count) or not 2 <= count <= MOST_CLUSTERS:
            raise ConfigError(f"clusters={count:g}: expected a whole number from 2 to {MOST_CLUSTERS}")
        for name in ("quantile", "T"):
            if not 0.0 <= options.get(name, 0.0) < 1.0:
                raise ConfigError(f"{name}={options[name]:g}: expected a share from 0 to less than 1")
        if options.get("strength", 0.0) < 0.0:
            raise ConfigError(f"strength={options['strength']:g}: expected a number from 0")

    def add(self, given: Given[Array]) -> None:
        best = given.known.max(axis=0).ravel()
        self._samples.append(best[:: max(1, len(best) // SAMPLES_PER_FRAME)].astype(np.float32))

    def tensors(self) -> dict[str, Array]:
        if not self._samples:
            raise ConfigError("scores of clusters need at least 1 frame to be fitted on; give more frames")
        best = np.concatenate(self._samples)
        wanted = ("clusters", "quantile", "T", "strength")
        clusters, quantile, share, strength = (self.options[name] or 0.0 for name in wanted)
        tau = self.options["tau"]
        tau = float(np.quantile(best, quantile)) if tau is None else tau
        values = {"tau": tau, "T": share, "w": strength * float(best.std())}
        fitted = {name: np.array([values[name]], np.float32) for name in self._names}
        return {"clusters": np.arange(clusters, dtype=np.float32), **fitted}


def cluster_labels(features: FeatureMaps[Array], count: int) -> npt.NDArray[np.int64]:
    """Return the cluster of each pixel of the padded frame, int64 (H, W)."""
    (map_,) = features.maps
    down, across = _pooling(map_.shape[1:], features.padded_px)
    depth, height, width = map_.shape
    cells = map_.astype(np.float64).reshape(depth, height // down, down, width // across, across).mean(axis=(2, 4))
    labels = cluster(cells.reshape(depth, -1).T, count).reshape(cells.shape[1:])
    rows, columns = features.padded_px[0] // labels.shape[0], features.padded_px[1] // labels.shape[1]
    return np.asarray(labels.repeat(rows, axis=0).repeat(columns, axis=1))


def _pooling(size: Sequence[int], padded_px: tuple[int, int]) -> tuple[int, int]:
    """Return how many rows and columns of a map (h, w) become one, so that it has FEATURE_PX pixels per value.

    They stay apart where they cannot be divided evenly.
    """
    wanted = [max(1, FEATURE_PX * length // pixels) for length, pixels in zip(size, padded_px, strict=True)]
    down, across = (count if length % count == 0 else 1 for count, length in zip(wanted, size, strict=True))
    return down, across


def _coarse_graph(features: FeatureMaps[Tensor]) -> Tensor:
    from torch.nn.functional import avg_pool2d

    (map_,) = features.maps
    pooling = _pooling(map_.shape[2:], features.padded_px)
    return map_ if pooling == (1, 1) else avg_pool2d(map_, pooling)


def _cell_means(values: Tensor, size: Sequence[int], padded_px: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return (N, 1) of a map (1, H, W): sums over the cell of each feature, and numbers of pixels, by the cell's area.

    Pooling in place of sums, because OpenVINO 2026.4 drops a reshape behind two sums.
    """
    from torch import ones_like
    from torch.nn.functional import avg_pool2d, pad

    cell = padded_px[0] // size[0], padded_px[1] // size[1]
    missing = 0, padded_px[1] - values.shape[2], 0, padded_px[0] - values.shape[1]

    def pooled(map_: Tensor) -> Tensor:
        map_ = pad(map_, missing) if any(missing) else map_
        return avg_pool2d(map_.unsqueeze(1), cell).reshape(-1, 1)

    return pooled(values), pooled(ones_like(values))


def _enlarged(small: Tensor, padded_px: tuple[int, int], shape: Sequence[int]) -> Tensor:
    """Return a map (1, 1, h, w) at the size of the padded frame, each value repeated, without the padding."""
    from torch.nn.functional import interpolate

    enlarged = interpolate(small, size=padded_px, mode="nearest")
    return enlarged[:, 0, : shape[1], : shape[2]]
