"""The scores of an exported graph: first pixel by pixel (in strips or whole), then over the whole frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.networks.prediction import MaskPrediction, Prediction
from anomseg_ros.scores import find_score
from anomseg_ros.scores.score import FeatureMaps, Given, Score

Fitted = Mapping[str, npt.NDArray[np.float32]]


class ScoreHead(nn.Module):
    """Computes scores of a network's prediction; fitted tensors are constants.

    features: names of the feature maps that the prediction needs.
    """

    def __init__(
        self, network: SegmentationNetwork, names: Sequence[str], void_class: int | None, temperature: float
    ) -> None:
        """Raises ConfigError if a score's fitted tensors are missing or do not fit the network."""
        super().__init__()
        self.void_class, self.temperature = void_class, temperature
        self.known = [index for index in range(network.num_classes) if index != void_class]
        self.scores = {name: find_score(name) for name in names}
        self.needs_evidence = any(score.needs_evidence for score in self.scores.values())
        for name, score in self.scores.items():
            if score.needs_masks and not issubclass(network.kind, MaskPrediction):
                raise ConfigError(
                    f"score {name!r} is for networks that predict masks, such as eomt, not for {network.name}; leave "
                    "it out"
                )
        self.choices = {name: score.choose_features(network.feature_names) for name, score in self.scores.items()}
        self.features = tuple(dict.fromkeys(feature for chosen in self.choices.values() for feature in chosen))
        self._tensors: dict[str, list[str]] = {}
        for name, score in self.scores.items():
            fitted = checked_fitted(network, score, len(self.known))
            self._tensors[name] = list(fitted)
            for key, value in fitted.items():
                self.register_buffer(f"{name}_{key}", torch.from_numpy(value), persistent=False)

    def strip_maps(self, prediction: Prediction, maps: Tensor, logits: Tensor) -> list[tuple[Tensor, ...]]:
        """Return `pixel_maps` of a prediction's enlarged maps, or of some of their pixels, and their logits."""
        return self.pixel_maps(logits, prediction.evidence(maps) if self.needs_evidence else None)

    def pixel_maps(self, logits: Tensor, evidence: Tensor | None = None) -> list[tuple[Tensor, ...]]:
        """Return each score's pixel-by-pixel maps (N, …) of logits (N, C, …) and evidence (N, C, …)."""
        known, void = self._known(logits), None
        if self.void_class is not None:
            void = logits[:, self.void_class]
        evidence = None if evidence is None else self._known(evidence)
        return [
            score.pixel_graph(Given(known, void, self.temperature, self._fitted(name), evidence=evidence))
            for name, score in self.scores.items()
        ]

    def _known(self, values: Tensor) -> Tensor:
        """Return the values (N, K, …) of the known classes."""
        if self.void_class is None:
            return values
        return values[:, :-1] if self.void_class == values.shape[1] - 1 else values[:, self.known]

    def frame_scores(self, maps: Sequence[tuple[Tensor, ...]], prediction: Prediction) -> list[Tensor]:
        """Return one float32 (1, H, W) per score, of `pixel_maps` of the whole frame and the prediction's features."""
        shared: dict[tuple[object, ...], Tensor] = {}
        return [
            score.frame_graph(score_maps, self._fitted(name), features_of(prediction, self.choices[name], shared))
            for (name, score), score_maps in zip(self.scores.items(), maps, strict=True)
        ]

    def _fitted(self, name: str) -> dict[str, Tensor]:
        return {key: self.get_buffer(f"{name}_{key}") for key in self._tensors[name]}


def features_of(
    prediction: Prediction, names: Sequence[str], shared: dict[tuple[object, ...], Tensor] | None = None
) -> FeatureMaps[Tensor]:
    """Return the feature maps of a prediction that a score chose; shared: see FeatureMaps."""
    maps = tuple(prediction.features[name] for name in names)
    return FeatureMaps(maps, prediction.padded_px, {} if shared is None else shared)


def checked_fitted(network: SegmentationNetwork, score: Score, known: int) -> Fitted:
    """Return a score's fitted tensors of the network; raise ConfigError if they do not fit it."""
    fitted = network.fitted_scores.get(score.name)
    tensors: Fitted = {} if fitted is None else fitted.tensors
    names = score.choose_features(network.feature_names)
    widths: tuple[int, ...] = ()
    if names:
        parameter = next(network.parameters())
        smallest = torch.zeros((1, 3, 2 * network.stride, 2 * network.stride), device=parameter.device)
        with torch.no_grad():
            widths = tuple(network.predict(smallest, names).features[name].shape[1] for name in names)
    score.check_fitted(tensors, known, widths)
    return tensors
