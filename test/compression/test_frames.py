"""Frames to calibrate on and to measure on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from anomseg_ros.compression.frames import calibration_frames, draw_split, split_frames
from anomseg_ros.errors import CompressionError, DatasetError, FrameError


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """Twenty images, each of one grey value."""
    for value in range(20):
        cv2.imwrite(str(tmp_path / f"{value}.png"), np.full((8, 8, 3), value * 10, np.uint8))
    return tmp_path


def test_no_frame_is_in_both_parts(folder: Path) -> None:
    split = split_frames([str(folder)], 12, 8)
    assert (len(split.calibration), len(split.held_out)) == (12, 8)
    values = [int(frame[0, 0, 0]) for frame in (*split.calibration, *split.held_out)]
    assert len(set(values)) == 20
    assert not set(split.calibration_names) & set(split.held_out_names)


def test_the_seed_decides_which(folder: Path) -> None:
    first, again, other = (split_frames([str(folder)], 10, 5, seed=seed) for seed in (1, 1, 2))
    assert first.calibration_names == again.calibration_names != other.calibration_names


def test_a_file_given_twice_counts_once(folder: Path) -> None:
    split = split_frames([str(folder), str(folder / "3.png")], 16, 16)
    assert len(split.calibration) + len(split.held_out) == 20


def test_a_dataset_by_name() -> None:
    frames = calibration_frames(["synthetic=2"], 8)
    assert len(frames) == 8 and frames[0].dtype == np.uint8


def test_a_quarter_is_held_out_of_a_few(folder: Path) -> None:
    split = split_frames([str(folder)], 100, 100)
    assert (len(split.calibration), len(split.held_out)) == (15, 5)


def test_too_few(folder: Path) -> None:
    files = [str(folder / f"{value}.png") for value in range(6)]
    with pytest.raises(CompressionError, match=r"6 frame\(s\).*at least 10.*--allow-few"):
        split_frames(files, 16, 16)
    assert len(split_frames(files, 16, 16, allow_few=True).calibration) == 4
    with pytest.raises(CompressionError, match="at least 2"):
        split_frames(files[:1], 16, 16, allow_few=True)
    with pytest.raises(CompressionError, match="at least 1"):
        split_frames([str(folder)], 0, 4)


def test_what_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="nowhere"):
        split_frames([str(tmp_path / "nowhere")], 8, 2)
    with pytest.raises(DatasetError, match="camvit"):
        split_frames([f"camvit={tmp_path}"], 8, 2)
    (folder / "3.png").write_bytes(b"not a picture")
    with pytest.raises(FrameError, match=r"3\.png"):
        split_frames([str(folder)], 18, 2)


def camvid(root: Path, split: str) -> Path:
    """Write ten frames in CamVid's layout."""
    for index in range(10):
        for folder, pixels in ((split, np.zeros((8, 8, 3), np.uint8)), (f"{split}annot", np.zeros((8, 8), np.uint8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / folder / f"{split}{index}.png"), pixels)
    return root


def test_what_is_measured_is_not_calibrated_on(tmp_path: Path) -> None:
    root = camvid(camvid(tmp_path / "camvid", "val"), "train")
    measured = [f"camvid={root}"]  # val is its default
    for frames in (measured, [str(root / "val")]):
        for split in (split_frames, draw_split):
            with pytest.raises(CompressionError, match=r"--dataset camvid=.* holds 8 of the 8 frames to calibrate on"):
                split(frames, 8, 2, measured=measured)  # type: ignore[operator]
    assert len(split_frames([f"camvid={root}:train"], 8, 2, measured=measured).calibration) == 8


def test_drawn_frames_are_known_by_drive_and_number() -> None:
    with pytest.raises(CompressionError, match="holds 8 of the 8 frames"):
        draw_split(["synthetic=5:12"], 8, 2, measured=["synthetic=5:20"])
    draw_split(["synthetic=5:12"], 8, 2, measured=["synthetic=6:20"])
    draw_split(["synthetic=5:12"], 8, 2, measured=["synthetic=5:2x12"])  # training scenes are others


def test_too_few_are_found_without_reading_any(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"not a picture")
    draw_split([str(folder)], 16, 4)
    with pytest.raises(CompressionError, match="at least 2"):
        draw_split([str(folder / "1.png")], 16, 4)
