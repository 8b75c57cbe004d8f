from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from anomseg_ros.core.frames import FrameSource
from anomseg_ros.core.resources import share_file
from anomseg_ros.core.video import Video, is_video
from anomseg_ros.errors import FrameError

SHIPPED = share_file("demo/drive.mp4")


@pytest.fixture()
def cut_short(tmp_path: Path) -> Path:
    """The shipped video without its second half; what it states stands at its beginning."""
    data = SHIPPED.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    return tmp_path / "cut.mp4"


def test_the_shipped_video_has_what_it_states() -> None:
    video = Video(SHIPPED)
    assert (video.frame_count, video.rate_hz) == (111, 12.5)
    frames = list(video)
    assert len(frames) == 111 and {frame.shape for frame in frames} == {(540, 960, 3)}
    red, _, blue = frames[0][:100, :300].reshape(-1, 3).mean(axis=0)
    assert blue > red + 30  # the sky


def test_a_video_that_is_cut_short(cut_short: Path) -> None:
    delivered = 0
    with pytest.raises(FrameError, match=r"cut\.mp4' states 111 frames, (\d+) could be read; it is cut") as raised:
        for _ in Video(cut_short):
            delivered += 1
    assert 0 < delivered < 111 and f"frames, {delivered} could" in str(raised.value)


def test_frames_before_the_cut_are_used_and_the_cut_is_told(cut_short: Path) -> None:
    failures: list[FrameError] = []
    assert 0 < len(list(FrameSource([cut_short], failures.append))) < 111
    assert len(failures) == 1 and "states 111 frames" in str(failures[0])


def test_a_container_that_states_only_its_duration_may_round(tmp_path: Path) -> None:
    path = tmp_path / "drive.mkv"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 7.3, (32, 16))
    for value in range(40):
        writer.write(np.full((16, 32, 3), value, np.uint8))
    writer.release()
    assert len(list(Video(path))) == 40
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(FrameError, match=r"drive\.mkv"):
        list(Video(path))


@pytest.mark.parametrize(
    ("data", "message"), [(None, "does not exist"), (b"nothing" * 100, "cannot be opened as a vid")]
)
def test_no_video(data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / "drive.mp4").write_bytes(data)
    with pytest.raises(FrameError, match=rf"drive\.mp4' {message}"):
        Video(tmp_path / "drive.mp4")


def test_names_of_videos() -> None:
    assert is_video(Path("a/DRIVE.MP4")) and not is_video(Path("drive.mcap"))
