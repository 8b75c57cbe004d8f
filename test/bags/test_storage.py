"""Bags whose metadata.yaml, channels or counts differ from what their files hold: no message is lost in silence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")

from bag_scenes import IMAGE, TYPES, image_message
from mcap_files import Topic, write_mcap
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from anomseg_ros.bags.read import camera_topic, open_bag, read_images
from anomseg_ros.core.delivered import Delivered, deviations, losses
from anomseg_ros.errors import BagError

PIXELS = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
START_NS = 10**12
QOS = {
    "history": "keep_last",
    "depth": 5,
    "reliability": "reliable",
    "durability": "transient_local",
    "deadline": {"sec": 0, "nsec": 0},
    "lifespan": {"sec": 0, "nsec": 0},
    "liveliness": "automatic",
    "liveliness_lease_duration": {"sec": 0, "nsec": 0},
    "avoid_ros_namespace_conventions": False,
}
IMAGES = Topic(
    "/camera/image",
    IMAGE,
    tuple((START_NS + k, image_message(START_NS + k, PIXELS, "rgb8")[1]) for k in range(3)),
    schema=TYPES.generate_msgdef(IMAGE, ros_version=2)[0].encode(),
)
FOREIGN = {
    "service": Topic(
        "/add/_service_event",
        "demo/srv/Add_Event",
        ((START_NS, b"\0\1\0\0" + bytes(40)),),
        schema=b"int64 a\nint64 b\n---\nint64 sum\n",
    ),
    "json": Topic("/log", "demo.Log", ((START_NS, b'{"a":1}'),), "json", "jsonschema", b'{"type":"object"}'),
    "protobuf": Topic("/scene", "demo.Scene", ((START_NS, b"\x08\1"),), "protobuf", "protobuf", b"\n\5\xff\xfe\x80"),
    "nothing": Topic("/raw", "", ((START_NS, b"abc"),), "x-raw", "", b""),
}


def write(
    path: Path, storage: str = "mcap", stamps: tuple[int, ...] = (0, 1, 2), mode: CompressionMode | None = None
) -> Path:
    plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
    writer = Writer(path, version=9, storage_plugin=plugin)
    if mode is not None:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        images = writer.add_connection("/camera/image", IMAGE, typestore=TYPES)
        for stamp in stamps:
            stamp_ns = START_NS + stamp * 10**8
            writer.write(images, stamp_ns, image_message(stamp_ns, PIXELS, "rgb8")[1])
    return path


def change(bag: Path, changed: Callable[[dict[str, Any]], None]) -> Path:
    """Edit metadata.yaml as people do."""
    path = bag / "metadata.yaml"
    document = yaml.safe_load(path.read_text())
    changed(document["rosbag2_bagfile_information"])
    path.write_text(yaml.safe_dump(document))
    return bag


def delivered(path: Path) -> tuple[int, list[Delivered]]:
    told: list[Delivered] = []
    with open_bag(path, told.append) as bag:
        return len(list(bag.raw_messages())), told


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_edited_qos_loses_no_messages(storage: str, tmp_path: Path) -> None:
    def edit(stated: dict[str, Any]) -> None:
        stated["topics_with_message_count"][0]["topic_metadata"]["offered_qos_profiles"] = [QOS]

    bag = change(write(tmp_path / "bag", storage), edit)
    assert delivered(bag) == (3, [])
    with open_bag(bag) as opened:
        assert camera_topic(opened) == "/camera/image" and len(list(read_images(opened))) == 3
        (connection,) = opened.connections
        assert connection.ext.offered_qos_profiles[0].durability.name == "TRANSIENT_LOCAL"


@pytest.mark.parametrize("edited", ["offered_qos_profiles", "type_description_hash", "serialization_format"])
def test_edited_topic_metadata_loses_no_messages(edited: str, tmp_path: Path) -> None:
    def edit(stated: dict[str, Any]) -> None:
        stated["topics_with_message_count"][0]["topic_metadata"][edited] = {"offered_qos_profiles": [{"depth": 1}]}.get(
            edited, "RIHS01_00"
        )

    assert delivered(change(write(tmp_path / "bag"), edit)) == (3, [])


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_different_message_counts_are_reported(storage: str, tmp_path: Path) -> None:
    def edit(stated: dict[str, Any], count: int) -> None:
        stated["topics_with_message_count"][0]["message_count"] = count

    less = change(write(tmp_path / "less", storage), lambda stated: edit(stated, 2))
    count, told = delivered(less)
    assert count == 3 and losses(told) == () and "states 2 messages of '/camera/image', 3" in deviations(told)[0]
    with open_bag(less) as bag:
        assert len(list(bag.raw_messages())) == 3

    more = change(write(tmp_path / "more", storage), lambda stated: edit(stated, 12))
    count, told = delivered(more)
    assert count == 3 and "metadata.yaml of bag" in losses(told)[0]
    with open_bag(more) as bag:
        assert len(list(bag.raw_messages(stop_ns=START_NS + 10**9))) == 3  # a part says nothing of the whole
        with pytest.raises(BagError, match=r"states 12 messages of '/camera/image', 3 could be read; copy the bag"):
            list(bag.raw_messages(["/camera/image"]))


def test_different_mcap_statistics_are_reported(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "bag.mcap", [IMAGES], stated=5)
    assert losses(delivered(path)[1])[0].startswith(f"bag {str(path)!r} states 5 messages of '/camera/image', 3")


def test_topic_only_in_metadata_is_reported_missing(tmp_path: Path) -> None:
    def edit(stated: dict[str, Any]) -> None:
        stated["topics_with_message_count"][0]["topic_metadata"]["name"] = "/rear/image"

    with open_bag(change(write(tmp_path / "bag"), edit)) as bag:
        assert bag.absent_topics == {"/rear/image": 3}
        with pytest.raises(BagError, match="states 3 messages of '/rear/image', 0 could be read"):
            list(bag.raw_messages(["/rear/image"]))


def test_edited_duration_gives_warning_and_keeps_stamps(tmp_path: Path) -> None:
    def edit(stated: dict[str, Any]) -> None:
        stated["duration"]["nanoseconds"] = 5 * 10**9
        stated["starting_time"]["nanoseconds_since_epoch"] = 0

    bag = change(write(tmp_path / "bag"), edit)
    count, told = delivered(bag)
    assert count == 3 and losses(told) == ()
    assert "states 5000 ms from first to last message, 200 could be read" in deviations(told)[0]
    with open_bag(bag) as opened:
        assert (opened.start_ns, opened.end_ns) == (START_NS, START_NS + 2 * 10**8)


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("summary", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_foreign_channels_are_skipped_and_named(kind: str, summary: bool, chunked: bool, tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "bag.mcap", [FOREIGN[kind], IMAGES], summary=summary, chunked=chunked)
    told: list[Delivered] = []
    with open_bag(path, told.append) as bag:
        assert camera_topic(bag) == "/camera/image"
        assert [record.stamp_ns for record in read_images(bag)] == [START_NS, START_NS + 1, START_NS + 2]
        if kind == "service":  # CDR as any other, only what its bytes mean is not known
            record = next(bag.raw_messages(["/add/_service_event"]))
            with pytest.raises(BagError, match=r"demo/srv/Add_Event: its definition cannot be read"):
                bag.deserialize(record)
        else:
            topic, encoding = FOREIGN[kind].name, FOREIGN[kind].encoding
            assert bag.skipped == {topic: f"its encoding is {encoding!r}, not CDR"} and topic not in bag.topics
            with pytest.raises(BagError, match=f"{topic}.*cannot be used: its encoding is '{encoding}'"):
                list(bag.raw_messages([topic]))
    assert told == []


def test_bag_with_only_foreign_channels_names_them(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "bag.mcap", [FOREIGN["json"]])
    with open_bag(path) as bag, pytest.raises(BagError, match=r"has no images; .*'/log' cannot be used: its encoding"):
        camera_topic(bag)


@pytest.mark.parametrize(
    ("storage", "mode"),
    [("mcap", mode) for mode in CompressionMode]
    + [("sqlite3", mode) for mode in CompressionMode if mode != CompressionMode.STORAGE],  # it has none of its own
)
def test_compressed_bags_deliver_all_messages(storage: str, mode: CompressionMode, tmp_path: Path) -> None:
    bag = write(tmp_path / "bag", storage, mode=mode)
    assert delivered(bag) == (3, [])
    with open_bag(bag) as opened:
        np.testing.assert_array_equal(next(read_images(opened)).message.data.reshape(PIXELS.shape), PIXELS)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_split_bag_is_read_in_time_order_and_missing_part_named(storage: str, tmp_path: Path) -> None:
    suffix = "mcap" if storage == "mcap" else "db3"
    # The second part begins before the first one ends.
    bag, second = write(tmp_path / "bag", storage, (0, 1, 4)), write(tmp_path / "second", storage, (2, 3, 5))
    shutil.move(second / f"second.{suffix}", bag / f"bag_1.{suffix}")

    def edit(stated: dict[str, Any]) -> None:
        stated["relative_file_paths"] = [f"bag_1.{suffix}", f"bag.{suffix}"]
        stated["topics_with_message_count"][0]["message_count"] = 6
        stated["duration"]["nanoseconds"] = 5 * 10**8

    change(bag, edit)
    assert delivered(bag) == (6, [])
    with open_bag(bag) as opened:
        assert [(one.stamp_ns - START_NS) // 10**8 for one in read_images(opened)] == [0, 1, 2, 3, 4, 5]
    (bag / f"bag_1.{suffix}").unlink()
    with pytest.raises(BagError, match=rf"lacks bag_1\.{suffix} of the 2 files that metadata\.yaml lists; copy"):
        open_bag(bag)


@pytest.mark.parametrize("name", ["drive#2", "what?", "100%25", "fahrt \udcfc"])
def test_bag_files_with_any_name_are_read(name: str, tmp_path: Path) -> None:
    for storage, suffix in (("sqlite3", "db3"), ("mcap", "mcap")):
        plain = write(tmp_path / storage, storage)
        path = tmp_path / f"{name}.{suffix}"
        os.rename(plain / f"{storage}.{suffix}", path)
        assert delivered(path) == (3, [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected the key rosbag2_bagfile_information"),
        ("rosbag2_bagfile_information: {}", "'relative_file_paths' is missing"),
        ("rosbag2_bagfile_information: {relative_file_paths: [], storage_identifier: tape}", "mcap or sqlite3"),
        ("a: [", "expected"),
    ],
)
def test_unusable_metadata_is_refused(text: str, said: str, tmp_path: Path) -> None:
    bag = write(tmp_path / "bag")
    (bag / "metadata.yaml").write_text(text)
    with pytest.raises(BagError, match=rf"bag' is not a readable bag: its metadata\.yaml: .*{said}.*reindex"):
        open_bag(bag)


@pytest.mark.parametrize("suffix", ["mcap", "db3", "bag"])
def test_git_lfs_pointer_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"drive.{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BagError, match=rf"drive\.{suffix}' is not a readable bag: it is a Git LFS pointer") as raised:
        open_bag(path)
    assert "reindex" not in str(raised.value)


def test_git_lfs_pointer_in_a_directory_is_refused_by_name(tmp_path: Path) -> None:
    bag = write(tmp_path / "bag")
    (file,) = bag.glob("*.mcap")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BagError, match=rf"bag' is not a readable bag: {file.name} is a Git LFS pointer") as raised:
        open_bag(bag)
    assert "reindex" not in str(raised.value)


def test_pipes_and_folders_in_place_of_files_are_refused(tmp_path: Path) -> None:
    bag = write(tmp_path / "bag")
    (file,) = bag.glob("*.mcap")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(BagError, match=f"bag' is not a readable bag: {file.name} is not a regular file; copy"):
        open_bag(bag)
    with pytest.raises(BagError, match=r"is not a bag; expected a bag directory, an \.mcap file or a \.db3 file"):
        open_bag(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(BagError, match="is not a regular file"):
        open_bag(bag)


def test_metadata_without_content_says_what_is_expected(tmp_path: Path) -> None:
    bag = write(tmp_path / "bag")
    (bag / "metadata.yaml").write_text("")
    with pytest.raises(BagError, match=r"its metadata\.yaml: expected the key rosbag2_bagfile_information"):
        open_bag(bag)
