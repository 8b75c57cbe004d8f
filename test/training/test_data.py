from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny_runs import tiny_config, write_frames  # noqa: E402

from anomseg_ros.core.labels import CAMVID  # noqa: E402
from anomseg_ros.datasets import open_dataset  # noqa: E402
from anomseg_ros.errors import AnomsegError, ConfigError  # noqa: E402
from anomseg_ros.outliers.cut_paste import OUTLIER  # noqa: E402
from anomseg_ros.training.config import TrainConfig  # noqa: E402
from anomseg_ros.training.data import (  # noqa: E402
    PADDED,
    Batch,
    Plan,
    TrainingSamples,
    class_shares,
    target_table,
    training_batches,
)
from anomseg_ros.training.frame_cache import Frames, cached_frames  # noqa: E402

PASTING = {"probability": 0.7, "paste": {"min_area_px": 20, "feather_radius_px": 1.0}}


def plan(**changes: Any) -> Plan:
    settings: dict[str, Any] = {"frames": 7, "seed": 3, "batch_size": 2, "accumulate": 1, "processes": 1, "epochs": 3}
    return Plan(**{**settings, **changes})


def row(some: Plan, first: int = 0) -> list[tuple[int, int]]:
    """Return the samples of all processes in the order of the plan."""
    return sorted(key for process in range(some.processes) for batch in some.batches(first, process) for key in batch)


