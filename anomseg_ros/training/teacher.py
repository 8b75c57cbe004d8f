"""A checkpoint as a teacher of pseudo-labels, run by torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomseg_ros.core.bundle import sha256_of
from anomseg_ros.core.labels import CITYSCAPES
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.pseudo_label import Probabilities, TeacherInfo, resized, view_size
from anomseg_ros.errors import CheckpointError
from anomseg_ros.networks import network_class
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork

KNOWN = len(CITYSCAPES)


class NetworkTeacher:
    """A network of Cityscapes' 19 classes. It may have one more output, whose probability no class gets."""

    def __init__(self, network_name: str, checkpoint: Path) -> None:
        """Load the checkpoint. Raises ConfigError for an unknown network, CheckpointError for other classes."""
        self._network = _load(network_name, checkpoint)
        self.info = TeacherInfo(network_name, sha256_of(checkpoint), f"torch {torch.__version__}")

    def look(
        self, image: RgbImage, size_px: tuple[int, int], scales: tuple[float, ...], flip: bool
    ) -> Iterator[Probabilities]:
        """Yield the probabilities of each view; see datasets.pseudo_label.Teacher."""
        for scale in scales:
            view = resized(image, view_size(size_px, scale))
            pixels = torch.from_numpy(view.astype(np.float32) / 255).permute(2, 0, 1)[np.newaxis]
            yield self._probabilities(pixels, size_px)
            if flip:
                yield self._probabilities(pixels.flip(3), size_px)[:, :, ::-1]

    @torch.inference_mode()
    def _probabilities(self, pixels: Tensor, size_px: tuple[int, int]) -> Probabilities:
        logits = self._network.predict(pixels).pixel_logits()
        if logits.shape[2:] != size_px:
            logits = F.interpolate(logits, size_px, mode="bilinear", align_corners=False)
        return np.asarray(logits.softmax(dim=1)[0, :KNOWN].numpy(), np.float32)


def _load(network_name: str, checkpoint: Path) -> SegmentationNetwork:
    network_class(network_name)
    try:
        return load_checkpoint(checkpoint, network_name, KNOWN + 1)
    except CheckpointError:
        pass  # the other attempt reports it
    try:
        return load_checkpoint(checkpoint, network_name, KNOWN)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. A teacher has the {KNOWN} classes of Cityscapes in their order, or these and one output more"
        ) from None
