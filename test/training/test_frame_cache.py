from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import values, write

torch = pytest.importorskip("torch")

from tiny_runs import files_of_at_most, write_frames  # noqa: E402

from anomseg_ros.core.labels import CAMVID, CITYSCAPES  # noqa: E402
from anomseg_ros.core.progress import Progress, no_progress  # noqa: E402
from anomseg_ros.datasets import open_dataset  # noqa: E402
from anomseg_ros.errors import DatasetError, TrainingError  # noqa: E402
from anomseg_ros.outliers.cut_paste import OUTLIER  # noqa: E402
from anomseg_ros.training.frame_cache import Frames, cached_frames  # noqa: E402

SIZE = (32, 48)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "camvid")


def decode_frames(
    tree: Path,
    folder: Path | None,
    size: tuple[int, int] = SIZE,
    partial: bool = True,
    progress: Progress = no_progress,
) -> Frames:
    dataset = open_dataset("camvid", tree, "train")
    return cached_frames(dataset, CAMVID, size, folder, partial, progress)


def test_cached_frames_equal_the_dataset(tree: Path, tmp_path: Path) -> None:
    dataset = open_dataset("camvid", tree, "train")
    seen: list[tuple[int, int | None]] = []
    for folder in (None, tmp_path / "cache"):
        frames = decode_frames(tree, folder, progress=lambda _, done, total: seen.append((done, total)))
        assert frames.images.shape == (6, *SIZE, 3) and frames.labels.shape == (6, *SIZE) and len(frames) == 6
        for index in range(6):
            frame = dataset.load(index)
            assert np.array_equal(frames.images[index], frame.image)
            assert np.array_equal(frames.labels[index], frame.labels)
            assert frames.ids[index] == frame.id
        assert np.array_equal(frames.counts, np.bincount(np.asarray(frames.labels).reshape(-1), minlength=256))
        assert seen[-1] == (6, 6)
    assert not list(tmp_path.rglob("*.part"))


def test_frames_are_decoded_once_and_again_after_a_file_change(tree: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(2):
        decode_frames(tree, tmp_path / "cache", progress=lambda _, done, total: seen.append(done))
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    write(tree / "train" / "000.png", np.full((*SIZE, 3), 9, np.uint8))
    os.utime(tree / "train" / "000.png", (1, 1))
    assert (decode_frames(tree, tmp_path / "cache").images[0] == 9).all()


def test_frames_are_resized_with_nearest_labels(tree: Path) -> None:
    frames = decode_frames(tree, None, (16, 24))
    assert frames.images.shape == (6, 16, 24, 3)
    assert set(np.unique(frames.labels)) <= {0, 1, 3, 8, 255}
    whole = decode_frames(tree, None)
    assert abs(float(frames.images.mean()) - float(whole.images.mean())) < 3


def test_anomalies_become_outliers() -> None:
    dataset = open_dataset("synthetic", "3:2")
    raw = [dataset.load(index) for index in range(2)]
    size = raw[0].image.shape[:2]
    frames = cached_frames(dataset, CITYSCAPES, (size[0], size[1]), None, False, lambda *_: None)
    for frame, labels in zip(raw, frames.labels, strict=True):
        assert frame.anomaly is not None
        assert np.array_equal(labels == OUTLIER, frame.anomaly == 1)


def test_missing_folder_and_frames_are_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        decode_frames(tmp_path / "nowhere", None)
    with pytest.raises(DatasetError, match="has 6 frames, 367 are published: is the download complete"):
        decode_frames(tree, None, partial=False)
    (tree / "trainannot" / "002.png").unlink()
    with pytest.raises(DatasetError, match=r"5 frames, 1 problems: image without labels: .*002\.png"):
        decode_frames(tree, None)


@pytest.mark.parametrize("cached", [False, True])
def test_error_lists_all_damaged_files_and_unknown_labels(tree: Path, tmp_path: Path, cached: bool) -> None:
    cut = tree / "train" / "001.png"
    cut.write_bytes(cut.read_bytes()[:200])
    write(tree / "trainannot" / "003.png", np.resize(values(0, 77), SIZE))
    with pytest.raises(DatasetError, match=r"2 problems: unreadable: .*001\.png.*unknown label values.*003\.png.*77"):
        decode_frames(tree, tmp_path / "cache" if cached else None)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_labels_outside_the_classes_are_refused(tree: Path) -> None:
    dataset = open_dataset("camvid", tree, "train")
    with pytest.raises(DatasetError, match=r"contain \[3, 8\]; expected train ids 0 to 2"):
        cached_frames(dataset, CAMVID[:3], SIZE, None, True, lambda *_: None)


def test_missing_disk_space_is_refused_before_decoding(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Full())
    with pytest.raises(TrainingError, match=r"0 MB are free; free space, or set data.cache=memory"):
        decode_frames(tree, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_full_disk_leaves_no_partial_files(tree: Path, tmp_path: Path) -> None:
    with files_of_at_most(20_000), pytest.raises(TrainingError, match=r"cannot keep decoded frames.*data.cache=memory"):
        decode_frames(tree, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_partial_files_of_a_killed_process_are_removed(tree: Path, tmp_path: Path) -> None:
    decode_frames(tree, tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    (place / "index.json").unlink()  # killed before the index was written
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    gone, living = (place / f"images.{host}.{process}.part" for process in (ended.pid, os.getppid()))
    for path in (gone, living):
        path.write_bytes(b"half")
    assert len(decode_frames(tree, tmp_path / "cache")) == 6
    assert not gone.exists() and living.exists()


@pytest.mark.parametrize("name", ["images.npy", "index.json"])
def test_damaged_cache_error_names_its_folder(tree: Path, tmp_path: Path, name: str) -> None:
    decode_frames(tree, tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    (place / name).write_bytes((place / name).read_bytes()[:40])
    with pytest.raises(DatasetError, match=r"are damaged .*; delete that folder"):
        decode_frames(tree, tmp_path / "cache")
    shutil.rmtree(place)
    assert len(decode_frames(tree, tmp_path / "cache")) == 6
    assert len(json.loads((place / "index.json").read_text())["ids"]) == 6


def test_real_frames_are_cached(shared_data: Path) -> None:
    dataset = open_dataset("camvid", shared_data / "CamVid", "val")

    class First:
        """The first three frames of the dataset."""

        def __getattr__(self, name: str) -> object:
            return getattr(dataset, name)

        def __len__(self) -> int:
            return 3

    frames = cached_frames(First(), CAMVID, (180, 240), None, True, lambda *_: None)  # type: ignore[arg-type]
    assert frames.labels.shape == (3, 180, 240)
    road = frames.images[np.asarray(frames.labels) == 3].mean()
    sky = frames.images[np.asarray(frames.labels) == 0].mean()
    assert sky > road + 40
