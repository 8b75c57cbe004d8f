"""Types of the arrays that modules exchange, with their meaning."""

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
    """A detector's outputs for one frame.

    labels: LabelImage, or None when it was not asked for. scores: score name -> ScoreMap, those that were asked for.
    network_ms: wall time of the graph alone, milliseconds. region: uint8 (H, W), 255 on the road and what stands on it;
    None when it was not asked for, or no road was found. The scores always cover the whole frame. frame_size: height
    and width of the frame in pixels, None if unknown; the arrays may have another size.
    """

    labels: LabelImage | None
    scores: Mapping[str, ScoreMap] = field(default_factory=dict)
    network_ms: float = 0.0
    region: Mask | None = None
    frame_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Cost:
    """Size and arithmetic of a graph.

    parameters: values of weights, biases, normalisations and slopes; nonzero_parameters: those that are not 0.

    multiply_adds: of one frame; effective_multiply_adds: without those by a weight of 0, as papers count unstructured
    pruning. Dense kernels still compute them.
    """

    parameters: int
    nonzero_parameters: int
    multiply_adds: int
    effective_multiply_adds: int
