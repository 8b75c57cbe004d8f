"""The base class of scores: facts, needs, the formula in numpy and the same formula in torch for exported graphs.

A contract test over the table checks that both formulas give the same values. Only graph functions import torch, so the
run-time half can read the table without it. Graph functions avoid Softmax: over the class axis, ONNX Runtime needs
twenty times as long for it as for an exponential and a sum. They also avoid convolutions, because the quantizer takes
the last convolution of a graph for the classifier.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from anomseg_ros.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[np.floating]
A = TypeVar("A")

ANOMALY, MISTAKE = "anomaly", "mistake"
"""Events whose probability a score may be. A mistake is a wrong predicted class."""
IMAGE = "image"
"""The name of the frame itself among the feature maps, (3, H, W), normalised and padded, which every network has."""
LOGIT_RANGE = (-20.0, 0.0)
"""Drawn range of scores that are negated logits, wide enough for trained road-scene networks."""


@dataclass(frozen=True)
class FeatureMaps(Generic[A]):
    """The feature maps that a score chose: (D, h, w) in numpy, (1, D, h, w) in a graph."""

    maps: tuple[A, ...] = ()
    padded_px: tuple[int, int] = (0, 0)
    """Height and width that each map covers: those of the frame after the network padded it."""
    shared: dict[tuple[object, ...], A] = field(default_factory=dict, compare=False)
    """What one score of a frame computed and others use, too; the same for all scores of the frame."""


@dataclass(frozen=True)
class Given(Generic[A]):
    """The inputs of a formula."""

    known: A  # logits of the known classes: (C, H, W) in numpy, (N, C, …) in a graph
    void: A | None = None  # logits of the void class, without the class axis
    temperature: float = 1.0  # T of softmax(z / T)
    fitted: Mapping[str, A] = field(default_factory=dict)  # the score's fitted tensors by name
    features: FeatureMaps[A] = field(default_factory=FeatureMaps)
    """Features of the whole frame; empty for `pixel_graph`."""
    evidence: A | None = None  # of the known classes, shaped as `known`: see networks/prediction.py


class Fit(ABC):
    """Learns a score's tensors from training frames."""

    options: Mapping[str, float | None] = MappingProxyType({})
    """Name -> default of each choice; None: the frames decide."""

    def choose(self, options: Mapping[str, float]) -> None:
        """Replace some of `options`. Raises ConfigError for a value out of range."""
        self.options = {**self.options, **options}

    @abstractmethod
    def add(self, given: Given[Array]) -> None:
        """Add one frame: its logits and the features that the score needs."""

    @abstractmethod
    def tensors(self) -> dict[str, Array]:
        """Return the fitted tensors, float32. Raises ConfigError if there were too few frames."""


class ScoreFacts:
    """Facts that a score and a recorded map both have."""

    probability_of: str | None = None
    """The event whose probability the score is; its calibration error can be measured."""
    natural_threshold: float | None = None
    """The threshold to use while none is calibrated."""
    of_clusters: bool = False
    """Whether the score is made of clusters of features; reports then show these, too."""
    bounded: bool = False
    """Whether every value lies in `drawn_range`."""

    def drawn_range(self, known: int) -> tuple[float, float]:
        """Return (lowest, highest) of the colours for `known` classes, the same for every frame."""
        return (0.0, 1.0)

    @property
    def lowest(self) -> float:
        """Lower end of the drawn range: the value of ignored pixels."""
        return self.drawn_range(2)[0]


