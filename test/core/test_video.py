from __future__ import annotations

import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.frames import FrameSource
from anomseg_ros.core.resources import share_file
from anomseg_ros.core.video import Video, is_video
from anomseg_ros.errors import AnomsegError, FrameError

SHIPPED = share_file("demo/drive.mp4")


@pytest.fixture()
def cut_short(tmp_path: Path) -> Path:
    """The shipped video without its second half. Its header still states all frames."""
    data = SHIPPED.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    return tmp_path / "cut.mp4"


def test_shipped_video_has_the_stated_frames() -> None:
    video = Video(SHIPPED)
    assert (video.frame_count, video.rate_hz) == (111, 12.5)
    frames = list(video)
    assert len(frames) == 111 and {frame.shape for frame in frames} == {(540, 960, 3)}
    red, _, blue = frames[0][:100, :300].reshape(-1, 3).mean(axis=0)
    assert blue > red + 30  # the sky


def test_truncated_video_raises_after_its_last_frame(cut_short: Path) -> None:
    delivered = 0
    with pytest.raises(FrameError, match=r"cut\.mp4' states 111 frames, (\d+) could be read; it is cut") as raised:
        for _ in Video(cut_short):
            delivered += 1
    assert 0 < delivered < 111 and f"frames, {delivered} could" in str(raised.value)


def test_truncated_video_gives_its_frames_and_a_failure(cut_short: Path) -> None:
    failures: list[AnomsegError] = []
    assert 0 < len(list(FrameSource([cut_short], failures.append))) < 111
    assert len(failures) == 1 and "states 111 frames" in str(failures[0])


def test_rounded_duration_of_a_container_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "drive.mkv"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 7.3, (32, 16))
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
def test_missing_or_invalid_video_is_refused(data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / "drive.mp4").write_bytes(data)
    with pytest.raises(FrameError, match=rf"drive\.mp4' {message}"):
        Video(tmp_path / "drive.mp4")


def test_videos_are_recognised_by_file_ending() -> None:
    assert is_video(Path("a/DRIVE.MP4")) and not is_video(Path("drive.mcap"))


def write_video(path: Path, frames: int = 20, codec: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (64, 32))
    for number in range(frames):
        frame = np.random.default_rng(number).integers(0, 100, (32, 64, 3), np.uint8)
        frame[:8, :16] = 255  # at the top left
        writer.write(frame + np.uint8(number))
    writer.release()
    return path


def test_truncated_avi_gives_its_frames_and_a_failure(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.avi")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    failures: list[AnomsegError] = []
    frames = list(FrameSource([path], failures.append))
    assert 5 < len(frames) < 15
    assert [str(one).partition(" could")[0] for one in failures] == [
        f"video {str(path)!r} states 20 frames, {len(frames)}"
    ]


def test_one_or_two_missing_frames_are_a_warning(tmp_path: Path) -> None:
    path = write_video(tmp_path / "drive.avi")
    data = bytearray(path.read_bytes())
    for header, place in ((b"avih", 24), (b"strh", 40)):  # dwTotalFrames and dwLength, after name and size
        at = data.index(header) + place
        assert struct.unpack_from("<I", data, at) == (20,)
        struct.pack_into("<I", data, at, 22)
    path.write_bytes(data)
    differences: list[Delivered] = []
    assert len(list(Video(path, differences.append))) == 20
    assert [(one.stated, one.delivered, one.is_loss) for one in differences] == [(22, 20, False)]
    source = FrameSource([path])
    assert len(list(source)) == 20 and source.differences == differences


def test_video_name_may_be_invalid_utf8(tmp_path: Path) -> None:
    path = write_video(tmp_path / "drive.avi").rename(tmp_path / os.fsdecode(b"fahrt\xfc.avi"))
    assert len(list(Video(path))) == 20


def test_display_matrix_is_ignored(tmp_path: Path) -> None:
    path = write_video(tmp_path / "drive.mp4", codec="mp4v")
    before = next(iter(Video(path)))
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2, version 0
    quarter_turn = (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    struct.pack_into(">9i", data, matrix, *quarter_turn)
    path.write_bytes(data)
    turned = cv2.VideoCapture(str(path)).read()[1]
    assert turned.shape == (64, 32, 3)  # OpenCV applies the matrix by default
    np.testing.assert_array_equal(next(iter(Video(path))), before)


def test_lfs_pointer_instead_of_a_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "drive.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(FrameError, match=r"drive\.mp4' cannot be opened as a video: it is a Git LFS pointer"):
        Video(tmp_path / "drive.mp4")
