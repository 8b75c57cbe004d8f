"""Read camera frames from ROS bags with the rosbags library: no ROS installation needed.

Reads bag directories, single MCAP or sqlite3 files, and ROS 1 .bag files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader as Rosbag2Reader
from rosbags.typesys import Stores, get_typestore

from anomseg_ros.errors import BagError, closest_first

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")

# First letters of the encodings of sensor_msgs/image_encodings.hpp that hold a scene's colours, rather than labels or
# depth.
_COLOR_ENCODINGS = ("rgb", "bgr", "bayer", "8UC3", "yuv", "uyvy", "yuyv", "nv")


class ImageTopic(NamedTuple):
    """A topic of images: its name, its type such as sensor_msgs/msg/Image, and the number of messages."""

    topic: str
    type: str
    message_count: int


class ImageRecord(NamedTuple):
    """One image: its header's stamp and frame_id, and the message, with the fields of the ROS message of the same type.

    The message's data is a read-only (n,) uint8 array.
    """

    stamp_ns: int
    frame_id: str
    message: Any


class RawRecord(NamedTuple):
    """One message as the bag stores it: topic, type, the bag's time of it, and its serialized bytes (CDR in ROS 2)."""

    topic: str
    type: str
    time_ns: int
    data: bytes


class Bag:
    """An open bag; a context manager. Made by open_bag."""

    def __init__(self, path: Path, reader: AnyReader) -> None:
        self.path = path
        self._reader = reader

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the bag's files; a second call does nothing."""
        with contextlib.suppress(AnyReaderError):
            self._reader.close()

    @property
    def is_ros2(self) -> bool:
        """Whether messages are CDR; those of ROS 1 bags are not and cannot be published as they are."""
        return self._reader.is2

    @property
    def topics(self) -> dict[str, str]:
        """Topic name -> type, in alphabetical order."""
        return {connection.topic: connection.msgtype for connection in sorted(self._reader.connections, key=_topic)}

    @property
    def counts(self) -> dict[str, int]:
        """Topic name -> number of messages."""
        counts = dict.fromkeys(self.topics, 0)
        for connection in self._reader.connections:
            counts[connection.topic] += connection.msgcount
        return counts

    @property
    def facts(self) -> dict[str, str]:
        """What BagWriter.state noted; empty in bags of others, and in a storage file without its metadata.yaml."""
        stated: dict[str, str] = {}
        for reader in self._reader.readers:
            if isinstance(reader, Rosbag2Reader):
                stated |= reader.storage.metadata.custom or {}
        return stated

    @property
    def connections(self) -> list[Connection]:
        """The connections as rosbags has them, with the recorded QoS."""
        return list(self._reader.connections)

    @property
    def start_ns(self) -> int:
        """Bag time of the first message; 0 in an empty bag."""
        return self._reader.start_time if self._reader.message_count else 0

    @property
    def end_ns(self) -> int:
        """Bag time of the last message; 0 in an empty bag."""
        return self._reader.end_time - 1 if self._reader.message_count else 0

    def raw_messages(
        self, topics: list[str] | None = None, start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[RawRecord]:
        """Yield the messages in order of bag time, of all topics or of those given.

        start_ns, stop_ns: only those at or after this bag time, and before that one.

        Raises:
            BagError: a topic that is not in the bag, or a bag that turns out to be damaged.
        """
        for topic in topics or []:
            self.require_topic(topic)
        chosen = [c for c in self._reader.connections if topics is None or c.topic in topics]
        if not chosen:
            return
        messages = self._reader.messages(chosen, start_ns, stop_ns)
        while True:
            try:
                connection, time_ns, data = next(messages)
            except StopIteration:
                return
            except Exception as error:  # what a damaged file makes rosbags raise is not limited to its own errors
                raise _damaged(self.path, error) from error
            yield RawRecord(connection.topic, connection.msgtype, time_ns, data)

    def deserialize(self, record: RawRecord) -> Any:
        """Return a message as an object with the fields of its type."""
        try:
            return self._reader.deserialize(record.data, record.type)
        except Exception as error:
            raise BagError(
                f"a message of {record.topic!r} in bag {str(self.path)!r} is no {record.type}: {_reason(error)}"
            ) from error

    def read_stamped(
        self, topics: list[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[tuple[RawRecord, int, Any]]:
        """Yield (raw record, its header's stamp in ns, message) of topics whose messages have a header.

        start_ns, stop_ns as for raw_messages. Raises BagError, also for a type without a header.
        """
        for record in self.raw_messages(topics, start_ns, stop_ns):
            message = self.deserialize(record)
            if not hasattr(message, "header"):
                raise BagError(f"topic {record.topic!r} holds {record.type}, which has no header with a stamp")
            stamp = message.header.stamp
            yield record, stamp.sec * 1_000_000_000 + stamp.nanosec, message

    def require_topic(self, topic: str) -> None:
        """Raise BagError, naming the topics there are, unless the bag has this one."""
        if topic not in self.topics:
            raise BagError(
                f"bag {str(self.path)!r} has no topic {topic!r}; it has {', '.join(closest_first(topic, self.topics))}"
            )


def open_bag(path: Path | str) -> Bag:
    """Open a bag directory, an .mcap or .db3 file, or a ROS 1 .bag file.

    Raises:
        BagError: nothing there, not a bag, or a bag that is truncated or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise BagError(f"there is no bag {str(path)!r}; give a bag directory, an .mcap file or a .db3 file")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        path = _only_storage_file(path)
    elif path.is_file() and path.name == "metadata.yaml":
        path = path.parent
    elif path.is_file() and path.suffix not in (".mcap", ".db3", ".bag"):
        raise BagError(f"{str(path)!r} is not a bag; expected a bag directory or a file ending in .mcap or .db3")
    _require_whole_databases(path)
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
        reader.open()
    except Exception as error:  # what a damaged file makes rosbags raise is not limited to its own errors
        raise _damaged(path, error) from error
    return Bag(path, reader)


def image_topics(bag: Bag) -> list[ImageTopic]:
    """Return the bag's topics of Image and CompressedImage, in alphabetical order."""
    return [ImageTopic(topic, kind, bag.counts[topic]) for topic, kind in bag.topics.items() if kind in IMAGE_TYPES]


def camera_topic(bag: Bag) -> str:
    """Return the one topic of colour images that the bag has; labels, masks and depth images are left aside.

    Raises:
        BagError: none, or more than one, each named.
    """
    found = [candidate.topic for candidate in image_topics(bag) if candidate.message_count]
    colour = [topic for topic in found if _is_colour(bag, topic)]
    chosen = colour or found
    if not chosen:
        raise BagError(f"bag {str(bag.path)!r} has no images; its topics: {', '.join(bag.topics) or 'none'}")
    if len(chosen) > 1:
        raise BagError(f"bag {str(bag.path)!r} has several image topics; choose one of {', '.join(chosen)}")
    return chosen[0]


def read_images(bag: Bag, topic: str | None = None) -> Iterator[ImageRecord]:
    """Yield the images of a topic (None: camera_topic) in order of bag time.

    Raises:
        BagError: no such topic (those there are are named), a topic of another type, or a damaged bag.
    """
    topic = camera_topic(bag) if topic is None else topic
    bag.require_topic(topic)
    if bag.topics[topic] not in IMAGE_TYPES:
        names = ", ".join(candidate.topic for candidate in image_topics(bag)) or "none"
        raise BagError(f"topic {topic!r} holds {bag.topics[topic]}, not images; topics of images: {names}")
    for _, stamp_ns, message in bag.read_stamped([topic]):
        yield ImageRecord(stamp_ns, message.header.frame_id, message)


def _is_colour(bag: Bag, topic: str) -> bool:
    message = bag.deserialize(next(bag.raw_messages([topic])))
    if hasattr(message, "encoding"):
        return str(message.encoding).startswith(_COLOR_ENCODINGS)
    # image_transport writes "mono8; png compressed" or "16UC1; compressedDepth"; plain publishers write "jpeg".
    return not str(message.format).startswith(("mono", "16UC1", "32FC1"))


def _only_storage_file(folder: Path) -> Path:
    files = sorted(path for path in folder.iterdir() if path.suffix in (".mcap", ".db3"))
    if len(files) == 1:
        return files[0]
    if files:
        raise BagError(
            f"{str(folder)!r} has no metadata.yaml and several bag files; give one of them: {files[0].name!r}, ..."
        )
    raise BagError(f"{str(folder)!r} is not a bag: it has neither metadata.yaml nor an .mcap or .db3 file")


def _require_whole_databases(path: Path) -> None:
    # sqlite3 notices a missing end only when a query needs one of the missing pages; frames would be lost in silence.
    # The header states the page size at byte 16 and the number of pages at byte 28 (sqlite.org/fileformat2.html, 1.3).
    for file in path.glob("*.db3") if path.is_dir() else [path]:
        if file.suffix != ".db3" or not file.is_file():
            continue
        with file.open("rb") as stream:
            header = stream.read(100)
        if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
            continue  # said better by the library
        page_bytes = int.from_bytes(header[16:18], "big")
        stated = (65536 if page_bytes == 1 else page_bytes) * int.from_bytes(header[28:32], "big")
        # The number of pages counts only if the same version of the library wrote it: bytes 24 and 92 say so.
        if header[24:28] == header[92:96] and stated > file.stat().st_size:
            raise _damaged(file, EOFError(f"it has {file.stat().st_size} of {stated} bytes"))


def _topic(connection: Connection) -> str:
    return connection.topic


def _damaged(path: Path, error: Exception) -> BagError:
    return BagError(
        f"{str(path)!r} is not a readable bag: {_reason(error)}; it may be truncated or damaged, "
        "`ros2 bag reindex` or `mcap recover` can save what is left"
    )


def _reason(error: Exception) -> str:
    return f"{error}".strip().rstrip(".") or type(error).__name__
