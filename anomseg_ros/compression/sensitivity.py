"""Measure which layers lose most in a lower precision, and leave those in float until the outputs agree."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

from anomseg_ros.compression.drift import SAMPLED_PX, rank_correlation
from anomseg_ros.compression.graph import Array
from anomseg_ros.compression.ranges import plain_session
from anomseg_ros.core.bundle import GRAPH_INPUT, LABELS_OUTPUT
from anomseg_ros.core.progress import Progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError, closest_first

AUTO, NONE = "auto", "none"
"""Words for the layers to leave in float: those that this module finds, and no layer."""

Build = Callable[[Collection[str]], onnx.ModelProto]
"""Returns the graph in the lower precision with these layers left in float."""

PROBES = 4
"""Frames on which candidates are compared, unless the goal says otherwise."""


@dataclass(frozen=True)
class Goal:
    """What must agree with the float graph, and the most layers to leave in float for it.

    label_agreement: share of the labels. rank_correlation: of each score. margin: share of the permitted differences
    kept in reserve, since other frames may differ more than the probes. probes: number of frames to compare on.
    """

    label_agreement: float
    rank_correlation: float
    max_layers: int
    margin: float = 0.1
    probes: int = PROBES

    def wanted(self, share: float) -> float:
        """Return a bound with its margin."""
        return 1 - (1 - self.margin) * (1 - share)


def find_float_layers(
    build: Build,
    layers: Sequence[str],
    reference: ort.InferenceSession,
    tensors: Sequence[RgbImage],
    goal: Goal,
    progress: Progress,
    first: Sequence[str] = (),
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return the layers to leave in float and what each layer costs; both empty where none is needed.

    Those of `first` are tried before all others. Then the costliest 1, 2, 4, … layers stay in float as well, until the
    goal is met on the probes, and the fewest that are enough are sought between the last two numbers. The cost is the
    noise in the first score when this layer alone has the lower precision, in dB relative to the score's variance.

    Args:
        build: gives the graph in the lower precision with some layers in float.
        layers: names of the layers that can have the lower precision.
        reference: runs the float graph.
        tensors: frames for the search, uint8 (1, H, W, 3).
        goal: when to stop.
        progress: called after each layer.
        first: names that are not among `layers` and do not count as such, of what is in float at little expense.
    """
    probes = tensors[:: max(1, len(tensors) // goal.probes)][: goal.probes]
    names = [LABELS_OUTPUT, *(output.name for output in reference.get_outputs() if output.name != LABELS_OUTPUT)]
    expected = [_run(reference, names, probe) for probe in probes]

    def is_met(float_layers: Collection[str]) -> bool:
        session = plain_session(build(float_layers))
        return _is_met(goal, expected, [_run(session, names, probe) for probe in probes])

    if is_met(()):
        return (), {}
    if goal.max_layers < 1 or (first and is_met(first)):
        return tuple(first), {}
    noise: dict[str, float] = {}
    for layer in layers:
        alone = plain_session(build([*first, *(name for name in layers if name != layer)]))
        noise[layer] = _noise_db(_run(alone, names[1:2], probes[0])[0], expected[0][1])
        progress("layers measured", len(noise), len(layers))
    ranked = sorted(layers, key=lambda layer: -noise[layer])

    def costliest(count: int) -> tuple[str, ...]:
        return *first, *(layer for layer in layers if layer in ranked[:count])

    return costliest(_fewest(lambda count: is_met(costliest(count)), goal.max_layers)), noise


def checked_layers(names: Collection[str], layers: Sequence[str]) -> tuple[str, ...]:
    """Return the names of layers to leave in float. Raises CompressionError for one that is none of `layers`."""
    for name in names:
        if name not in layers:
            close = ", ".join(closest_first(name, layers)[:5])
            raise CompressionError(
                f"`keep_float`: the graph has no layer {name!r}; the closest of {len(layers)}: {close}"
            )
    return tuple(names)


def _fewest(is_enough: Callable[[int], bool], most: int) -> int:
    """Return about the smallest count that is enough, `most` where none is."""
    too_few, count = 0, 1
    while count < most and not is_enough(count):
        too_few, count = count, min(2 * count, most)
    while count - too_few > 1:
        middle = (too_few + count) // 2
        if is_enough(middle):
            count = middle
        else:
            too_few = middle
    return count


def _is_met(goal: Goal, expected: Sequence[Sequence[Array]], got: Sequence[Sequence[Array]]) -> bool:
    """Return whether the outputs of all probes, labels first, agree with a margin."""
    labels = np.mean([(one[0] == two[0]).mean() for one, two in zip(expected, got, strict=True)])
    if labels < goal.wanted(goal.label_agreement):
        return False
    pairs = [zip(one[1:], two[1:], strict=True) for one, two in zip(expected, got, strict=True)]
    for score in zip(*pairs, strict=True):
        sampled = [np.stack([_sampled(before), _sampled(after)]) for before, after in score]
        # A constant score has no ranks; its NaN is no agreement.
        if not rank_correlation(*np.concatenate(sampled, axis=1)) >= goal.wanted(goal.rank_correlation):
            return False
    return True


def _sampled(score: Array) -> Array:
    flat = score.reshape(-1)
    return flat[:: max(1, flat.size // SAMPLED_PX)]


def _run(session: ort.InferenceSession, outputs: Sequence[str], tensor: RgbImage) -> list[Array]:
    return [np.asarray(array) for array in session.run(list(outputs), {GRAPH_INPUT: tensor})]


def _noise_db(score: Array, expected: Array) -> float:
    noise = float(np.mean(np.square(score - expected, dtype=np.float64)))
    return round(10 * float(np.log10((noise + 1e-20) / (float(np.var(expected, dtype=np.float64)) + 1e-12))), 2)
