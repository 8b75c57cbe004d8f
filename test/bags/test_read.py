from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")

from anomseg_ros.bags.read import camera_topic, image_topics, open_bag, read_images
from anomseg_ros.bags.write import BagWriter
from anomseg_ros.errors import BagError

RGB = np.random.default_rng(5).integers(0, 256, (40, 60, 3), np.uint8)


def make(path: Path, storage: str = "mcap", frames: int = 5, **options: Any) -> Path:
    with BagWriter(path, storage=storage, **options) as writer:
        for index in range(frames):
            writer.write_frame(index * 100_000_000, np.roll(RGB, index, axis=1), labels=RGB[..., 0])
    return path


@pytest.mark.parametrize(("storage", "suffix"), [("mcap", "mcap"), ("sqlite3", "db3")])
def test_folder_file_and_metadata_paths_open_same_bag(tmp_path: Path, storage: str, suffix: str) -> None:
    folder = make(tmp_path / "bag", storage)
    for path in (folder, folder / f"bag.{suffix}", folder / "metadata.yaml", str(folder)):
        with open_bag(path) as bag:
            assert [tuple(topic) for topic in image_topics(bag)] == [
                ("/camera/ground_truth/labels", "sensor_msgs/msg/Image", 5),
                ("/camera/image", "sensor_msgs/msg/Image", 5),
            ]
            assert (bag.start_ns, bag.end_ns, bag.is_ros2) == (0, 400_000_000, True)
            assert len(list(read_images(bag, "/camera/image"))) == 5
    (folder / "metadata.yaml").unlink()  # as a recorder that was killed leaves it
    with open_bag(folder) as bag:
        assert bag.counts["/camera/image"] == 5


def test_camera_topic_skips_labels_and_lists_several_cameras(tmp_path: Path) -> None:
    with open_bag(make(tmp_path / "one")) as bag:
        assert camera_topic(bag) == "/camera/image"
        np.testing.assert_array_equal(next(read_images(bag)).message.data.reshape(RGB.shape), RGB)
    with BagWriter(tmp_path / "two") as writer:
        writer.write_frame(0, RGB)
        writer.labels_topic, writer.image_topic = "/unused", "/rear/image"
        writer.write_frame(1, RGB)
    with open_bag(tmp_path / "two") as bag, pytest.raises(BagError, match=r"choose one of /camera/image, /rear/image"):
        camera_topic(bag)


def test_wrong_topic_error_lists_image_topics(tmp_path: Path) -> None:
    with open_bag(make(tmp_path / "bag")) as bag:
        with pytest.raises(BagError, match=r"no topic '/camera/imag'; it has /camera/image"):
            next(read_images(bag, "/camera/imag"))
        with pytest.raises(BagError, match=r"has messages of sensor_msgs/msg/CameraInfo, not images; .*/camera/image"):
            next(read_images(bag, "/camera/camera_info"))


def test_bag_without_images_opens_but_has_no_camera_topic(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag"):
        pass
    with open_bag(tmp_path / "bag") as bag:
        assert image_topics(bag) == [] and (bag.start_ns, bag.end_ns) == (0, 0)
        with pytest.raises(BagError, match="has no images"):
            camera_topic(bag)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("keep", [0, 5, 0.3, 0.999])
def test_truncated_bag_is_refused(tmp_path: Path, storage: str, keep: float) -> None:
    folder = make(tmp_path / "bag", storage, frames=20)
    file = folder / ("bag.mcap" if storage == "mcap" else "bag.db3")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    for path in (folder, file):
        with pytest.raises(BagError, match="not a readable bag"), open_bag(path) as bag:
            list(read_images(bag, "/camera/image"))


@pytest.mark.parametrize("name", ["bag.mcap", "bag.db3", "picture.png"])
def test_file_that_is_not_a_bag_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"something else entirely, of some length" * 50)
    with pytest.raises(BagError, match=f"{name}' is not a (readable )?bag"):
        open_bag(tmp_path / name)


