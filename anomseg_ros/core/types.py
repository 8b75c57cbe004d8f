"""Arrays that pass between the parts, with their meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

RgbImage = npt.NDArray[np.uint8]
"""uint8 (H, W, 3), channel order R, G, B."""

LabelImage = npt.NDArray[np.uint8]
"""uint8 (H, W), train ids, 255 = unlabelled or void; in ground truth also 252, known but class uncertain."""

ScoreMap = npt.NDArray[np.float32]
"""float32 (H, W), higher = more anomalous."""

Mask = npt.NDArray[np.uint8]
"""uint8 (H, W), 255 = anomalous, 0 = known."""


@dataclass(frozen=True)
class Outputs:
    """What a detector says of one frame.

    labels: LabelImage, or None when it was not asked for. scores: score name -> ScoreMap, those that were asked for.
    network_ms: wall time of the graph alone, milliseconds. region: uint8 (H, W), 255 on the road and what stands on it;
    None when it was not asked for, or no road was found. The scores are those of the whole frame all the same.
    """

    labels: LabelImage | None
    scores: Mapping[str, ScoreMap] = field(default_factory=dict)
    network_ms: float = 0.0
    region: Mask | None = None
