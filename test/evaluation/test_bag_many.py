"""Several bags are pooled like one dataset, also with processes and Ray. A failure is reported and affects one bag."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")

from bag_scenes import frames, image_message, stamp_ns, write_bag, write_flat

from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.bags.write import BagWriter
from anomseg_ros.commands.bag_evaluate import main
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.errors import BackendError, ConfigError, MetricError
from anomseg_ros.evaluation.bag_evaluate import BagOutcome, evaluate_bags
from anomseg_ros.evaluation.bag_plan import BagRequest, BagSource
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.recorded import RecordedSource
from anomseg_ros.evaluation.results import Result, load_evaluation
from anomseg_ros.evaluation.workers import LOCAL_RAY, Workers
from anomseg_ros.scenes.sequence import SyntheticFrame

ONE_THREAD = BackendOptions(threads=1)
DEADLY = '''
import os, signal
from dataclasses import dataclass
from pathlib import Path
from anomseg_ros.datasets.bag import BagDataset
from anomseg_ros.evaluation.bag_plan import BagSource

class DeadlyDataset(BagDataset):
    def load(self, index):
        if index == 2 and os.getpid() != self.planner and (self.always or not Path(self.marker).exists()):
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(index)

@dataclass(frozen=True)
class DeadlySource(BagSource):
    """A bag whose third frame kills the worker that reads it: once, or always."""
    marker: str = ""
    planner: int = 0
    always: bool = False

    def open(self):
        dataset = DeadlyDataset(self.path)
        dataset.marker, dataset.planner, dataset.always = self.marker, self.planner, self.always
        return dataset
'''


def drives() -> list[tuple[SyntheticFrame, ...]]:
    """Return the frames of three drives."""
    return [frames(seed, count) for seed, count in ((7, 4), (8, 2), (9, 3))]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> tuple[BagSource, ...]:
    folder = tmp_path_factory.mktemp("many")
    return tuple(BagSource(str(write_bag(folder / f"drive{n}", drawn))) for n, drawn in enumerate(drives()))


@pytest.fixture
def deadly_bag_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "deadly_bag.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)  # spawned workers inherit sys.path, Ray's workers the environment
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "deadly_bag", raising=False)
    return __import__("deadly_bag")


def request_of(bags: tuple[BagSource, ...], bundle: Bundle | None, **changed: Any) -> BagRequest:
    made = {"scores": ("void",), "protocols": ("seeds", "smiyc"), "threshold": 0.05, "options": ONE_THREAD, **changed}
    return BagRequest(bags, bundle, **made)


def results_without_times(outcome: BagOutcome) -> list[Result]:
    """Return the results without times."""
    assert not outcome.errors
    bare = {"inference_ms": None, "network_ms": None, "wall_ms": None}
    return [
        replace(
            result,
            per_frame=tuple(replace(f, inference_ms=None, network_ms=None) for f in result.per_frame),
            **bare,
        )
        for result in outcome.results
    ]


@pytest.mark.slow
def test_bags_are_pooled_like_one_dataset(tmp_path: Path, bags: tuple[BagSource, ...], bundle: Bundle) -> None:
    outcome = evaluate_bags(request_of(bags, bundle))
    source = f"synthetic={write_flat(tmp_path / 'flat', [frame for drawn in drives() for frame in drawn])}"
    whole = evaluate(Request((bundle.directory,), (source,), ("void",), ("seeds", "smiyc"), options=ONE_THREAD))
    assert len(outcome.results) == len(whole.results) == 2
    for pooled, dataset in zip(results_without_times(outcome), whole.results, strict=True):
        assert (pooled.auprc, pooled.fpr95, pooled.auroc) == (dataset.auprc, dataset.fpr95, dataset.auroc)
        assert pooled.auprc is not None and pooled.components == dataset.components and pooled.frames == 9
        assert [f.auprc for f in pooled.per_frame] == [f.auprc for f in dataset.per_frame]
        assert [f.frame_id.split("/")[0] for f in pooled.per_frame] == ["drive0"] * 4 + ["drive1"] * 2 + ["drive2"] * 3
    assert outcome.results[1].components is not None and outcome.results[0].dataset == "drive0+drive1+drive2"


@pytest.mark.slow
def test_drives_of_bags_are_pooled(tmp_path: Path) -> None:
    paths = [recorded_bag(tmp_path / f"drive{n}", drawn, None, shade=0.8) for n, drawn in enumerate(drives())]
    bags = tuple(BagSource(str(path), topic="/camera/image") for path in paths)
    asked = {"protocols": ("seeds",), "threshold": 0.6, "recorded": RecordedSource("", "")}
    outcome = evaluate_bags(request_of(bags, None, **asked))
    alone = [evaluate_bags(request_of((bag,), None, **asked)).results[0].drive for bag in bags]
    pooled = outcome.results[0].drive
    assert pooled is not None and [part.drive for part in outcome.bags] == alone
    assert pooled.duration_s == pytest.approx(0.9) and pooled.frames == 9
    assert pooled.alarms == sum(drive.alarms for drive in alone) == 3  # one lasting alarm in each bag
    assert pooled.alarm_onsets_s == pytest.approx((0.0, 0.4, 0.6))
    assert pooled.alarms_per_minute == pytest.approx(3 * 60 / 0.9)
    assert len(pooled.objects) == sum(len(drive.objects) for drive in alone)
    assert pooled.objects[-1].first_s == pytest.approx(0.6 + alone[2].objects[-1].first_s)
    assert pooled.objects_detected == sum(drive.objects_detected for drive in alone) > 0
    assert sum(size.frames for size in pooled.sizes) == sum(size.frames for drive in alone for size in drive.sizes)
    assert sum(size.detected for size in pooled.sizes) == sum(seen.frames_detected for seen in pooled.objects) > 0


@pytest.mark.slow
def test_killed_worker_loses_and_duplicates_nothing(
    tmp_path: Path, bags: tuple[BagSource, ...], bundle: Bundle, deadly_bag_module: ModuleType
) -> None:
    here = results_without_times(evaluate_bags(request_of(bags, bundle)))
    dying = deadly_bag_module.DeadlySource(bags[0].path, marker=str(tmp_path / "died"), planner=os.getpid())
    asked = request_of((dying, *bags[1:]), bundle, workers=Workers(2))
    assert results_without_times(evaluate_bags(asked)) == here
    assert (tmp_path / "died").exists()


@pytest.mark.slow
def test_bag_that_always_kills_its_worker_does_not_stop_others(
    tmp_path: Path, bags: tuple[BagSource, ...], bundle: Bundle, deadly_bag_module: ModuleType
) -> None:
    dying = deadly_bag_module.DeadlySource(
        bags[0].path, marker=str(tmp_path / "died"), planner=os.getpid(), always=True
    )
    with pytest.raises(BackendError, match="died 3 times"):
        evaluate_bags(request_of((dying,), bundle, workers=Workers(2)))
    asked = request_of((dying, *bags[1:]), bundle, workers=Workers(2), protocols=("seeds",))
    outcome = evaluate_bags(asked)
    (error,) = outcome.errors
    assert error.startswith("bag drive0: not measured: workers died")
    assert [part.frames for part in outcome.bags] == [0, 2, 3] and outcome.results[0].frames == 5
    expected = evaluate_bags(request_of(bags[1:], bundle, protocols=("seeds",))).results[0]
    assert (outcome.results[0].auprc, outcome.results[0].drive) == (expected.auprc, expected.drive)


@pytest.mark.slow
def test_ray_gives_the_same_results_despite_a_killed_worker(
    tmp_path: Path, bags: tuple[BagSource, ...], bundle: Bundle, deadly_bag_module: ModuleType
) -> None:
    ray = pytest.importorskip("ray")
    here = results_without_times(evaluate_bags(request_of(bags, bundle)))
    dying = deadly_bag_module.DeadlySource(bags[0].path, marker=str(tmp_path / "died"), planner=os.getpid())
    try:
        asked = request_of((dying, *bags[1:]), bundle, workers=Workers(2, LOCAL_RAY))
        assert results_without_times(evaluate_bags(asked)) == here
        assert (tmp_path / "died").exists()
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_failing_bag_is_reported_and_others_are_measured(
    tmp_path: Path, bags: tuple[BagSource, ...], tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = write_bag(tmp_path / "cut", drives()[0])
    (file,) = cut.glob("*.mcap")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    bare = tmp_path / "bare"
    with BagWriter(bare) as bag:
        bag.write_frame(stamp_ns(0), drives()[0][0].image)
    good = [bags[0].path, bags[2].path]
    words = ["--score", "void", "--threshold", "0.05", "--threads", "1", "--json", str(tmp_path / "out.json")]
    words += ["--html", str(tmp_path / "out.html")]
    assert main([good[0], str(cut), str(bare), good[1], str(tiny_bundle), *words]) == 1
    told = capsys.readouterr()
    assert "error: bag cut: " in told.err and "error: bag bare: " in told.err and "no ground truth" in told.err
    assert "drive0+drive2" in told.out and "per bag" in told.out
    written = load_evaluation(tmp_path / "out.json")
    (result,) = written.results
    (alone,) = evaluate_bags(request_of((bags[0], bags[2]), load_bundle(tiny_bundle), protocols=("seeds",))).results
    assert (result.frames, result.auprc, result.drive) == (7, alone.auprc, alone.drive)
    kept = {bag["name"]: bag for bag in written.settings["bags"]}
    assert [bag["frames"] for bag in kept.values()] == [4, 0, 0, 3]
    assert sum(len(kept[name]["drive"]["objects"]) for name in ("drive0", "drive2")) == len(result.drive.objects)
    assert (tmp_path / "out.html").read_text().count("data:image/jpeg;base64") >= 7


def recorded_bag(path: Path, drawn: Sequence[Any], bad: int | None, shade: float = 0.5) -> Path:
    """Write a bag with recorded scores. The scores of frame `bad` hold a NaN at a known pixel."""
    with BagWriter(path) as bag:
        for index, frame in enumerate(drawn):
            bag.write_frame(stamp_ns(index), frame.image, anomaly=frame.anomaly)
            scores = np.where(frame.anomaly == 1, shade, 0.25).astype(np.float32)
            scores[0, :50] = 0.7  # some known pixels score higher than any anomaly
            if index == bad:
                scores[0, 0] = np.nan
            bag.write_serialized(
                stamp_ns(index), "/detector/anomaly/score", *image_message(stamp_ns(index), scores, "32FC1")
            )
    return path


@pytest.mark.slow
def test_frames_before_nan_scores_are_counted(tmp_path: Path) -> None:
    drawn = frames(count=6)
    asked = {"scores": (), "protocols": ("fishyscapes", "smiyc", "seeds"), "recorded": RecordedSource("", "")}
    topic = "/camera/image"
    bad = BagSource(str(recorded_bag(tmp_path / "bad", drawn, bad=2)), topic)
    before = BagSource(str(recorded_bag(tmp_path / "before", drawn[:2], bad=None)), topic)
    other = BagSource(str(recorded_bag(tmp_path / "other", drawn[3:], bad=None)), topic)
    for _ in range(3):  # frames after the bad one are read ahead, but must not be counted
        outcome = evaluate_bags(request_of((bad,), None, **asked))
        assert outcome.errors[0].startswith("2 of 6 frames were measured, then: frame '100.200000000'")
        assert "1 NaN" in outcome.errors[0] and "not finite" in outcome.errors[0]
        expected = evaluate_bags(request_of((before,), None, **asked))
        for told, clean in zip(outcome.results, expected.results, strict=True):
            assert (told.auprc, told.fpr95, told.drive) == (clean.auprc, clean.fpr95, clean.drive)
            assert told.frames == 2 and told.known_px == clean.known_px and 0 < told.auprc < 1
    several = evaluate_bags(request_of((bad, other), None, **asked))
    assert several.errors[0].startswith("bag bad: 2 of 6 frames") and several.results[0].frames == 5
    with pytest.raises(MetricError, match=r"nothing could be measured.*not finite"):
        evaluate_bags(request_of((BagSource(str(recorded_bag(tmp_path / "w", drawn, bad=0)), topic),), None, **asked))


@pytest.mark.slow
def test_recorded_bags_can_be_evaluated_with_or_without_a_bundle(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(recorded_bag(tmp_path / name, frames(seed, 2), None)) for name, seed in (("one", 1), ("two", 2))]
    words = ["--recorded", "--image-topic", "/camera/image", "--threshold", "0.3", "--json", str(tmp_path / "out.json")]
    assert main([*paths, *words]) == 0
    (alone,) = load_evaluation(tmp_path / "out.json").results
    assert (alone.bundle, alone.dataset, alone.frames) == ("recorded", "one+two", 4)
    assert main([str(tiny_bundle), *paths, *words]) == 0
    (named,) = load_evaluation(tmp_path / "out.json").results
    assert (named.bundle, named.auprc, named.drive) == ("tiny", alone.auprc, alone.drive)


def test_duplicate_bags_and_live_with_several_bags_are_refused(bags: tuple[BagSource, ...], tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="--live plays one bag, 2 are given"):
        main([bags[0].path, bags[1].path, str(tiny_bundle), "--live"])
    with pytest.raises(ConfigError, match="is given twice"):
        main([bags[0].path, bags[0].path, str(tiny_bundle)])
