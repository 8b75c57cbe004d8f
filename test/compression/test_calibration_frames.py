"""Frames for calibration and frames for measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drives import noise, write_unlabelled_bag, write_video

from anomseg_ros.compression.calibration_frames import FrameSplit, draw_split, read_split
from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.drive_inputs import VideoFrames
from anomseg_ros.errors import CompressionError, DatasetError, FrameError


def split_frames(*given: Any, **options: Any) -> FrameSplit:
    return read_split(draw_split(*given, **options))


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A folder with twenty images of different grey values."""
    for value in range(20):
        cv2.imwrite(str(tmp_path / f"{value}.png"), np.full((8, 8, 3), value * 10, np.uint8))
    return tmp_path


def test_calibration_and_held_out_frames_are_disjoint(folder: Path) -> None:
    split = split_frames([str(folder)], 12, 8)
    assert (len(split.calibration), len(split.held_out)) == (12, 8)
    values = [int(frame[0, 0, 0]) for frame in (*split.calibration, *split.held_out)]
    assert len(set(values)) == 20
    assert len(set(split.calibration_names)) == 12


def test_seed_determines_the_split(folder: Path) -> None:
    first, again, other = (split_frames([str(folder)], 10, 5, seed=seed) for seed in (1, 1, 2))
    assert first.calibration_names == again.calibration_names != other.calibration_names


def test_duplicate_file_counts_once(folder: Path) -> None:
    split = split_frames([str(folder), str(folder / "3.png")], 16, 16)
    assert len(split.calibration) + len(split.held_out) == 20


@pytest.mark.parametrize("suffix", ["", ".avi"])
def test_frames_of_bags_and_videos_are_used(tmp_path: Path, suffix: str) -> None:
    path = (write_video if suffix else write_unlabelled_bag)(tmp_path / f"drive{suffix}", 14)
    split = split_frames([str(path)], 8, 4)
    frames = dict(zip(split.calibration_names, split.calibration, strict=True))
    assert len(frames) == 8 and len(split.held_out) == 4
    for name, frame in frames.items():  # each name has its own picture, though a video is read in order
        last = name.rpartition("/")[2]
        number = int(last.removeprefix("drive_")) if suffix else round((float(last) - 100) * 10)
        assert (abs(frame.mean() - 4 * number) < 3) if suffix else np.array_equal(frame, noise(number))


def test_frames_of_a_video_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    load = VideoFrames.load

    def noted(video: VideoFrames, index: int) -> RgbImage:
        asked.append(index)
        return load(video, index)

    monkeypatch.setattr(VideoFrames, "load", noted)
    split_frames([str(write_video(tmp_path / "drive.avi", 20))], 8, 4)
    assert len(asked) == 12 and asked == sorted(asked)


@pytest.mark.slow
def test_frames_of_a_named_dataset_are_used() -> None:
    frames = split_frames(["synthetic=2"], 8, 2).calibration
    assert len(frames) == 8 and frames[0].dtype == np.uint8


def test_held_out_share_of_few_frames_is_a_quarter(folder: Path) -> None:
    split = split_frames([str(folder)], 100, 100)
    assert (len(split.calibration), len(split.held_out)) == (15, 5)


def test_too_few_frames_are_refused(folder: Path) -> None:
    files = [str(folder / f"{value}.png") for value in range(6)]
    with pytest.raises(CompressionError, match=r"6 frame\(s\).*at least 10.*allow_few"):
        split_frames(files, 16, 16)
    assert len(split_frames(files, 16, 16, allow_few=True).calibration) == 4
    with pytest.raises(CompressionError, match="at least 2"):
        split_frames(files[:1], 16, 16, allow_few=True)
    with pytest.raises(CompressionError, match="at least 1"):
        split_frames([str(folder)], 0, 4)


def test_unreadable_frames_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="nowhere"):
        split_frames([str(tmp_path / "nowhere")], 8, 2)
    with pytest.raises(DatasetError, match="camvit"):
        split_frames([f"camvit={tmp_path}"], 8, 2)
    (folder / "3.png").write_bytes(b"not a picture")
    with pytest.raises(FrameError, match=r"3\.png"):
        split_frames([str(folder)], 18, 2)


def write_camvid(root: Path, split: str) -> Path:
    """Write ten frames in CamVid's layout."""
    for index in range(10):
        for folder, pixels in ((split, np.zeros((8, 8, 3), np.uint8)), (f"{split}annot", np.zeros((8, 8), np.uint8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / folder / f"{split}{index}.png"), pixels)
    return root


def test_calibrating_on_measured_frames_is_refused(tmp_path: Path) -> None:
    root = write_camvid(write_camvid(tmp_path / "camvid", "val"), "train")
    measured = [f"camvid={root}"]  # the default split is val
    for frames in (measured, [str(root / "val")]):
        for split in (split_frames, draw_split):
            with pytest.raises(CompressionError, match=r"dataset camvid=.* holds 8 of the 8 frames to calibrate on"):
                split(frames, 8, 2, measured=measured)
    assert len(split_frames([f"camvid={root}:train"], 8, 2, measured=measured).calibration) == 8


def test_synthetic_frames_are_identified_by_drive_and_number() -> None:
    with pytest.raises(CompressionError, match="holds 8 of the 8 frames"):
        draw_split(["synthetic=5:12"], 8, 2, measured=["synthetic=5:20"])
    draw_split(["synthetic=5:12"], 8, 2, measured=["synthetic=6:20"])
    draw_split(["synthetic=5:12"], 8, 2, measured=["synthetic=5:2x12"])  # training scenes differ


def test_too_few_frames_are_detected_without_reading_them(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"not a picture")
    draw_split([str(folder)], 16, 4)
    with pytest.raises(CompressionError, match="at least 2"):
        draw_split([str(folder / "1.png")], 16, 4)
