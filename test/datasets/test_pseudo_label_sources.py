from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_trees import camvid, cityscapes, flat, image, values, write

from anomseg_ros.core.labels import UNLABELLED
from anomseg_ros.datasets.pseudo_label_sources import FREE, open_sources
from anomseg_ros.errors import AnomsegError, DatasetError


def video(path: Path, frames: int = 7) -> Path:
    """A video whose frame n has the grey value 20 n."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 20 * number % 256, np.uint8))
    writer.release()
    return path


def test_datasets_provide_their_own_labels(tmp_path: Path) -> None:
    camvid(tmp_path / "a")
    cityscapes(tmp_path / "b")
    coarse, fine = open_sources([f"camvid={tmp_path / 'a'}:val", f"cityscapes={tmp_path / 'b'}"])
    assert (coarse.name, coarse.split, list(coarse.frame_names)) == ("camvid", "val", ["0016E5_2", "0016E5_10"])
    frame = coarse.load(1)
    assert np.array_equal(frame.image, image(10)) and np.array_equal(frame.codes, values(0, 10, 255))
    assert np.flatnonzero(frame.choices[10]).tolist() == [12, 17, 18]
    frame = fine.load(0)
    assert frame.codes.reshape(-1)[:6].tolist() == [255, 0, 1, 18, 255, 11]
    assert frame.choices[18].sum() == 1 and not frame.choices[255].any()


def test_anomaly_mask_leaves_known_pixels_free(tmp_path: Path) -> None:
    flat(tmp_path, 0, 1, 255)
    (source,) = open_sources([f"road_anomaly_21={tmp_path}"])
    assert source.load(0).codes.reshape(-1)[:3].tolist() == [FREE, UNLABELLED, UNLABELLED]


def test_ignore_masks_exclude_pixels_of_pictures(tmp_path: Path) -> None:
    write(tmp_path / "b10.png", image(1))
    write(tmp_path / "b2.png", image(2))
    write(tmp_path / "ignore" / "b2.png", values(0, 255))
    first, second = open_sources([f"folder={tmp_path}", f"scenery={tmp_path}"])
    assert list(first.frame_names) == ["b2", "b10"] and (first.known, second.known) == (False, True)
    assert first.load(0).codes.reshape(-1)[:2].tolist() == [FREE, UNLABELLED]
    assert (first.load(1).codes == FREE).all() and first.load(1).choices[FREE].all()
    assert np.flatnonzero(second.load(0).choices[FREE]).tolist() == [8, 9, 10]
    write(tmp_path / "ignore" / "b10.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(DatasetError, match="labels of another size"):
        first.load(1)


def test_every_nth_video_frame_is_read_in_any_order(tmp_path: Path) -> None:
    (source,) = open_sources([f"video={video(tmp_path / 'drive.avi')}"], every=3)
    assert list(source.frame_names) == ["drive_000000", "drive_000003", "drive_000006"]
    for index in (0, 2, 1, 1):
        assert source.load(index).image.mean() == pytest.approx(60 * index, abs=3)


def test_truncated_video_error_states_the_frames(tmp_path: Path) -> None:
    path = video(tmp_path / "drive.avi", frames=30)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (source,) = open_sources([f"video={path}"])
    source.load(0)
    with pytest.raises(DatasetError, match=r"drive.avi' ends after [0-9]+ frames where it states 30: it was cut short"):
        source.load(29)


def test_sources_of_one_kind_get_numbered_names_and_digests(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / name / "x.png", image(seed))
    specs = [source.describe() for source in open_sources([f"folder={tmp_path / name}" for name in "abc"])]
    assert [spec.name for spec in specs] == ["folder", "folder2", "folder3"]
    assert specs[0].sha256 == specs[1].sha256 != specs[2].sha256


def test_known_option_selects_sources_by_name(tmp_path: Path) -> None:
    write(tmp_path / "x.png", image(1))
    sources = open_sources([f"folder={tmp_path}", f"folder={tmp_path}", f"scenery={tmp_path}"], known=["folder2"])
    assert [source.describe().known for source in sources] == [False, True, True]


def test_damaged_first_frame_fails_on_load(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    (source,) = open_sources([f"folder={tmp_path}"])
    assert source.describe().frames == 1
    with pytest.raises(AnomsegError, match=r"x.png"):
        source.load(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pictures", "'pictures' is not of the form KIND=PATH"),
        ("foldr=HERE", "unknown kind of frames 'foldr'.*folder"),
        ("folder=HERE/nowhere", "nowhere' is not a folder"),
        ("folder=HERE/empty", "empty' holds no image"),
        ("scenery=HERE/empty", "empty' holds no image"),
        ("camvid=HERE/empty", "nothing of the split 'val' was found"),
        ("video=HERE/nowhere.mp4", "nowhere.mp4' is no video file"),
        ("video=HERE/text.mp4", "text.mp4' cannot be opened as a video"),
        ("folder=HERE/twice", "names differ only by folder or file ending"),
    ],
)
def test_invalid_sources_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    write(tmp_path / "twice" / "x.png", image(1))
    write(tmp_path / "twice" / "x.bmp", image(1))
    with pytest.raises(DatasetError, match=message):
        open_sources([text.replace("HERE", str(tmp_path))])


def test_no_source_is_refused() -> None:
    with pytest.raises(DatasetError, match="no frames to label"):
        open_sources([])
