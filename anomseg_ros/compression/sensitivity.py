"""Which layers lose most when they are quantized, found by measuring, and left in float until the labels hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from anomseg_ros.compression.calibration import Progress, plain_session
from anomseg_ros.core.bundle import GRAPH_INPUT, LABELS_OUTPUT
from anomseg_ros.core.types import RgbImage

Build = Callable[[Collection[str]], onnx.ModelProto]
"""Returns the quantized graph with these layers left in float."""

PROBES = 4
"""Calibration frames that candidates are compared on."""

MARGIN = 0.1
"""Share of the labels allowed to differ that is kept back: other frames may do worse than these."""


@dataclass(frozen=True)
class Goal:
    """Share of the labels that must agree with the float graph's, and the most layers left in float for that."""

    label_agreement: float
    max_layers: int


def find_float_layers(
    build: Build,
    layers: Sequence[str],
    reference: ort.InferenceSession,
    tensors: Sequence[RgbImage],
    goal: Goal,
    progress: Progress,
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return the layers to leave in float, none where all can be quantized, and what each layer's quantization costs.

    That cost is the noise in the first score, in dB below the score's own spread, when this layer alone is quantized.
    The costliest 1, 2, 4, … are left in float until the goal is met on the probes.
    """
    probes = tensors[:: max(1, len(tensors) // PROBES)][:PROBES]
    outputs = [LABELS_OUTPUT, next(out.name for out in reference.get_outputs() if out.name != LABELS_OUTPUT)]
    truth = [_run(reference, outputs, tensor) for tensor in probes]
    wanted = 1 - (1 - MARGIN) * (1 - goal.label_agreement)
    if _agreement(build(()), truth, probes) >= wanted or goal.max_layers < 1:
        return (), {}
    noise: dict[str, float] = {}
    for index, layer in enumerate(layers):
        alone = build([name for name in layers if name != layer])
        noise[layer] = _noise_db(alone, outputs, truth[0], probes[0])
        progress("layers measured", index + 1, len(layers))
    ranked = sorted(layers, key=lambda layer: -noise[layer])
    count = 1
    while True:
        kept = tuple(layer for layer in layers if layer in set(ranked[:count]))
        if _agreement(build(kept), truth, probes) >= wanted or count == goal.max_layers:
            return kept, noise
        count = min(2 * count, goal.max_layers)


def _run(session: ort.InferenceSession, outputs: Sequence[str], tensor: RgbImage) -> list[npt.NDArray[np.float32]]:
    return [np.asarray(value) for value in session.run(list(outputs), {GRAPH_INPUT: tensor})]


def _agreement(
    model: onnx.ModelProto, truth: Sequence[Sequence[npt.NDArray[np.float32]]], probes: Sequence[RgbImage]
) -> float:
    session = plain_session(model)
    shares = [
        float((_run(session, [LABELS_OUTPUT], tensor)[0] == expected[0]).mean())
        for tensor, expected in zip(probes, truth, strict=True)
    ]
    return float(np.mean(shares))


def _noise_db(
    model: onnx.ModelProto, outputs: Sequence[str], truth: Sequence[npt.NDArray[np.float32]], probe: RgbImage
) -> float:
    score = _run(plain_session(model), outputs[1:], probe)[0]
    noise = float(np.mean(np.square(score - truth[1], dtype=np.float64)))
    return round(10 * float(np.log10((noise + 1e-20) / (float(np.var(truth[1], dtype=np.float64)) + 1e-12))), 2)