def test_missing_empty_and_broken_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="there is no bag"):
        open_bag(tmp_path / "absent")
    with pytest.raises(BagError, match=r"neither metadata.*`anomseg bag write --images PATH --output BAG` makes a bag"):
        open_bag(tmp_path)
    (tmp_path / "drive.mp4").write_bytes(b"video")
    with pytest.raises(BagError, match=r"drive\.mp4' is not a bag; .*`anomseg bag write --images"):
        open_bag(tmp_path / "drive.mp4")
    (tmp_path / "metadata.yaml").write_text("a: [")
    with pytest.raises(BagError, match="not a readable bag"):
        open_bag(tmp_path)


def test_messages_convert_to_rgb_without_ros(tmp_path: Path) -> None:
    conversions = pytest.importorskip("anomseg_ros.node.conversions", reason="needs sensor_msgs", exc_type=ImportError)
    with open_bag(make(tmp_path / "raw")) as bag:
        np.testing.assert_array_equal(conversions.rgb_from_image(next(read_images(bag)).message), RGB)
    with open_bag(make(tmp_path / "jpeg", compressed=True)) as bag:
        assert (
            conversions.rgb_from_compressed(next(read_images(bag, "/camera/image/compressed")).message).shape
            == RGB.shape
        )


def test_raw_messages_within_time_span(tmp_path: Path) -> None:
    for storage in ("mcap", "sqlite3"):
        with open_bag(make(tmp_path / storage, storage)) as bag:
            spans = [(None, 100_000_001), (100_000_000, 300_000_000), (400_000_000, None), (1, 2)]
            found = [[r.time_ns for r in bag.raw_messages(["/camera/image"], *span)] for span in spans]
            assert found == [[0, 100_000_000], [100_000_000, 200_000_000], [400_000_000], []]
            stamps = [stamp for _, stamp, _ in bag.read_stamped(["/camera/image", "/camera/camera_info"])]
            assert stamps == sorted([100_000_000 * index for index in range(5)] * 2)


def test_facts_are_stored_in_metadata_only(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_frame(0, RGB)
        writer.add_fact("label_set", "camvid")
    with open_bag(tmp_path / "bag") as bag:
        assert bag.facts == {"label_set": "camvid"}
    with open_bag(tmp_path / "bag" / "bag.mcap") as bag:
        assert bag.facts == {}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("custom_data", [[]], "dictionary update"),
        ("custom_data", {"label_set": 5}, "it has 5 where text is expected"),
        ("topics_with_message_count", 5, "not iterable"),
    ],
)
def test_metadata_with_wrong_types_is_refused_at_open(key: str, value: object, said: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "bag")
    path = folder / "metadata.yaml"
    plain = yaml.safe_load(path.read_text())
    plain["rosbag2_bagfile_information"][key] = value
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(BagError, match=said):
        open_bag(folder)


def test_message_definition_without_required_field_is_refused(tmp_path: Path) -> None:
    file = make(tmp_path / "bag") / "bag.mcap"
    content = file.read_bytes()
    assert b"uint32 height" in content
    file.write_bytes(content.replace(b"uint32 height", b"uint32 eighth"))
    with open_bag(file) as bag, pytest.raises(BagError, match="Image without the field 'height' that it has in ROS 2"):
        list(read_images(bag, "/camera/image"))


def test_metadata_with_unusable_numbers_is_not_compared(tmp_path: Path) -> None:
    folder = make(tmp_path / "bag")
    path = folder / "metadata.yaml"
    plain = yaml.safe_load(path.read_text())
    stated = plain["rosbag2_bagfile_information"]
    stated["duration"] = {"nanoseconds": float("inf")}
    for number, entry in enumerate(stated["topics_with_message_count"]):
        entry["message_count"] = (float("inf"), float("nan"), "many")[number % 3]
    path.write_text(yaml.safe_dump(plain))
    with open_bag(folder) as bag:
        assert len(list(read_images(bag, "/camera/image"))) == 5
