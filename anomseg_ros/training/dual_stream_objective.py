"""The objective "dual_stream": the objective "masks" with a loss on two streams, or with outliers.

"Dual-stream adapters for anomaly segmentation": the total loss is L_mask + 2 L_class + 0.1 L_streams (equation 10),
with L_streams of hyperbolic.py. In a second stage, the decoder alone learns on pasted outliers, with the loss of
mask_contrastive.py in place of L_streams. As in Mask2Anomaly, that one is added to the losses of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.networks.dual_stream_adapter import STREAM_FEATURES, DualStreamAdapter
from anomseg_ros.networks.network import SegmentationNetwork
from anomseg_ros.training.hyperbolic import CELLS, KNOWN, STREAM_LOSSES, UNCOUNTED, VOID, stream_loss
from anomseg_ros.training.losses import IGNORED, OUTLIER
from anomseg_ros.training.mask_contrastive import mask_contrastive
from anomseg_ros.training.mask_objective import MaskObjective, MaskOptions
from anomseg_ros.training.objectives import Answer, Needs, Task


@dataclass(frozen=True)
class DualStreamOptions(MaskOptions):
    """Options of DualStreamObjective, beside those of MaskOptions. The defaults are the paper's."""

    stream_weight: float = 0.1
    stream_loss: str = "hyperbolic"  # or bce, contrastive
    stream_cells: str = "labels"  # or all: hyperbolic.py
    curvature: float = 0.01
    stream_margin: float = 1.0  # of stream_loss contrastive
    contrastive_weight: float = 0.0
    contrastive_margin: float = 1.0
    released_contrastive: bool = False
    """Whether the mask contrastive loss is that of Mask2Anomaly's published code."""

    @property
    def needs(self) -> Needs:
        outliers = self.rba_weight > 0 or self.contrastive_weight > 0
        return Needs(features=STREAM_FEATURES if self.stream_weight else (), outliers=outliers)

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        super().__post_init__()
        for name in ("stream_weight", "contrastive_weight"):
            self._expect(name, 0 <= getattr(self, name) < float("inf"), "a finite number from 0 up")
        for name in ("curvature", "stream_margin", "contrastive_margin"):
            self._expect(name, 0 < getattr(self, name) < float("inf"), "a finite number above 0")
        if self.stream_loss not in STREAM_LOSSES:
            raise ConfigError(unknown_name("stream_loss", self.stream_loss, STREAM_LOSSES))
        if self.stream_cells not in CELLS:
            raise ConfigError(unknown_name("stream_cells", self.stream_cells, CELLS))


class DualStreamObjective(MaskObjective):
    """See the module."""

    options_type = DualStreamOptions

    def __init__(self, options: DualStreamOptions, task: Task) -> None:
        super().__init__(options, task)
        self.stream_options = options

    def prepare(self, network: SegmentationNetwork) -> None:
        """Raise ConfigError if the options do not fit the network."""
        if not isinstance(network, DualStreamAdapter):
            raise ConfigError(
                f"the objective dual_stream is for dual_stream_adapter, not for {network.name}; take masks"
            )
        if self.stream_options.stream_weight and network.streams != 2:
            raise ConfigError(
                f"loss.stream_weight is for two streams, and the network has {network.streams}; set it to 0, or set "
                "network.options.streams=2"
            )
        super().prepare(network)

    def terms(self, answer: Answer, target: Tensor, teachers: Sequence[Tensor], step: int) -> dict[str, Tensor]:
        """Return the terms of masks, and "streams" and "contrastive" where they have a weight."""
        options, terms = self.stream_options, super().terms(answer, target, teachers, step)
        if options.stream_weight:
            prediction = answer.prediction
            loss = stream_loss(
                [prediction.features[name] for name in STREAM_FEATURES],
                self._cells(target, prediction.padded_px),
                options.stream_loss,
                options.stream_cells,
                options.curvature,
                options.stream_margin,
            )
            terms["streams"] = options.stream_weight * loss
        if options.contrastive_weight:
            semantic, padded, outliers, known = self._semantic(answer.prediction, target)
            loss = mask_contrastive(
                semantic, padded, outliers, known, options.contrastive_margin, options.released_contrastive
            )
            terms["contrastive"] = options.contrastive_weight * loss
        return terms

    def _cells(self, target: Tensor, padded_px: tuple[int, int]) -> Tensor:
        """Return a target (N, H, W) as KNOWN, VOID (unlabelled, pasted, void class) or UNCOUNTED (padding)."""
        void = (target == IGNORED) | (target == OUTLIER)
        if self.void_class is not None:
            void = void | (target == self.void_class)
        cells = torch.where(void, VOID, KNOWN)
        bottom, right = padded_px[0] - target.shape[1], padded_px[1] - target.shape[2]
        return F.pad(cells, (0, right, 0, bottom), value=UNCOUNTED)
