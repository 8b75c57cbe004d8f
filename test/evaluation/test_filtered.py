from __future__ import annotations

import math

import numpy as np
import pytest

from anomseg_ros.core.temporal_filter import EXPONENTIAL, FilterSpec
from anomseg_ros.core.types import Outputs
from anomseg_ros.evaluation.filtered import filtered_frames
from anomseg_ros.evaluation.measures import TimedOutputs
from anomseg_ros.evaluation.observers import SeenFrame
from anomseg_ros.evaluation.views import Size, View

STAMPS_NS = [0, 100_000_000, 300_000_000]
UNANSWERED = SeenFrame(1, "1", ())


def view(size: Size) -> View:
    return View(size, np.zeros((8, 8, 3), np.uint8), None, None)


def seen(index: int, values: dict[Size, dict[str, float]]) -> SeenFrame:
    """Return a frame with constant score maps: size of the view -> score -> value."""
    views = {size: view(size) for size in values}
    maps = {
        size: {name: np.full((8, 8), value, np.float32) for name, value in of.items()} for size, of in values.items()
    }
    answers = tuple((views[size], TimedOutputs(Outputs(None, scores), 3.0)) for size, scores in maps.items())
    return SeenFrame(index, str(index), tuple(views.values()), answers)


def test_each_size_and_score_is_filtered_separately() -> None:
    first: dict[Size, dict[str, float]] = {None: {"void": 0.0, "energy": 5.0}, (512, 1024): {"void": 1.0}}
    later: dict[Size, dict[str, float]] = {None: {"void": 1.0, "energy": 5.0}, (512, 1024): {"void": 0.0}}
    spec = FilterSpec(EXPONENTIAL, 0.3)
    given = [seen(0, first), UNANSWERED, seen(2, later)]
    before, unanswered, after = filtered_frames(given, spec, STAMPS_NS)
    assert unanswered.seen is None and before.seen is not None and after.seen is not None
    (_, own), (_, resized) = after.seen
    assert own is not None and resized is not None and own.inference_ms == 3.0
    assert own.outputs.scores["void"] == pytest.approx(1 - math.exp(-1))
    assert own.outputs.scores["energy"] == pytest.approx(5.0)
    assert resized.outputs.scores["void"] == pytest.approx(math.exp(-1))
    assert given[2].seen is not None and given[2].seen[0][1] is not None
    assert (given[2].seen[0][1].outputs.scores["void"] == 1.0).all()  # the input is not modified
