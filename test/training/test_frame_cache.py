from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import values, write

torch = pytest.importorskip("torch")

from tiny_runs import files_of_at_most, write_frames  # noqa: E402

from anomseg_ros.core.labels import CAMVID, CITYSCAPES  # noqa: E402
from anomseg_ros.datasets import open_dataset  # noqa: E402
from anomseg_ros.datasets.cut_paste import OUTLIER  # noqa: E402
from anomseg_ros.errors import DatasetError, TrainingError  # noqa: E402
from anomseg_ros.training.frame_cache import Frames, cached_frames  # noqa: E402

SIZE = (32, 48)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "camvid")


def decode(
    tree: Path,
    folder: Path | None,
    size: tuple[int, int] = SIZE,
    partial: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Frames:
    dataset = open_dataset("camvid", tree, "train")
    return cached_frames(dataset, CAMVID, size, folder, partial, progress or (lambda *_: None))


def test_frames_from_disk_and_memory_are_the_dataset_s(tree: Path, tmp_path: Path) -> None:
    dataset = open_dataset("camvid", tree, "train")
    seen: list[tuple[int, int]] = []
    for folder in (None, tmp_path / "cache"):
        frames = decode(tree, folder, progress=lambda done, total: seen.append((done, total)))
        assert frames.images.shape == (6, *SIZE, 3) and frames.labels.shape == (6, *SIZE) and len(frames) == 6
        for index in range(6):
            frame = dataset.load(index)
            assert np.array_equal(frames.images[index], frame.image)
            assert np.array_equal(frames.labels[index], frame.labels)
            assert frames.ids[index] == frame.id
        assert np.array_equal(frames.counts, np.bincount(np.asarray(frames.labels).reshape(-1), minlength=256))
        assert seen[-1] == (6, 6)
    assert not list(tmp_path.rglob("*.part"))


def test_frames_are_decoded_once_and_anew_when_a_file_changes(tree: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(2):
        decode(tree, tmp_path / "cache", progress=lambda done, _: seen.append(done))
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    write(tree / "train" / "000.png", np.full((*SIZE, 3), 9, np.uint8))
    os.utime(tree / "train" / "000.png", (1, 1))
    assert (decode(tree, tmp_path / "cache").images[0] == 9).all()


def test_frames_are_resized_labels_to_the_nearest(tree: Path) -> None:
    frames = decode(tree, None, (16, 24))
    assert frames.images.shape == (6, 16, 24, 3)
    assert set(np.unique(frames.labels)) <= {0, 1, 3, 8, 255}
    whole = decode(tree, None)
    assert abs(float(frames.images.mean()) - float(whole.images.mean())) < 3


def test_anomalies_become_outliers() -> None:
    dataset = open_dataset("synthetic", "3:2")
    raw = [dataset.load(index) for index in range(2)]
    size = raw[0].image.shape[:2]
    frames = cached_frames(dataset, CITYSCAPES, (size[0], size[1]), None, False, lambda *_: None)
    for frame, labels in zip(raw, frames.labels, strict=True):
        assert frame.anomaly is not None
        assert np.array_equal(labels == OUTLIER, frame.anomaly == 1)


def test_a_missing_folder_and_missing_frames(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        decode(tmp_path / "nowhere", None)
    with pytest.raises(DatasetError, match="has 6 frames, 367 are published: is the download complete"):
        decode(tree, None, partial=False)
    (tree / "trainannot" / "002.png").unlink()
    with pytest.raises(DatasetError, match=r"5 frames, 1 problems: image without labels: .*002\.png"):
        decode(tree, None)


@pytest.mark.parametrize("cached", [False, True])
def test_damaged_files_and_foreign_labels_are_all_named(tree: Path, tmp_path: Path, cached: bool) -> None:
    cut = tree / "train" / "001.png"
    cut.write_bytes(cut.read_bytes()[:200])
    write(tree / "trainannot" / "003.png", np.resize(values(0, 77), SIZE))
    with pytest.raises(DatasetError, match=r"2 problems: unreadable: .*001\.png.*unknown label values.*003\.png.*77"):
        decode(tree, tmp_path / "cache" if cached else None)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_labels_out_of_the_classes_range(tree: Path) -> None:
    dataset = open_dataset("camvid", tree, "train")
    with pytest.raises(DatasetError, match=r"contain \[3, 8\]; expected train ids 0 to 2"):
        cached_frames(dataset, CAMVID[:3], SIZE, None, True, lambda *_: None)


def test_a_full_disk_is_told_before_anything_is_decoded(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Full())
    with pytest.raises(TrainingError, match=r"0 MB are free; free space, or set data.cache=memory"):
        decode(tree, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_disk_that_fills_up_leaves_no_half_file(tree: Path, tmp_path: Path) -> None:
    with files_of_at_most(20_000), pytest.raises(TrainingError, match=r"cannot keep decoded frames.*data.cache=memory"):
        decode(tree, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_what_a_killed_process_left_is_removed(tree: Path, tmp_path: Path) -> None:
    decode(tree, tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    (place / "index.json").unlink()  # the kill came before it
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    gone, living = (place / f"images.{host}.{process}.part" for process in (ended.pid, os.getppid()))
    for path in (gone, living):
        path.write_bytes(b"half")
    assert len(decode(tree, tmp_path / "cache")) == 6
    assert not gone.exists() and living.exists()


@pytest.mark.parametrize("name", ["images.npy", "index.json"])
def test_a_damaged_cache_is_named(tree: Path, tmp_path: Path, name: str) -> None:
    decode(tree, tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    (place / name).write_bytes((place / name).read_bytes()[:40])
    with pytest.raises(DatasetError, match=r"are damaged .*; delete that folder"):
        decode(tree, tmp_path / "cache")
    shutil.rmtree(place)
    assert len(decode(tree, tmp_path / "cache")) == 6
    assert len(json.loads((place / "index.json").read_text())["ids"]) == 6


def test_real_frames(shared_data: Path) -> None:
    dataset = open_dataset("camvid", shared_data / "CamVid", "val")

    class First:
        """The first three frames only."""

        def __getattr__(self, name: str) -> object:
            return getattr(dataset, name)

        def __len__(self) -> int:
            return 3

    frames = cached_frames(First(), CAMVID, (180, 240), None, True, lambda *_: None)  # type: ignore[arg-type]
    assert frames.labels.shape == (3, 180, 240)
    road = frames.images[np.asarray(frames.labels) == 3].mean()
    sky = frames.images[np.asarray(frames.labels) == 0].mean()
    assert sky > road + 40
