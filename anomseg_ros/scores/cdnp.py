"""Combined deep neighbourhood proximity, cDNP (Galesso, Argus and Brox, ICCV workshops 2023, arXiv 2211.06660).

DNP is the mean Euclidean distance d of a pixel's feature to its k = 3 nearest reference features. cDNP adds it to
p = -log sum exp z, each scaled by its range on training frames: (p - min p) / (max p - min p) + d / max d. This is the
paper's default and that of the authors' code (github.com/silviogalesso/dense-ood-knns: test_ood.py,
nearest_neighbors/). Features are not normalised there, nor here.

Deviations, which let a vehicle run it in one graph:

- There are 1,000 reference features, not 100,000 of 500 frames: each pixel of the feature map is compared with each.
- The features come from the map before the classifier's input, which is the encoder's where a network has one. The
  paper takes the keys of a vision transformer's last block.
- References include pixels without a label, because fitting reads no labels.
- Distances are enlarged bilinearly, not to the nearest value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from anomseg_ros.errors import ConfigError
from anomseg_ros.scores.score import Array, FeatureMaps, Fit, Given, Score, log_sum_exp

if TYPE_CHECKING:
    from torch import Tensor

NEIGHBOURS = 3
REFERENCES = 1000
CANDIDATES_PER_FRAME = 500
"""Features drawn from each frame; references are drawn from all of these."""
LEAST_RANGE = 1e-6


class Cdnp(Score):
    """Scaled -log sum exp z + scaled mean distance to the 3 nearest features of training frames."""

    name = "cdnp"
    meaning = "-log sum exp z + distance to the 3 nearest training features, each by its range on training frames"
    uses_temperature = False

    def drawn_range(self, known: int) -> tuple[float, float]:
        return (0.0, 2.0)  # training frames lie inside

    def choose_features(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the feature map before the classifier's input, or that input if it is the only map."""
        return (names[-2:][0],)

    def start_fit(self, known: int) -> Fit:
        return _Neighbourhood()

    def fitted_shapes(self, known: int, widths: Sequence[int]) -> dict[str, tuple[int | None, ...]]:
        """Return shapes: references (N, D); least and greatest parametric score; greatest distance."""
        return {"references": (None, *widths), "parametric": (2,), "distance": (1,)}

    def steepness(self, fitted: Mapping[str, Array]) -> float:
        """Return the sum of both scales: logits and distances have rounding errors of the same size."""
        low, high = fitted["parametric"]
        return float(1.0 / (high - low) + 1.0 / fitted["distance"][0])

    def reference(self, given: Given[Array]) -> Array:
        (features,) = given.features.maps
        references = np.asarray(given.fitted["references"], np.float64)
        pixels = features.reshape(len(features), -1).T.astype(np.float64)
        distances = nearest_distances(pixels, references).reshape(features.shape[1:])
        height, width = given.features.padded_px
        enlarged = cv2.resize(distances, (width, height), interpolation=cv2.INTER_LINEAR)
        low, high = given.fitted["parametric"]
        parametric = (-log_sum_exp(given.known) - low) / (high - low)
        rows, columns = parametric.shape
        return np.asarray(parametric + enlarged[:rows, :columns] / given.fitted["distance"][0])

    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        """Return the scaled parametric score."""
        peak = given.known.amax(dim=1, keepdim=True)
        parametric = -(peak.squeeze(1) + (given.known - peak).exp().sum(dim=1).log())
        low, high = given.fitted["parametric"][0], given.fitted["parametric"][1]
        return ((parametric - low) / (high - low),)

    def frame_graph(
        self, maps: tuple[Tensor, ...], fitted: Mapping[str, Tensor], features: FeatureMaps[Tensor]
    ) -> Tensor:
        """Return the score; squared distances are |f|^2 + |r|^2 - 2 f r."""
        from torch.nn.functional import interpolate

        (map_,) = features.maps
        references = fitted["references"]
        pixels = map_.flatten(2).transpose(1, 2)
        offsets = (references * references).sum(dim=1) - 2.0 * (pixels @ references.t())
        nearest = offsets.topk(NEIGHBOURS, dim=2, largest=False).values
        squares = nearest + (pixels * pixels).sum(dim=2, keepdim=True)
        distances = squares.clamp(min=0.0).sqrt().mean(dim=2) / fitted["distance"]
        small = distances.reshape(1, 1, *map_.shape[2:])
        enlarged = interpolate(small, size=features.padded_px, mode="bilinear", align_corners=False)
        return maps[0] + enlarged[:, 0, : maps[0].shape[1], : maps[0].shape[2]]


class _Neighbourhood(Fit):
    """Features drawn from each frame, and the range of the parametric score."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)
        self._drawn: list[Array] = []
        self._low, self._high = np.inf, -np.inf

    def add(self, given: Given[Array]) -> None:
        parametric = -log_sum_exp(given.known)
        self._low, self._high = min(self._low, float(parametric.min())), max(self._high, float(parametric.max()))
        (features,) = given.features.maps
        pixels = features.reshape(len(features), -1).T
        count = min(CANDIDATES_PER_FRAME, len(pixels))
        self._drawn.append(pixels[self._generator.choice(len(pixels), count, replace=False)].astype(np.float32))

    def tensors(self) -> dict[str, Array]:
        candidates = np.concatenate(self._drawn) if self._drawn else np.zeros((0, 1), np.float32)
        if len(candidates) <= NEIGHBOURS:
            raise ConfigError(f"cDNP needs more than {NEIGHBOURS} features to be fitted on; give more frames")
        order = self._generator.permutation(len(candidates))
        references, others = candidates[order[:REFERENCES]], candidates[order[REFERENCES:]]
        # If every candidate is a reference, the nearest reference of each is itself.
        measured, skip = (others, 0) if len(others) else (references, 1)
        distances = nearest_distances(measured.astype(np.float64), references.astype(np.float64), skip)
        high = max(self._high, self._low + LEAST_RANGE)
        return {
            "references": references,
            "parametric": np.array([self._low, high], np.float32),
            "distance": np.array([max(float(distances.max()), LEAST_RANGE)], np.float32),
        }


def nearest_distances(pixels: Array, references: Array, skip: int = 0) -> Array:
    """Return (P,): the mean distance of features (P, D) to their 3 nearest references (N, D) after the first `skip`."""
    means = np.empty(len(pixels))
    for start in range(0, len(pixels), 4096):
        part = pixels[start : start + 4096]
        squares = (part**2).sum(1)[:, None] + (references**2).sum(1) - 2.0 * part @ references.T
        nearest = np.sort(np.partition(squares, NEIGHBOURS + skip - 1, axis=1)[:, : NEIGHBOURS + skip], axis=1)
        means[start : start + 4096] = np.sqrt(np.maximum(nearest[:, skip:], 0.0)).mean(axis=1)
    return means
