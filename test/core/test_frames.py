from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.frames import FrameSource
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import AnomsegError, DatasetError, FrameError


def write(path: Path, value: int) -> Path:
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[..., 0] = value  # blue, as OpenCV writes BGR
    assert cv2.imwrite(str(path), pixels)
    return path


def test_source_reads_files_folders_and_videos(tmp_path: Path) -> None:
    first = write(tmp_path / "one.png", 10)
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "one.png", 20)
    video = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 16))
    for value in (0, 100, 200):
        writer.write(np.full((16, 32, 3), value, np.uint8))
    writer.release()
    source = FrameSource([first, tmp_path / "folder", video])
    assert source.count == 5
    frames = dict(source)
    assert list(frames) == ["one", "one-2", "drive_000000", "drive_000001", "drive_000002"]
    assert frames["one-2"][0, 0].tolist() == [0, 0, 20]
    assert frames["drive_000001"].mean() == pytest.approx(100, abs=4)


def test_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="does not exist"):
        FrameSource([tmp_path / "absent.mp4"])


def test_damaged_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 100)
    with pytest.raises(FrameError, match=r"bad\.mp4' cannot be opened as a video"):
        list(FrameSource([tmp_path / "bad.mp4"]))


def test_frame_names_are_unique(tmp_path: Path) -> None:
    files = [tmp_path / name / "one.png" for name in "abc"] + [tmp_path / "one-2.png"]
    for number, path in enumerate(files):
        path.parent.mkdir(exist_ok=True)
        write(path, number)
    names = [name for name, _ in FrameSource([files[0], files[3], files[1], files[2]])]
    assert names == ["one", "one-2", "one-3", "one-4"]


def test_dangling_link_is_reported_as_a_failure(tmp_path: Path) -> None:
    write(tmp_path / "b.png", 1)
    (tmp_path / "a.png").symlink_to("nowhere")
    failures: list[AnomsegError] = []
    for source in ([tmp_path], [tmp_path / "a.png", tmp_path / "b.png"]):
        assert [name for name, _ in FrameSource(source, failures.append)] == ["b"]
    assert len(failures) == 2 and all("symbolic link to 'nowhere'" in str(failure) for failure in failures)


class Recorded:
    """Three named frames, of which the second cannot be read."""

    frame_names = ("one", "two", "three")
    differences = (Delivered("bag", "messages", 4, 3, 0, remedy="copy it again"),)

    def load(self, index: int) -> RgbImage:
        if index == 1:
            raise DatasetError("two is damaged")
        return np.full((2, 2, 3), index, np.uint8)


def test_named_frames_follow_files(tmp_path: Path) -> None:
    failures: list[AnomsegError] = []
    source = FrameSource([write(tmp_path / "one.png", 1), Recorded()], failures.append)
    assert source.count == 4
    assert [(name, int(frame.max())) for name, frame in source] == [("one", 1), ("one-2", 0), ("three", 2)]
    assert [str(error) for error in failures] == ["two is damaged"] and source.differences == [*Recorded.differences]
    with pytest.raises(DatasetError, match="two is damaged"):
        list(FrameSource([Recorded()]))
