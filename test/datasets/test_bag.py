from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")

from bag_scenes import FRAMES, Drawn, frames, image_message, stamp_ns, write_bag
from dataset_trees import own_folder

from anomseg_ros.bags.write import BagWriter
from anomseg_ros.commands.bag_write import main as bag_write
from anomseg_ros.core.labels import CAMVID, CITYSCAPES
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.bag import BagDataset, has_ground_truth
from anomseg_ros.datasets.dataset import LabelledFrame
from anomseg_ros.errors import BagError, FrameError

DRAWN = frames()


def assert_same_frame(frame: LabelledFrame, drawn: Any) -> None:
    np.testing.assert_array_equal(frame.image, drawn.image)
    for name in ("labels", "anomaly"):
        ours, theirs = getattr(frame, name), getattr(drawn, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("compressed", [False, True])
def test_frames_and_ground_truth_read_back(tmp_path: Path, storage: str, compressed: bool) -> None:
    with BagDataset(write_bag(tmp_path / "drive", DRAWN, storage, compressed=compressed)) as dataset:
        assert (len(dataset), dataset.name, dataset.has_anomalies, dataset.unmatched) == (FRAMES, "drive", True, ())
        for index in (3, 0, 4, 1, 2):  # any order
            assert_same_frame(dataset.load(index), DRAWN[index])
        assert [dataset.frame_id(index) for index in (0, 1)] == ["100.000000000", "100.100000000"]
        assert dataset.load(1).id == dataset.frame_id(1)


def test_load_works_in_threads_and_after_pickling(tmp_path: Path) -> None:
    dataset = BagDataset(write_bag(tmp_path / "drive", DRAWN))
    barrier = threading.Barrier(4)

    def load(index: int) -> LabelledFrame:
        barrier.wait()
        return dataset.load(index)

    with ThreadPoolExecutor(4) as pool:
        for frame, drawn in zip(pool.map(load, range(4)), DRAWN, strict=False):
            assert_same_frame(frame, drawn)
    assert_same_frame(pickle.loads(pickle.dumps(dataset)).load(2), DRAWN[2])
    dataset.close()
    assert_same_frame(dataset.load(2), DRAWN[2])
    dataset.close()


@pytest.mark.slow
def test_bag_write_command_stores_the_label_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bag_write(["--dataset", "synthetic=7:2", "--output", str(tmp_path / "drive"), "--fps", "4"]) == 0
    out = capsys.readouterr().out
    assert "2 frames on /camera/image with /camera/ground_truth/anomaly and /camera/ground_truth/labels" in out
    source = open_named("synthetic=7:2")
    with BagDataset(tmp_path / "drive") as dataset:
        assert (dataset.name, dataset.label_set, dataset.classes) == ("synthetic", "cityscapes", CITYSCAPES)
        assert dataset.stamps_ns[1] - dataset.stamps_ns[0] == 250_000_000
        for index in range(2):
            assert_same_frame(dataset.load(index), source.load(index))
    with BagDataset(tmp_path / "drive", label_set_name="camvid") as dataset:
        assert dataset.classes == CAMVID
    own = own_folder(tmp_path / "mine", ["a"])
    with BagDataset(tmp_path / "drive", label_set_name=str(own / "classes.yaml")) as dataset:
        assert dataset.label_set == "mine" and [info.name for info in dataset.classes] == ["road", "dog"]


def test_bag_of_a_folder_has_its_classes(tmp_path: Path) -> None:
    own = own_folder(tmp_path / "mine", ["d/1", "d/2"])
    assert bag_write(["--dataset", f"folder={own}:all", "--output", str(tmp_path / "drive")]) == 0
    source = open_named(f"folder={own}:all")
    with BagDataset(tmp_path / "drive") as dataset:
        assert (dataset.name, dataset.label_set, dataset.classes) == ("folder", "mine", source.classes)
        assert np.array_equal(dataset.load(1).labels, source.load(1).labels)


@pytest.mark.parametrize("words", [[], ["--images", "a", "--dataset", "synthetic=7:2"]])
def test_bag_write_command_needs_exactly_one_source(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bag_write([*words, "--output", "never"])
    assert "--images" in capsys.readouterr().err and not Path("never").exists()


def test_row_padding_and_channel_order_are_respected(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "drive") as bag:
        for topic, pixels, encoding, padding in (
            ("/front/image", DRAWN[0].image[..., ::-1], "bgr8", 5),
            ("/front/ground_truth/anomaly", DRAWN[0].anomaly, "mono8", 3),
        ):
            bag.write_serialized(17, topic, *image_message(stamp_ns(0), pixels, encoding, padding))
    with BagDataset(tmp_path / "drive") as dataset:
        assert_same_frame(dataset.load(0), Drawn(DRAWN[0].image, None, DRAWN[0].anomaly))


def test_late_ground_truth_is_matched_by_stamp(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "drive") as bag:
        for index, drawn in enumerate(DRAWN):
            bag.write_serialized(index * 1000, "/camera/image", *image_message(stamp_ns(index), drawn.image, "rgb8"))
        for index, drawn in reversed(list(enumerate(DRAWN))):
            late = 50_000 - index
            message = image_message(stamp_ns(index), drawn.anomaly, "mono8")
            bag.write_serialized(late, "/truth", *message)
    with BagDataset(tmp_path / "drive", topic="/camera/image", anomaly_topic="/truth") as dataset:
        for index, drawn in enumerate(DRAWN):
            assert_same_frame(dataset.load(index), Drawn(drawn.image, None, drawn.anomaly))


def test_unmatched_frames_are_reported(tmp_path: Path) -> None:
    drawn = [Drawn(f.image, f.labels, None if index == 1 else f.anomaly) for index, f in enumerate(DRAWN)]
    with BagWriter(tmp_path / "drive") as bag:
        for index, frame in enumerate(drawn):
            bag.write_frame(
                stamp_ns(index), frame.image, labels=frame.labels if index < 3 else None, anomaly=frame.anomaly
            )
        bag.write_serialized(1, bag.anomaly_topic, *image_message(5, DRAWN[0].anomaly, "mono8"))
    with BagDataset(tmp_path / "drive") as dataset:
        assert [dataset.frame_id(index) for index in range(len(dataset))] == [
            f"100.{tenth}00000000" for tenth in (0, 2, 3, 4)
        ]
        without, alone = dataset.unmatched
        assert without.startswith("1 of 5 images") and "100.100000000 s" in without
        assert alone.startswith("1 of 5 messages of '/camera/ground_truth/anomaly'") and "0.000000005 s" in alone
        assert (dataset.load(3).labels == 255).all()  # the frame has no labels message


def test_missing_topics_error_lists_the_topics_of_the_bag(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "drive", [Drawn(DRAWN[0].image, None, None)])
    with pytest.raises(
        BagError, match=r"no ground truth.*ground_truth/anomaly.*it has /camera/camera_info, /camera/im"
    ):
        BagDataset(path)
    with pytest.raises(BagError, match=r"no topic '/trut'; it has"):
        BagDataset(path, anomaly_topic="/trut")
    with pytest.raises(BagError, match=r"no topic '/camera/imag'; it has /camera/image"):
        BagDataset(path, topic="/camera/imag")


def test_no_common_stamp_is_an_error(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "drive") as bag:
        bag.write_frame(stamp_ns(0), DRAWN[0].image)
        bag.write_serialized(1, bag.anomaly_topic, *image_message(stamp_ns(0) + 1, DRAWN[0].anomaly, "mono8"))
    with pytest.raises(BagError, match=r"its 1 stamps begin at 100.000000000 s, the 1 of .* at 100.000000001 s"):
        BagDataset(tmp_path / "drive")


def test_duplicate_stamp_is_an_error(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "drive") as bag:
        for _ in range(2):
            bag.write_frame(stamp_ns(0), DRAWN[0].image, anomaly=DRAWN[0].anomaly)
    with pytest.raises(BagError, match=r"two messages of '/camera/.*' have the stamp 100.000000000 s"):
        BagDataset(tmp_path / "drive")


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_truncated_bag_is_refused_when_opened(tmp_path: Path, storage: str) -> None:
    path = write_bag(tmp_path / "drive", DRAWN, storage)
    file = next(path.glob("*.mcap" if storage == "mcap" else "*.db3"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BagError, match=r"not a readable bag.*truncated"):
        BagDataset(path)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (DRAWN[0].anomaly[:-1], "labels of another size: .*ground_truth/anomaly at 100.000000000 s.*256x127"),
        (np.full_like(DRAWN[0].anomaly, 7), "unknown label values: .*ground_truth/anomaly.*7; expected 0 known"),
    ],
)
def test_invalid_ground_truth_error_names_topic_and_stamp(tmp_path: Path, wrong: np.ndarray, kind: str) -> None:
    path = write_bag(tmp_path / "drive", [Drawn(DRAWN[0].image, None, wrong)])
    with BagDataset(path) as dataset, pytest.raises(FrameProblem, match=kind):
        dataset.load(0)


def test_unreadable_image_error_names_topic_and_stamp(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "drive") as bag:
        kind, data = image_message(stamp_ns(0), DRAWN[0].image, "rgb8")
        bag.write_serialized(1, "/camera/image", kind, data.replace(b"rgb8", b"rgb9"))
        bag.write_serialized(1, bag.anomaly_topic, *image_message(stamp_ns(0), DRAWN[0].anomaly, "mono8"))
    text = r"/camera/image at 100.000000000 s.*unknown Image.encoding 'rgb9'"
    with BagDataset(tmp_path / "drive", topic="/camera/image") as dataset, pytest.raises(FrameProblem, match=text):
        dataset.load(0)


def test_frames_may_differ_in_size(tmp_path: Path) -> None:
    small = replace(DRAWN[1], image=DRAWN[1].image[:40], labels=DRAWN[1].labels[:40], anomaly=DRAWN[1].anomaly[:40])
    with BagDataset(write_bag(tmp_path / "drive", [DRAWN[0], small])) as dataset:
        assert_same_frame(dataset.load(1), small)


@pytest.mark.parametrize("known", [False, True])
def test_own_vehicle_has_no_ground_truth(tmp_path: Path, known: bool) -> None:
    mask = np.zeros((4, 8), np.uint8)
    mask[3] = 255
    with BagDataset(write_bag(tmp_path / "drive", DRAWN), known=known, ego_mask=mask) as dataset:
        frame = dataset.load(0)
    assert frame.anomaly is not None
    rows = len(frame.anomaly) * 3 // 4
    assert (frame.anomaly[rows:] == 255).all() and not (frame.anomaly[:rows] == 255).any()
    assert known or (frame.labels is not None and (frame.labels[rows:] == 255).all())
    text = "the ego mask is 4x4 pixels, the frame 256x128"
    square = mask[:, :4]
    with (
        BagDataset(tmp_path / "drive", known=known, ego_mask=square) as dataset,
        pytest.raises(FrameError, match=text),
    ):
        dataset.load(0)


def test_bag_of_known_frames_needs_no_ground_truth(tmp_path: Path) -> None:
    drawn = frames()
    bare = write_bag(tmp_path / "bare", [Drawn(frame.image, None, None) for frame in drawn])
    labelled = write_bag(tmp_path / "labelled", drawn)
    assert (has_ground_truth(bare), has_ground_truth(labelled)) == (False, True)
    for path in (bare, labelled):
        with BagDataset(path, known=True) as dataset:
            assert len(dataset) == len(drawn) and dataset.unmatched == () and dataset.has_anomalies
            frame = dataset.load(2)
            assert np.array_equal(frame.image, drawn[2].image) and frame.labels is None
            assert (
                frame.anomaly is not None and frame.anomaly.shape == frame.image.shape[:2] and not frame.anomaly.any()
            )
