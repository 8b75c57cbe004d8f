from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")

from bag_scenes import image_message, stamp_ns

from anomseg_ros.bags.write import BagWriter
from anomseg_ros.core.types import Outputs
from anomseg_ros.evaluation.bag_evaluate import evaluate_bags
from anomseg_ros.evaluation.bag_plan import BagRequest, BagSource
from anomseg_ros.evaluation.measures import MeasureSpec
from anomseg_ros.evaluation.observers import SeenFrame
from anomseg_ros.evaluation.recorded import RecordedSource, Timeline
from anomseg_ros.evaluation.results import Evaluation, Result, Streaming, load_evaluation, save_evaluation
from anomseg_ros.evaluation.streaming import StreamingObserver
from anomseg_ros.evaluation.views import View
from anomseg_ros.metrics.protocols import protocol

SHAPE = (8, 40)
FRAMES = 5
TENTH_S = 100_000_000
SPEC = MeasureSpec(("void",), ("fishyscapes",))


def truth(index: int) -> np.ndarray:
    """Return an anomaly of 4x4 pixels that moves by 2 pixels per frame."""
    anomaly = np.zeros(SHAPE, np.uint8)
    anomaly[2:6, 4 + 2 * index : 8 + 2 * index] = 1
    return anomaly


@dataclass
class PerfectDetector:
    """A detector whose outputs equal the ground truth."""

    stamps_ns: frozenset[int] = frozenset(index * TENTH_S for index in range(FRAMES))

    def outputs(self, stamp_ns: int) -> Outputs:
        return Outputs(None, {"void": truth(stamp_ns // TENTH_S).astype(np.float32)})


def streaming_of(answered_ns: Mapping[int, int], answers: PerfectDetector | None = None) -> Streaming | None:
    """Return the figures of frames shown every 0.1 s. answered_ns: frame -> time of the answer after it was shown."""
    stamps_ns = [index * TENTH_S for index in range(FRAMES)]
    timeline = Timeline(
        {stamp: 7 + stamp for stamp in stamps_ns},
        {stamps_ns[index]: 7 + stamps_ns[index] + later for index, later in answered_ns.items()},
    )
    observer = StreamingObserver(SPEC, timeline, answers or PerfectDetector(), stamps_ns)
    for index in range(FRAMES):
        view = View(None, np.zeros((*SHAPE, 3), np.uint8), None, truth(index))
        observer.add(SeenFrame(index, str(index), (view,)))
    return observer.counts.result("fishyscapes")


def test_zero_latency_gives_the_figures_of_the_frames() -> None:
    now = streaming_of(dict.fromkeys(range(FRAMES), 0))
    assert now == Streaming(FRAMES, 0, 0.0, auprc=1.0, fpr95=0.0, auroc=1.0)


@pytest.mark.parametrize(("latency_ns", "late"), [(1, 1), (TENTH_S, 1), (TENTH_S + 1, 2), (3 * TENTH_S, 3)])
def test_latency_gives_the_manual_figures(latency_ns: int, late: int) -> None:
    """Of the 16 anomalous pixels, 8 overlap those of the previous frame and 0 those before; other pixels score 0.

    At the only threshold above 0, precision and recall are p. At 0, precision is the share of anomalous pixels.
    """
    now = streaming_of(dict.fromkeys(range(FRAMES), latency_ns))
    hit, share = (0.5 if late == 1 else 0.0), 16 / (SHAPE[0] * SHAPE[1])
    assert now is not None and (now.frames, now.frames_before_first_answer) == (FRAMES - late, late)
    assert now.median_age_ms == 100.0 * late
    assert now.auprc == pytest.approx(hit * hit + (1 - hit) * share)


def test_dropped_frames_use_the_previous_answer() -> None:
    """Frames 1 and 3 get no answer. Frames 1 and 2 use the answer to 0, frames 3 and 4 the answer to 2."""
    now = streaming_of({0: 1, 2: 1, 4: 1})
    assert now is not None and (now.frames, now.frames_before_first_answer) == (4, 1)
    assert now.median_age_ms == 150.0
    hits = (8 + 0 + 8 + 0) / 64
    assert now.auprc == pytest.approx(hits * hits + (1 - hits) * 16 / (SHAPE[0] * SHAPE[1]))


def test_newest_answer_counts_if_answers_arrive_out_of_order() -> None:
    late = streaming_of({0: 0, 1: 3 * TENTH_S + 1, 2: 1, 3: 1})
    assert late is not None and late.frames == FRAMES and late.median_age_ms == 100.0
    told_ages = streaming_of({0: 0, 1: TENTH_S * 3, 2: 0, 3: 0, 4: 0})
    assert (
        told_ages is not None and told_ages.median_age_ms == 0.0
    )  # frame 1 uses the answer to 0, the others their own


def test_missing_answers_and_negative_latencies_are_accepted() -> None:
    some = streaming_of(dict.fromkeys(range(FRAMES), -5), PerfectDetector(frozenset([0, TENTH_S])))
    assert some is not None and some.frames == FRAMES and some.median_age_ms == 100.0  # ages 0, 0, 100, 200, 300
    assert streaming_of({}) is None


def record_bag(path: Path, latency_ns: int, frames: int = 6) -> Path:
    """Write a bag of the moving anomaly with recorded outputs of a perfect detector with this latency."""
    with BagWriter(path) as bag:
        for index in range(frames):
            image, stamp = np.full((*SHAPE, 3), 40 * index, np.uint8), stamp_ns(index)
            bag.write_frame(stamp, image, anomaly=truth(index))
            scores = image_message(stamp, truth(index).astype(np.float32), "32FC1")
            bag.write_serialized(stamp + latency_ns, "/detector/anomaly/score", *scores)
    return path


def evaluate_recorded(
    *bags: Path, protocols: tuple[str, ...] = ("fishyscapes",), timeline: Timeline | None = None
) -> Result:
    sources = tuple(BagSource(str(bag), topic="/camera/image") for bag in bags)
    recorded = RecordedSource("", "", timeline=timeline)
    request = BagRequest(sources, None, protocols=protocols, threshold=0.5, recorded=recorded)
    outcome = evaluate_bags(request)
    assert not outcome.errors
    return outcome.results[0]


@pytest.mark.parametrize("name", ["fishyscapes", "smiyc", "seeds"])
def test_recorded_bag_uses_the_times_of_the_bag(tmp_path: Path, name: str) -> None:
    at_once = evaluate_recorded(record_bag(tmp_path / "at_once", 0), protocols=(name,))
    late = evaluate_recorded(record_bag(tmp_path / "late", 30_000_000), protocols=(name,))
    assert at_once.streaming is not None and late.streaming is not None
    for figure in ("auprc", "fpr95", "auroc"):
        assert getattr(at_once.streaming, figure) == getattr(at_once, figure) == getattr(late, figure)
    assert late.streaming.auprc is not None and late.auprc is not None and late.streaming.auprc < late.auprc / 2
    assert (late.streaming.frames, late.streaming.frames_before_first_answer) == (5, 1)


def test_given_timeline_is_used_and_bags_are_pooled(tmp_path: Path) -> None:
    bag = record_bag(tmp_path / "bag", 0)
    shown = {stamp_ns(index): 1000 * index for index in range(6)}
    late = evaluate_recorded(bag, timeline=Timeline(shown, {stamp: time + 1001 for stamp, time in shown.items()}))
    assert late.streaming is not None and late.streaming.median_age_ms == 200.0
    both = evaluate_recorded(bag, record_bag(tmp_path / "late", 30_000_000))
    assert both.streaming is not None and both.streaming.frames == 6 + 5
    assert both.streaming.auprc is not None and 0.2 < both.streaming.auprc < 1.0
    assert both.consistency is not None and both.consistency.pairs == 10
    save_evaluation(Evaluation(1, (both,)), tmp_path / "both.json")
    assert load_evaluation(tmp_path / "both.json").results == (both,)


def test_region_protocols_have_no_streaming_figures() -> None:
    spec = replace(SPEC, protocols=("fishyscapes", "fishyscapes+road"))
    observer = StreamingObserver(spec, Timeline({}, {}), PerfectDetector(), [])
    assert set(observer.counts.curves) == {"fishyscapes"} and observer.counts.result("fishyscapes+road") is None
    assert protocol("fishyscapes+road").road_region == "road"
