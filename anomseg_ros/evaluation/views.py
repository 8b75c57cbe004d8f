"""The sizes at which protocols run the detector and compare its scores with labels.

`seeds` is measured at 512x1024 with Pillow's bilinear image and nearest labels; the others at the labels' own size,
where the detector resizes the frame by its bundle's rule and the scores are resized bilinearly to the labels. One run
of the detector serves all protocols of one view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import LabelImage, RgbImage
from anomseg_ros.datasets.dataset import ANOMALY
from anomseg_ros.datasets.pil_resize import resize_bilinear, resize_nearest
from anomseg_ros.metrics.protocols import Protocol, protocol

Size = tuple[int, int] | None
"""(height, width) in pixels, None for the frame's own."""


@dataclass(frozen=True)
class View:
    """One frame at one size: uint8 (H, W, 3) RGB, train ids and anomaly mask uint8 (H, W) or None, as in a dataset."""

    size_px: Size
    image: RgbImage
    labels: LabelImage | None
    anomaly: npt.NDArray[np.uint8] | None

    def counts_in(self, chosen: Protocol) -> bool:
        """Whether a protocol of this view's size counts this frame's anomaly mask."""
        if self.anomaly is None:
            return False
        return not chosen.skip_without_anomaly or bool((self.anomaly == ANOMALY).any())


def view_sizes(protocols: Sequence[str]) -> tuple[Size, ...]:
    """Return the distinct sizes that protocols ask for, in their order."""
    return tuple(dict.fromkeys(protocol(name).size_px for name in protocols))


def make_view(image: RgbImage, labels: LabelImage | None, anomaly: npt.NDArray[np.uint8] | None, size_px: Size) -> View:
    """Return a frame of a dataset or bag at a size; uint8 (H, W, 3), and (H, W) or None."""
    if size_px is None:
        return View(None, image, labels, anomaly)
    height, width = size_px
    small = [None if truth is None else resize_nearest(truth, height, width) for truth in (labels, anomaly)]
    return View(size_px, resize_bilinear(image, height, width), small[0], small[1])
