"""What every segmentation network of this package has in common: sizes, normalisation, classify then upsample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn, tensor

from anomseg_ros.errors import ConfigError

NO_MEAN = (0.0, 0.0, 0.0)
NO_STD = (1.0, 1.0, 1.0)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in 0..1, as torchvision's and timm's weights were trained with and all that was made from them."""


class SegmentationNetwork(nn.Module, ABC):
    """A network from RGB images to class logits at the images' own size.

    Subclasses set the class attributes and implement `classify`. `forward` takes images of any size: it normalises
    with `mean` and `std`, pads bottom and right to a multiple of `stride`, classifies, upsamples and crops. Each of
    these steps is decided in Python from the static sizes, so an exported graph only holds the steps it needs.
    """

    name: ClassVar[str]
    """The key of this class in NETWORKS."""
    stride: ClassVar[int]
    """`classify` takes heights and widths that are multiples of this."""
    max_unpooling: ClassVar[bool] = False
    """Whether values are put where a maximum was: arbitrary between equal pixels, so that runtimes differ there."""
    class_parameter: ClassVar[tuple[str, int]]
    """Parameter whose given dimension is the number of classes, to read that number off a checkpoint."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"num_classes is {num_classes!r}; a network needs at least 1 class")
        self.num_classes = num_classes
        self.source_layout: str | None = None
        """Published checkpoint family the weights came from, None for a fresh network."""
        self.checkpoint_metadata: dict[str, Any] = {}
        """What save_checkpoint was given beside these weights; empty for fresh and published ones."""
        self.auxiliary_heads = nn.ModuleList()
        """Heads that only training uses; `forward` never runs them."""
        self.set_normalisation(NO_MEAN, NO_STD)

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set what `forward` does to 0..1 RGB images before the first layer: (images - mean) / std per channel."""
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(f"mean {mean!r} and std {std!r} must be three numbers each, the std above 0")
        self.mean = (float(mean[0]), float(mean[1]), float(mean[2]))
        self.std = (float(std[0]), float(std[1]), float(std[2]))
        # Not persistent: the values belong to the checkpoint's metadata, and published checkpoints have no such keys.
        self.register_buffer("_mean", tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", tensor(self.std).view(1, 3, 1, 1), persistent=False)

    def options(self) -> dict[str, Any]:
        """Return the constructor's keyword arguments beside num_classes that rebuild this network (JSON types)."""
        return {}

    @abstractmethod
    def classify(self, images: Tensor) -> Tensor:
        """Return logits (N, C, H / s, W / s) of normalised images (N, 3, H, W), for the network's own s >= 1.

        H and W are multiples of `stride`. s is the largest for which upsampling the logits bilinearly equals the
        published network: a linear classifier commutes with bilinear upsampling, whose weights sum to 1.
        """

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C, H, W), float32, of images (N, 3, H, W), float32, RGB in 0..1, for any H and W."""
        height_px, width_px = images.shape[-2:]
        return self._resize(self.classify_padded(images), height_px, width_px)

    def classify_padded(self, images: Tensor) -> Tensor:
        """Return `classify`'s logits of images as for `forward`: of H and W rounded up to multiples of `stride`."""
        return self.classify(self._pad(self._normalise(images)))

    def _normalise(self, images: Tensor) -> Tensor:
        if self.mean == NO_MEAN and self.std == NO_STD:
            return images
        mean, std = self.get_buffer("_mean"), self.get_buffer("_std")
        return (images - mean) / std

    def _pad(self, images: Tensor) -> Tensor:
        """Repeat the last row and column until both sizes are multiples of `stride`."""
        height_px, width_px = images.shape[-2:]
        bottom, right = -height_px % self.stride, -width_px % self.stride
        return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images

    def padded_size(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return height and width rounded up to multiples of `stride`."""
        return height_px + -height_px % self.stride, width_px + -width_px % self.stride

    def _resize(self, logits: Tensor, height_px: int, width_px: int) -> Tensor:
        """Return `classify`'s logits of padded images at the images' own size (N, C, H, W): upsampled and cropped."""
        padded = self.padded_size(height_px, width_px)
        if tuple(logits.shape[-2:]) != padded:
            logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
        return logits if padded == (height_px, width_px) else logits[..., :height_px, :width_px]


class EnlargingSegmentationNetwork(SegmentationNetwork):
    """A network whose classifier, a transposed convolution, gives logits at the images' own size."""

    classifier: nn.ConvTranspose2d

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return what the classifier takes, (N, D, H / s, W / s), of normalised images (N, 3, H, W)."""

    def features_padded(self, images: Tensor) -> Tensor:
        """Return `features` of images as for `forward`: of H and W rounded up to multiples of `stride`."""
        return self.features(self._pad(self._normalise(images)))

    def classify(self, images: Tensor) -> Tensor:
        """Return logits (N, C, H, W) of normalised images (N, 3, H, W)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class AuxiliarySegmentationNetwork(SegmentationNetwork):
    """A network with further classifiers on inner features, which help training and are absent from inference."""

    @abstractmethod
    def classify_with_auxiliary(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return `classify`'s logits, then those of each auxiliary head at that head's own size."""

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return (logits (N, C, H, W), auxiliary logits..., each at its head's own size) of images as for `forward`.

        Auxiliary logits cover the padded image; upsampling them is left to the loss, which may not need all of them.

        Raises ConfigError where the network was built without auxiliary heads.
        """
        if not self.auxiliary_heads:
            raise ConfigError(
                f"this {self.name} has no auxiliary heads (auxiliary_heads=False, or a checkpoint without them); "
                "use forward(), or build it with auxiliary_heads=True"
            )
        height_px, width_px = images.shape[-2:]
        logits, *auxiliary = self.classify_with_auxiliary(self._pad(self._normalise(images)))
        return self._resize(logits, height_px, width_px), *auxiliary
