"""Measure which layers lose most when they are quantized, and leave those in float until the labels agree."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

from anomseg_ros.compression.graph import Array
from anomseg_ros.compression.ranges import plain_session
from anomseg_ros.core.bundle import GRAPH_INPUT, LABELS_OUTPUT
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.types import RgbImage

Build = Callable[[Collection[str]], onnx.ModelProto]
"""Returns the quantized graph with these layers left in float."""

PROBES = 4
"""Calibration frames on which candidates are compared."""

MARGIN = 0.1
"""Share of the permitted label differences kept in reserve: other frames may differ more than the probes."""


@dataclass(frozen=True)
class Goal:
    """The share of labels that must agree with the float graph, and the most layers to leave in float for it."""

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
    """Return the layers to leave in float and what quantizing each layer costs; both empty where none is needed.

    The cost is the noise in the first score when this layer alone is quantized, in dB relative to the score's variance.
    The costliest 1, 2, 4, … layers stay in float until the goal is met on the probes.

    Args:
        build: gives the quantized graph with some layers in float.
        layers: names of the layers that can be quantized.
        reference: runs the float graph.
        tensors: calibration frames, uint8 (1, H, W, 3).
        goal: when to stop.
        progress: called after each layer.
    """
    probes = tensors[:: max(1, len(tensors) // PROBES)][:PROBES]
    score = next(output.name for output in reference.get_outputs() if output.name != LABELS_OUTPUT)
    truth = [_run(reference, LABELS_OUTPUT, probe) for probe in probes]
    expected = _run(reference, score, probes[0])
    wanted = 1 - (1 - MARGIN) * (1 - goal.label_agreement)

    def agreement(float_layers: Collection[str]) -> float:
        session = plain_session(build(float_layers))
        pairs = zip(probes, truth, strict=True)
        return float(
            np.mean([float((_run(session, LABELS_OUTPUT, probe) == labels).mean()) for probe, labels in pairs])
        )

    if agreement(()) >= wanted or goal.max_layers < 1:
        return (), {}
    noise: dict[str, float] = {}
    for layer in layers:
        alone = plain_session(build([name for name in layers if name != layer]))
        noise[layer] = _noise_db(_run(alone, score, probes[0]), expected)
        progress("layers measured", len(noise), len(layers))
    ranked = sorted(layers, key=lambda layer: -noise[layer])
    count = 1
    while True:
        float_layers = tuple(layer for layer in layers if layer in ranked[:count])
        if agreement(float_layers) >= wanted or count == goal.max_layers:
            return float_layers, noise
        count = min(2 * count, goal.max_layers)


def _run(session: ort.InferenceSession, output: str, tensor: RgbImage) -> Array:
    return np.asarray(session.run([output], {GRAPH_INPUT: tensor})[0])


def _noise_db(score: Array, expected: Array) -> float:
    noise = float(np.mean(np.square(score - expected, dtype=np.float64)))
    return round(10 * float(np.log10((noise + 1e-20) / (float(np.var(expected, dtype=np.float64)) + 1e-12))), 2)
