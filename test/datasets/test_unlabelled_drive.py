"""Folders, videos and bags as one drive without labels."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bag_scenes import image_message
from drives import noise, write_pictures, write_unlabelled_bag, write_video

from anomseg_ros.bags.write import BagWriter
from anomseg_ros.datasets.check import check
from anomseg_ros.datasets.drive_inputs import VideoFrames
from anomseg_ros.datasets.unlabelled_drive import open_drive, read_frame_names
from anomseg_ros.errors import AnomsegError, DatasetError, FrameError


def test_inputs_follow_each_other(tmp_path: Path) -> None:
    pictures, video = write_pictures(tmp_path / "street", 12), write_video(tmp_path / "ring.avi", 6)
    bag = write_unlabelled_bag(tmp_path / "night", 3)
    drive = open_drive([pictures, video, bag, pictures])
    names = [drive.frame_id(index) for index in range(len(drive))]
    assert names[:12] == [f"street/{number}" for number in range(12)]  # 10 comes after 9
    assert names[12:16] == [f"ring/ring_00000{number}" for number in range(4)]  # the last two may not exist
    assert names[16:19] == [f"night/{100 + number / 10:.9f}" for number in range(3)]
    assert names[19] == "street-2/0" and len(names) == len(set(names)) == 31
    for index, expected in ((11, noise(11)), (17, noise(1))):
        frame = drive.load(index)
        assert frame.id == names[index] and frame.labels is None and np.array_equal(frame.image, expected)
        assert frame.anomaly is not None and frame.anomaly.shape == (48, 96) and not frame.anomaly.any()
    assert drive.load(14).image.mean() == pytest.approx(8, abs=2)
    assert check(drive).ok() and len({drive.origin(index) for index in range(19)}) == 19
    assert open_drive([pictures]).frame_id(3) == "3"
    assert [one.stamps_ns is None for one in drive.inputs] == [True, False, False, True]


def test_video_frames_in_any_order(tmp_path: Path) -> None:
    video = VideoFrames(write_video(tmp_path / "drive.avi", 60))
    order = [1, 0, 3, 2, 20, 19, 40, 5, 57]
    with ThreadPoolExecutor(4) as pool:
        means = [float(frame.mean()) for frame in pool.map(video.load, order)]
    assert means == pytest.approx([4 * number for number in order], abs=3)
    assert video.stamps_ns is not None and video.stamps_ns[3] == 300_000_000


def test_ego_mask_is_void(tmp_path: Path) -> None:
    mask = np.zeros((24, 48), np.uint8)
    mask[20:] = 1
    frame = open_drive([write_pictures(tmp_path / "street", 1)], ego_mask=mask).load(0)
    assert frame.anomaly is not None and (frame.anomaly[40:] == 255).all() and not frame.anomaly[:40].any()
    with pytest.raises(FrameError, match="the ego mask is 48x20 pixels, the frame 96x48: they need the same aspect"):
        open_drive([tmp_path / "street"], ego_mask=mask[:20]).load(0)


def test_frames_are_left_out_by_name(tmp_path: Path) -> None:
    drive = open_drive([write_pictures(tmp_path / "street", 9)], every=2)
    listed = tmp_path / "strange.txt"
    listed.write_text("# a cow\n4\n\n 4 \n5\r\n", encoding="utf-8")
    rest = drive.without(read_frame_names(listed))  # 5 is not among every second frame anyway
    assert [rest.frame_id(index) for index in range(len(rest))] == ["0", "2", "6", "8"]
    assert np.array_equal(rest.load(2).image, noise(6))
    with pytest.raises(DatasetError, match=r"1 of 2 frames to leave out are not in .*street, the first is '44'.* 4"):
        drive.without(["4", "44"])


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def two_names(folder: Path) -> Path:
    (write_pictures(folder, 1) / "0.jpg").write_bytes((folder / "0.png").read_bytes())
    return folder


def two_cameras(path: Path) -> Path:
    with BagWriter(path) as bag:
        for topic in ("/left/image", "/right/image"):
            kind, data = image_message(1_000_000_000, noise(0), "rgb8")
            bag.write_serialized(1_000_000_000, topic, kind, data)
    return path


def text(path: Path) -> Path:
    path.write_text("no frames")
    return path


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda path: path, "absent", "absent' does not exist; give a folder of pictures, a video or a bag"),
        (empty, "empty", "empty' holds no image"),
        (text, "notes.txt", r"notes.txt' is no drive; give a folder of pictures, a video \(.*mp4.*\) or a bag"),
        (text, "notes.mp4", "notes.mp4' cannot be opened as a video"),
        (text, "notes.mcap", "notes.mcap' is not a readable bag"),
        (two_names, "double", "double' has pictures whose names differ only by their file ending"),
        (two_cameras, "cameras", "has several image topics; choose one of /left/image, /right/image"),
        (lambda path: write_video(path, 2), "short.avi", "short.avi' holds no frame"),
    ],
)
def test_bad_inputs_are_refused(make: Callable[[Path], Path], name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(AnomsegError, match=message):
        open_drive([make(tmp_path / name)])


def test_bad_options_are_refused(tmp_path: Path) -> None:
    pictures, bag = write_pictures(tmp_path / "street", 2), two_cameras(tmp_path / "cameras")
    with pytest.raises(DatasetError, match=r"topic '/image' was given, but .*street' is not a bag"):
        open_drive([pictures], topic="/image")
    with pytest.raises(AnomsegError, match="has no topic '/centre/image'; it has"):
        open_drive([bag], topic="/centre/image")
    assert len(open_drive([bag], topic="/right/image")) == 1
    with pytest.raises(DatasetError, match="every is 0; expected a whole number of frames, at least 1"):
        open_drive([pictures], every=0)
    with pytest.raises(DatasetError, match="no drive was given"):
        open_drive([])


def test_damaged_frames_are_found_by_the_check(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "street", 3)
    truncated(pictures / "1.png")
    with pytest.raises(DatasetError, match=r"1 × unreadable: .*1\.png"):
        check(open_drive([pictures])).require()
    with pytest.raises(AnomsegError, match=r"cut\.avi"):
        check(open_drive([truncated(write_video(tmp_path / "cut.avi", 40))])).require()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "the list of frames cannot be read: .*list.txt'"), (b"\xff\xfe\x00", "not a text file")],
)
def test_bad_lists_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_frame_names(tmp_path / "list.txt")