def test_every_epoch_has_every_frame_once_in_another_order() -> None:
    taken = [frame for _, frame in row(plan())][: 3 * 7]
    epochs = [taken[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [frame for _, frame in row(plan(seed=4))][:7] != epochs[0]


def test_plan_counts_steps_epochs_and_positions() -> None:
    some = plan(accumulate=2, processes=2)  # 8 samples a step, 21 in all
    assert (some.step_samples, some.steps) == (8, 3)
    assert [some.epoch_of(step) for step in range(4)] == [0, 1, 2, 3]
    assert [position for position, _ in row(some)] == list(range(24))
    assert len(list(some.batches(0, 0))) == 3 * 2


@pytest.mark.parametrize(("accumulate", "processes"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_resumed_plan_continues_with_the_next_samples(accumulate: int, processes: int) -> None:
    some = plan(accumulate=accumulate, processes=processes, epochs=5)
    assert row(some, 2) == row(some)[2 * some.step_samples :]


def test_accumulation_and_processes_split_one_large_batch() -> None:
    whole = [sorted(batch) for batch in plan(batch_size=4).batches(0, 0)]
    halves = list(plan(accumulate=2).batches(0, 0))
    assert [sorted(a + b) for a, b in zip(halves[::2], halves[1::2], strict=True)] == whole
    parts = zip(plan(processes=2).batches(0, 0), plan(processes=2).batches(0, 1), strict=True)
    assert [sorted(a + b) for a, b in parts] == whole


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    tree = write_frames(tmp_path_factory.mktemp("data"), size=(48, 64))
    dataset = open_dataset("camvid", tree, "train")
    return cached_frames(dataset, CAMVID, (48, 64), None, True, lambda *_: None)


def config(folder: Path, /, **changes: Any) -> TrainConfig:
    changes["data"] = {"height_px": 48, "width_px": 64, **changes.get("data", {})}
    return tiny_config(folder, "x", **changes)


def batches(frames: Frames, config: TrainConfig, first: int = 0, void_class: int | None = None) -> list[Batch]:
    run = config.run
    some = Plan(len(frames), run.seed, run.batch_size, run.accumulate, 1, run.epochs)
    return list(training_batches(frames, config, some, void_class, first, 0))


def same_batches(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a.images, b.images) and torch.equal(a.target, b.target) and a.names == b.names
        for a, b in zip(ours, theirs, strict=True)
    )


def test_batches_are_uint8_frames_and_int64_targets(frames: Frames, tmp_path: Path) -> None:
    first = batches(frames, config(tmp_path))[0]
    assert first.images.shape == (2, 32, 32, 3) and first.images.dtype == torch.uint8
    assert first.target.shape == (2, 32, 32) and first.target.dtype == torch.int64
    assert set(first.names) <= set(frames.ids)


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_workers_does_not_change_samples(frames: Frames, tmp_path: Path, workers: int) -> None:
    pasting = {"cut_paste": PASTING, "workers": 0}
    alone = batches(frames, config(tmp_path, data=pasting))
    assert same_batches(batches(frames, config(tmp_path, data={**pasting, "workers": workers})), alone)
    resumed = batches(frames, config(tmp_path, data={**pasting, "workers": workers}), first=5)
    assert same_batches(resumed, alone[5:])


def test_frame_gives_another_sample_in_each_epoch(frames: Frames, tmp_path: Path) -> None:
    samples = TrainingSamples(frames, config(tmp_path), None)
    first, again, later = samples[0, 2], samples[0, 2], samples[6, 2]
    assert not isinstance(first, AnomsegError) and not isinstance(again, AnomsegError)
    assert not isinstance(later, AnomsegError)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], later[0])


def test_objects_and_distractors_are_pasted_repeatably(frames: Frames, tmp_path: Path) -> None:
    paste = {"min_area_px": 8, "feather_radius_px": 0.5, "placement": "road", "distractor_share": 1.0, "shadow": 1.0}
    pasting = {"probability": 1.0, "paste": paste, "objects": [{"source": "procedural"}, {"source": "procedural"}]}
    samples = TrainingSamples(frames, config(tmp_path, data={"cut_paste": pasting}), None)
    plain = TrainingSamples(frames, config(tmp_path, data={"cut_paste": {**pasting, "probability": 0.0}}), None)
    for position in range(20):
        key = (position, position % 6)
        image, target, _, _ = samples[key]  # type: ignore[misc]
        again = samples[key]
        assert torch.equal(image, again[0]) and torch.equal(target, again[1])  # type: ignore[index]
        assert bool((target == OUTLIER).any()) and not bool((plain[key][1] == OUTLIER).any())  # type: ignore[index]


def test_outliers_are_pasted_into_their_share_of_frames(frames: Frames, tmp_path: Path) -> None:
    samples = TrainingSamples(frames, config(tmp_path, data={"cut_paste": PASTING}), None)
    pasted = [bool((samples[position, position % 6][1] == OUTLIER).any()) for position in range(100)]  # type: ignore[index]
    assert 0.55 < np.mean(pasted) < 0.85
    plain = TrainingSamples(frames, config(tmp_path), None)
    clean = plain[3, 3]
    with_objects = TrainingSamples(frames, config(tmp_path, data={"cut_paste": {**PASTING, "probability": 1.0}}), None)
    objects = with_objects[3, 3]
    assert not isinstance(clean, AnomsegError) and not isinstance(objects, AnomsegError)
    outliers = objects[1] == OUTLIER
    assert outliers.sum() >= 20
    assert torch.equal(clean[1][~outliers], objects[1][~outliers])


def test_frames_with_outliers_of_their_own_are_not_pasted_into(frames: Frames, tmp_path: Path) -> None:
    labels = np.array(frames.labels)
    labels[:, ::4] = OUTLIER
    own = replace(frames, labels=labels)
    pasting, none = ({"cut_paste": {**PASTING, "probability": share}} for share in (1.0, 0.0))
    pasted, plain = (TrainingSamples(own, config(tmp_path, data=data), None)[3, 3] for data in (pasting, none))
    assert not isinstance(pasted, AnomsegError) and not isinstance(plain, AnomsegError)
    assert torch.equal(pasted[1], plain[1]) and bool((pasted[1] == OUTLIER).any())


@pytest.mark.parametrize("workers", [0, 1])
def test_worker_error_is_one_line(frames: Frames, tmp_path: Path, workers: int) -> None:
    pasting = {"probability": 1.0, "paste": {"min_area_px": 5000}}
    with pytest.raises(ConfigError, match="has no room for 1 object") as caught:
        batches(frames, config(tmp_path, data={"cut_paste": pasting, "workers": workers}))
    assert "\n" not in str(caught.value)


def test_target_table_of_each_void_setting() -> None:
    values = [0, 10, PADDED, OUTLIER, 255]
    assert target_table("none", None)[values].tolist() == [0, 10, 255, OUTLIER, 255]
    assert target_table("outliers", 11)[values].tolist() == [0, 10, 255, 11, 255]
    assert target_table("unlabelled", 11)[values].tolist() == [0, 10, 255, OUTLIER, 11]
    assert target_table("both", 11)[values].tolist() == [0, 10, 255, 11, 11]


def test_padding_is_never_the_void_class(frames: Frames, tmp_path: Path) -> None:
    shrunken = config(tmp_path, data={"void": "unlabelled"}, augment={"scale": [0.25, 0.25], "gain": [1, 1]})
    for batch in batches(frames, shrunken, void_class=11):
        grey = (batch.images == torch.tensor([124, 116, 104], dtype=torch.uint8)).all(-1)
        assert grey.float().mean() > 0.5
        assert (batch.target[grey] == 255).float().mean() > 0.99
        assert (batch.target == 11).any()  # the frames' own unlabelled pixels


def test_class_shares_follow_the_void_setting(frames: Frames, tmp_path: Path) -> None:
    counts = frames.counts
    none = class_shares(frames, config(tmp_path), None)
    assert none.shape == (11,) and none.sum() == pytest.approx(1)
    assert none[3] == pytest.approx(counts[3] / counts[:11].sum())
    unlabelled = class_shares(frames, config(tmp_path, data={"void": "unlabelled"}), 11)
    assert unlabelled[11] == pytest.approx(counts[255] / (counts[:11].sum() + counts[255]))
    pasted = class_shares(frames, config(tmp_path, data={"void": "outliers", "cut_paste": PASTING}), 11)
    assert 0.01 < pasted[11] < 0.1
    both = class_shares(frames, config(tmp_path, data={"void": "both", "cut_paste": PASTING}), 11)
    assert both[11] > max(pasted[11], unlabelled[11])