class Score(ScoreFacts, ABC):
    """One score, float (H, W), higher = more anomalous."""

    name: ClassVar[str]
    meaning: ClassVar[str]
    """The formula, for people."""
    needs_void: ClassVar[bool] = False
    """Whether the formula uses the void class."""
    needs_masks: ClassVar[bool] = False
    """Whether the formula is for networks that predict masks alone."""
    needs_evidence: ClassVar[bool] = False
    """Whether the formula uses sums of class logits weighted by masks."""
    uses_temperature: ClassVar[bool] = True
    """Whether the formula uses T, so that a threshold depends on it."""
    default_rank: ClassVar[int | None] = None
    """Place among the scores that export uses when none are asked for; None: not among them."""
    label_reach_px: ClassVar[int] = 0
    """Distance up to which a change of a pixel's predicted class makes the score jump; 0: it does not."""
    jumps: ClassVar[bool] = False
    """Whether the score jumps with the features or with logits at other places, as scores of clusters do."""

    @abstractmethod
    def reference(self, given: Given[Array]) -> Array:
        """Return the score (H, W) of a whole frame."""

    @abstractmethod
    def pixel_graph(self, given: Given[Tensor]) -> tuple[Tensor, ...]:
        """Return maps (N, …) that are computed pixel by pixel, so that a graph can work in strips."""

    def frame_graph(
        self, maps: tuple[Tensor, ...], fitted: Mapping[str, Tensor], features: FeatureMaps[Tensor]
    ) -> Tensor:
        """Return the score (1, H, W) from `pixel_graph`'s maps of a whole frame, each (1, H, W), and its features."""
        return maps[0]

    def choose_features(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the feature maps that the score needs, out of a network's, which come in the network's order."""
        return ()

    def start_fit(self, known: int) -> Fit | None:
        """Return a new Fit for `known` classes; None for a score without fitted tensors."""
        return None

    def fitted_shapes(self, known: int, widths: Sequence[int]) -> dict[str, tuple[int | None, ...]]:
        """Return the shape of each fitted tensor for `known` classes and features of `widths` channels.

        None in a shape stands for any size.
        """
        return {}

    def describe(self, fitted: Mapping[str, Array]) -> str:
        """Return the meaning for people, with fitted values that they should know."""
        return self.meaning

    def steepness(self, fitted: Mapping[str, Array]) -> float:
        """Return how much the score changes at most when a logit changes by 1. Parity checks scale by it."""
        return 1.0

    def check_fitted(self, fitted: Mapping[str, npt.NDArray[Any]], known: int, widths: Sequence[int]) -> None:
        """Raise ConfigError if tensors are missing, have another shape or are not finite."""
        shapes = self.fitted_shapes(known, widths)
        features = f" and features of {', '.join(map(str, widths))} channels" if widths else ""
        remedy = f"run `anomseg calibrate score BUNDLE --score {self.name} --dataset NAME=PATH`"
        if shapes and not fitted:
            raise ConfigError(f"score {self.name!r} is not fitted to this checkpoint: {remedy}, or leave it out")
        if fitted.keys() != shapes.keys():
            raise ConfigError(
                f"score {self.name!r} has fitted tensors {', '.join(sorted(fitted))}, expected "
                f"{', '.join(sorted(shapes)) or 'none'}: {remedy}"
            )
        for name, shape in shapes.items():
            value = fitted[name]
            fits = value.ndim == len(shape) and all(b in (None, a) for a, b in zip(value.shape, shape, strict=True))
            if not fits or not value.size:
                wanted = " x ".join("any" if size is None else str(size) for size in shape)
                raise ConfigError(
                    f"score {self.name!r}: fitted tensor {name!r} is {' x '.join(map(str, value.shape))}, expected "
                    f"{wanted} for {known} known classes{features}: it was fitted to another network; {remedy}"
                )
            if not np.isfinite(value).all():
                raise ConfigError(f"score {self.name!r}: fitted tensor {name!r} is not finite everywhere: {remedy}")


def log_sum_exp(z: Array) -> Array:
    """Return log sum exp over the first axis; the shift by the maximum avoids an overflow."""
    peak = z.max(axis=0)
    return np.asarray(peak + np.log(np.exp(z - peak).sum(axis=0)))


def softmax(z: Array) -> Array:
    """Return softmax over the first axis."""
    exponentials = np.exp(z - z.max(axis=0))
    return np.asarray(exponentials / exponentials.sum(axis=0))


def shifted(given: Given[Tensor]) -> tuple[Tensor, Tensor]:
    """Return (z - max z) / T and its exponential."""
    values = scaled(given.known - given.known.amax(dim=1, keepdim=True), given.temperature)
    return values, values.exp()


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """Return logits / T."""
    return logits if temperature == 1.0 else logits / temperature
