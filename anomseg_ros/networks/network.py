"""The base class of all networks: sizes, normalisation, features and the prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor, nn, tensor

from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.networks.prediction import PixelPrediction, Prediction
from anomseg_ros.scores.score import IMAGE

NO_MEAN = (0.0, 0.0, 0.0)
NO_STD = (1.0, 1.0, 1.0)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in 0..1, for weights of torchvision and timm and all weights made from these."""


@dataclass(frozen=True)
class FittedScore:
    """Float32 tensors of an anomaly score, and facts about the frames they were fitted on (JSON types)."""

    tensors: Mapping[str, npt.NDArray[np.float32]]
    facts: Mapping[str, Any]


class SegmentationNetwork(nn.Module, ABC):
    """A network from RGB images to a prediction.

    Subclasses set the class attributes and implement `encode`; mask networks also implement `decide`. `predict` takes
    images of any size: it normalises with `mean` and `std`, pads bottom and right to a multiple of `stride`, encodes
    and decides. `forward` enlarges and crops the prediction. Python decides from the static sizes which steps are
    needed, so an exported graph holds no others.
    """

    name: ClassVar[str]
    """The key of this class in NETWORKS."""
    stride: ClassVar[int]
    """`encode` takes heights and widths that are multiples of this."""
    feature_names: ClassVar[tuple[str, ...]]
    """The feature maps that `encode` returns; the last one is the classifier's input."""
    kind: ClassVar[type[Prediction]] = PixelPrediction
    """The kind of the network's predictions."""
    max_unpooling: ClassVar[bool] = False
    """Whether the network max-unpools. The place of a maximum among equal pixels differs between runtimes."""
    class_parameter: ClassVar[tuple[str, int]]
    """A parameter of the classifier and its dimension that counts the outputs, to find the count in a checkpoint."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"num_classes is {num_classes!r}; a network needs at least 1 class")
        self.num_classes = num_classes
        self.source_layout: str | None = None
        """Published checkpoint family of the weights, None for a fresh network."""
        self.checkpoint_metadata: dict[str, Any] = {}
        """Metadata that save_checkpoint was given with these weights; empty for fresh and published ones."""
        self.fitted_scores: dict[str, FittedScore] = {}
        """Score name -> tensors fitted to these weights; save_checkpoint writes them, too."""
        self.auxiliary_heads = nn.ModuleList()
        """Heads for training only; `forward` never runs them."""
        self.set_normalisation(NO_MEAN, NO_STD)

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the normalisation of 0..1 RGB images before the first layer: (images - mean) / std per channel."""
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(f"mean {mean!r} and std {std!r} must be three numbers each, the std above 0")
        self.mean = (float(mean[0]), float(mean[1]), float(mean[2]))
        self.std = (float(std[0]), float(std[1]), float(std[2]))
        # Not persistent: checkpoints hold the values in their description, and published ones have no such keys.
        self.register_buffer("_mean", tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", tensor(self.std).view(1, 3, 1, 1), persistent=False)

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments beside num_classes that rebuild this network (JSON types)."""
        return {}

    def weights_of(self, source: SegmentationNetwork) -> dict[str, Tensor]:
        """Return the weights of another network of this class as this one takes them, such as at its own grid."""
        return source.state_dict()

    def for_gpu(self) -> SegmentationNetwork:
        """Return the network as it is exported for GPUs: the same function, of operators that half precision suits."""
        return self

    @abstractmethod
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Return the feature maps (N, D, h, w) of normalised images (N, 3, H, W), by the names in `feature_names`.

        H and W are multiples of `stride`. Further tensors for `decide` may be there under other names.
        """

    def decide(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the prediction's tensors, by their names there, of `encode`'s features.

        Per-pixel networks give logits (N, C, H / s, W / s), with the largest s for which bilinear upsampling gives the
        published network's logits: a linear classifier commutes with bilinear upsampling, whose weights sum to 1.
        """
        return {"logits": self.classifier_layer(features[self.feature_names[-1]])}

    @classmethod
    def class_count(cls, outputs: int, options: Mapping[str, Any]) -> int:
        """Return the number of classes of a classifier whose `class_parameter` counts `outputs`.

        options: the constructor's arguments.
        """
        return outputs

    @property
    def classifier_layer(self) -> nn.Module:
        """The layer whose outputs are the classes."""
        return self.get_submodule(self.class_parameter[0].rpartition(".")[0])

    def compute(self, images: Tensor, features: Sequence[str] = ()) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return `decide`'s tensors and the named feature maps, of images as for `encode`."""
        encoded = self.encode(images)
        return self.decide(encoded), {name: encoded[name] for name in features}

    def predict(self, images: Tensor, features: Sequence[str] = ()) -> Prediction:
        """Return the prediction for images (N, 3, H, W), float32, RGB in 0..1, of any H and W.

        features: names of feature maps to return with it, of `feature_names` or IMAGE. Raises ConfigError for another.
        """
        for name in features:
            if name not in (*self.feature_names, IMAGE):
                raise ConfigError(f"network {self.name!r}: {unknown_name('feature', name, self.feature_names)}")
        padded = self._padded(self._normalise(images))
        tensors, maps = self.compute(padded, [name for name in features if name != IMAGE])
        if IMAGE in features:
            maps = {**maps, IMAGE: padded}
        return self._prediction(images, padded, tensors, maps)

    def _prediction(
        self, images: Tensor, padded: Tensor, tensors: Mapping[str, Tensor], features: Mapping[str, Tensor]
    ) -> Prediction:
        """Return the prediction of images, of the tensors and feature maps of the padded ones."""
        height_px, width_px = images.shape[-2:]
        padded_px = padded.shape[-2], padded.shape[-1]
        return self.kind(size_px=(height_px, width_px), padded_px=padded_px, features=features, **tensors)

    def _padded(self, images: Tensor) -> Tensor:
        height_px, width_px = images.shape[-2:]
        padded_px = self.padded_size(height_px, width_px)
        bottom, right = padded_px[0] - height_px, padded_px[1] - width_px
        return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C, H, W), float32, of images as for `predict`."""
        return self.predict(images).pixel_logits()

    def _normalise(self, images: Tensor) -> Tensor:
        if self.mean == NO_MEAN and self.std == NO_STD:
            return images
        mean, std = self.get_buffer("_mean"), self.get_buffer("_std")
        return (images - mean) / std

    def padded_size(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return height and width rounded up to multiples of `stride`."""
        return height_px + -height_px % self.stride, width_px + -width_px % self.stride


class AuxiliarySegmentationNetwork(SegmentationNetwork):
    """A network with further classifiers on inner features, which only training uses."""

    auxiliary_features: ClassVar[tuple[str, ...]]
    """The input of each auxiliary head, by name."""

    def compute_with_auxiliary(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return `decide`'s tensors, then each auxiliary head's logits at its own size, of images as for `encode`."""
        tensors, features = self.compute(images, self.auxiliary_features)
        return *tensors.values(), *self.auxiliary_logits(features)

    def auxiliary_logits(self, features: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield the logits of each auxiliary head at its own size; `features` hold `auxiliary_features`."""
        for head, name in zip(self.auxiliary_heads, self.auxiliary_features, strict=True):
            yield head(features[name])


class StagedMaskNetwork(SegmentationNetwork):
    """A network of masks that refines its queries block by block and is trained on what it predicts before each."""

    encoder_parts: ClassVar[tuple[str, ...]]
    """Beginnings of the names of the parameters that a pretrained encoder has."""
    anneals_masks: ClassVar[bool] = True
    """Whether masks of attention are for training alone. Mask2Former keeps them, whatever share is asked for."""

    @property
    @abstractmethod
    def stages(self) -> int:
        """Number of blocks with a prediction before them."""

    @abstractmethod
    def compute_stages(
        self, images: Tensor, masked: Sequence[float], features: Sequence[str] = ()
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return `decide`'s tensors before each of the blocks, then after the last, and the last's feature maps.

        Args:
            images: as for `encode`.
            masked: one share of 0 to 1 per block, of the queries whose attention is limited to their mask.
            features: names of feature maps.
        """

    def predict_stages(self, images: Tensor, masked: Sequence[float], features: Sequence[str] = ()) -> list[Prediction]:
        """Return the predictions of `compute_stages` for images as for `predict`; the last one has the feature maps."""
        padded = self._padded(self._normalise(images))
        stages, maps = self.compute_stages(padded, masked, features)
        held: list[dict[str, Tensor]] = [{}] * (len(stages) - 1) + [maps]
        return [self._prediction(images, padded, *pair) for pair in zip(stages, held, strict=True)]


def pixels_to_input(image: Tensor) -> Tensor:
    """Return float32 (N, 3, H, W) in 0 to 1 of uint8 (N, H, W, 3) camera pixels."""
    # Cast first: TensorRT takes uint8 as input and output alone.
    return image.float().permute(0, 3, 1, 2) / 255.0
