"""Read camera frames from ROS bags with the rosbags library; no ROS installation is needed.

Reads bag directories, single MCAP or sqlite3 files, and ROS 1 .bag files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection, Nodetype
from rosbags.rosbag2 import Reader as Rosbag2Reader
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from anomseg_ros.bags.bag_paths import HOW_TO_MAKE
from anomseg_ros.bags.storage import BagDirectory, TolerantReader, declared_counts, declared_duration_ns
from anomseg_ros.core.delivered import Delivered
from anomseg_ros.core.file_kinds import foreign_file
from anomseg_ros.core.schema import shown
from anomseg_ros.errors import BagError, closest_first, describe_os_error

STANDARD_TYPES = get_typestore(Stores.ROS2_JAZZY)

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")

# Prefixes of the encodings of sensor_msgs/image_encodings.hpp that contain colours, not labels or depth.
_COLOR_ENCODINGS = ("rgb", "bgr", "bayer", "8UC3", "8UC4", "16UC3", "16UC4", "yuv", "uyvy", "yuyv", "nv")

_REINDEX = "copy the bag again; if its files are complete, `ros2 bag reindex` rewrites metadata.yaml"
_MILLISECOND_NS = 1_000_000


class ImageTopic(NamedTuple):
    """A topic of images: its name, its type such as sensor_msgs/msg/Image, and the number of messages."""

    topic: str
    type: str
    message_count: int


class ImageRecord(NamedTuple):
    """One image: stamp and frame_id of its header, and the message with the fields of its ROS type.

    The message's data is a read-only (n,) uint8 array.
    """

    stamp_ns: int
    frame_id: str
    message: Any


class RawRecord(NamedTuple):
    """One message as stored: topic, type, bag time in nanoseconds, and serialized bytes (CDR in ROS 2)."""

    topic: str
    type: str
    time_ns: int
    data: bytes


class Bag:
    """An open bag, created by open_bag; a context manager."""

    def __init__(self, path: Path, reader: AnyReader, on_difference: OnDifference | None = None) -> None:
        self.path = path
        self._reader = reader
        self._on_difference = on_difference
        storage = next((one.storage for one in reader.readers if isinstance(one, TolerantReader)), None)
        self._metadata_yaml: Mapping[str, Any] = storage.metadata_yaml if isinstance(storage, BagDirectory) else {}

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the bag's files; a second call does nothing."""
        with contextlib.suppress(Exception):  # already closed, or left inconsistent by a damaged file
            self._reader.close()

    @property
    def is_ros2(self) -> bool:
        """Whether messages are CDR. Messages of ROS 1 bags are not, so they cannot be published as they are."""
        return self._reader.is2

    @property
    def topics(self) -> dict[str, str]:
        """Topic name -> type, in alphabetical order."""
        connections = sorted(self._reader.connections, key=attrgetter("topic"))
        return {connection.topic: connection.msgtype for connection in connections}

    @property
    def counts(self) -> dict[str, int]:
        """Topic name -> number of messages."""
        counts = dict.fromkeys(self.topics, 0)
        for connection in self._reader.connections:
            counts[connection.topic] += connection.msgcount
        return counts

    @property
    def skipped(self) -> dict[str, str]:
        """Topic that is not CDR and cannot be used -> reason. These topics are not in `topics`."""
        return {topic: reason for reader in self._tolerant_readers for topic, reason in reader.skipped.items()}

    @property
    def absent_topics(self) -> dict[str, int]:
        """Topic that metadata.yaml lists with messages but the storage files do not have -> stated message count."""
        available = self.topics.keys() | self.skipped.keys()
        counts = declared_counts(self._metadata_yaml)
        return {topic: count for topic, count in counts.items() if count and topic not in available}

    @property
    def facts(self) -> dict[str, str]:
        """Facts written by BagWriter.add_fact; empty for other bags and for a storage file without metadata.yaml."""
        facts: dict[str, str] = {}
        for reader in self._reader.readers:
            if isinstance(reader, Rosbag2Reader):
                facts |= reader.storage.metadata.custom or {}
        return facts

    @property
    def connections(self) -> list[Connection]:
        """The rosbags connections, with the recorded QoS."""
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
        """Yield the messages of all topics, or of the given ones, in order of bag time.

        start_ns, stop_ns: range of bag time, including the start and excluding the stop.

        Raises:
            BagError: a topic that is not in the bag, a damaged bag, or, after the last message of a complete pass,
                fewer messages than the bag states, unless open_bag was given on_difference.
        """
        for topic in topics or []:
            self.require_topic(topic)
        connections = [one for one in self._reader.connections if topics is None or one.topic in topics]
        delivered = dict.fromkeys((connection.topic for connection in connections), 0)
        messages = self._reader.messages(connections, start_ns, stop_ns) if connections else iter(())
        while True:
            try:
                connection, time_ns, data = next(messages)
            except StopIteration:
                break
            except Exception as error:  # on damaged files, rosbags raises any exception, not only its own
                raise _damage_error(self.path, error) from error
            delivered[connection.topic] += 1
            yield RawRecord(connection.topic, connection.msgtype, time_ns, data)
        if start_ns is None and stop_ns is None:
            self._report_differences(delivered)

    def deserialize(self, record: RawRecord) -> Any:
        """Return a message as an object with the fields of its type. Raises BagError."""
        for reader in self._tolerant_readers:
            if record.type in reader.undefined:
                raise BagError(
                    f"topic {record.topic!r} of bag {str(self.path)!r} cannot be deserialized: {record.type}: "
                    f"{reader.undefined[record.type]}"
                )
        try:
            if record.type in IMAGE_TYPES:
                _require_standard(record.type, self._reader.typestore)
            return self._reader.deserialize(record.data, record.type)
        except Exception as error:
            raise BagError(
                f"a message of {record.topic!r} in bag {str(self.path)!r} is not a valid {record.type}: "
                f"{_reason(error)}"
            ) from error

    def read_stamped(
        self, topics: list[str], start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[tuple[RawRecord, int, Any]]:
        """Yield (raw record, header stamp in ns, message) of topics whose messages have a header.

        start_ns, stop_ns: as for raw_messages. Raises BagError, including for a type without a header.
        """
        for record in self.raw_messages(topics, start_ns, stop_ns):
            message = self.deserialize(record)
            try:
                stamp = message.header.stamp
                stamp_ns = int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
            except (AttributeError, TypeError, ValueError):
                raise BagError(
                    f"topic {record.topic!r} has messages of {record.type}, which has no header with a stamp"
                ) from None
            yield record, stamp_ns, message

    def require_topic(self, topic: str) -> None:
        """Raise BagError, with the available topics, unless the bag has this topic."""
        if topic in self.skipped:
            raise BagError(f"topic {topic!r} of bag {str(self.path)!r} cannot be used: {self.skipped[topic]}")
        if topic in self.absent_topics:
            raise BagError("; ".join(map(str, self.absent_differences())))
        if topic not in self.topics:
            raise BagError(
                f"bag {str(self.path)!r} has no topic {topic!r}; it has {', '.join(closest_first(topic, self.topics))}"
            )

    def absent_differences(self) -> list[Delivered]:
        """Return a Delivered for each of absent_topics; none of its messages was delivered."""
        source = f"metadata.yaml of bag {str(self.path)!r}"
        return [Delivered(source, f"messages of {topic!r}", count, 0) for topic, count in self.absent_topics.items()]

    @property
    def _tolerant_readers(self) -> list[TolerantReader]:
        return [reader for reader in self._reader.readers if isinstance(reader, TolerantReader)]

    def _report_differences(self, delivered: Mapping[str, int]) -> None:
        """Report differences between the stated counts and duration and those of a complete pass over topics."""
        bag_name = f"bag {str(self.path)!r}"
        yaml_name = f"metadata.yaml of {bag_name}"
        for source, counts in ((bag_name, self.counts), (yaml_name, declared_counts(self._metadata_yaml))):
            for topic, count in delivered.items():
                if topic in counts and counts[topic] != count:
                    self._report(Delivered(source, f"messages of {topic!r}", counts[topic], count, remedy=_REINDEX))
        declared_ns, actual_ns = declared_duration_ns(self._metadata_yaml), self.end_ns - self.start_ns
        if declared_ns is not None and abs(declared_ns - actual_ns) >= _MILLISECOND_NS:
            times_ms = (declared_ns // _MILLISECOND_NS, actual_ns // _MILLISECOND_NS)
            self._report(Delivered(yaml_name, "ms from first to last message", *times_ms, is_count=False))

    def _report(self, difference: Delivered) -> None:
        if self._on_difference is not None:
            self._on_difference(difference)
        elif difference.is_loss:
            raise BagError(str(difference))


OnDifference = Callable[[Delivered], None]


def open_bag(path: Path | str, on_difference: OnDifference | None = None) -> Bag:
    """Open a bag directory, an .mcap or .db3 file, or a ROS 1 .bag file.

    on_difference: called when a complete pass over topics delivers another number of messages than the bag states, or
    when metadata.yaml states another duration. Without it, missing messages raise BagError.

    Raises:
        BagError: the path does not exist, is not a bag, or the bag is truncated or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise BagError(f"there is no bag {str(path)!r}; give a bag directory, an .mcap file or a .db3 file")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        path = _only_storage_file(path)
    elif not path.is_dir() and not path.is_file():  # a pipe that nobody writes to would be waited for
        raise BagError(f"{str(path)!r} is not a bag; expected a bag directory, an .mcap file or a .db3 file")
    elif path.is_file() and path.name == "metadata.yaml":
        path = path.parent
    elif path.is_file() and path.suffix not in (".mcap", ".db3", ".bag"):
        raise BagError(f"{str(path)!r} is not a bag; expected a folder or file of .mcap or .db3. {HOW_TO_MAKE}")
    _check_database_sizes(path)
    try:
        reader = AnyReader([path], default_typestore=STANDARD_TYPES)
        if reader.is2:
            reader.readers = [TolerantReader(path)]
        reader.open()
        bag = Bag(path, reader, on_difference)
        _check_metadata_types(bag)
    except BagError:
        raise
    except PermissionError as error:
        raise BagError(f"bag {describe_os_error(error, path)}") from error
    except Exception as error:  # on damaged files, rosbags raises any exception, not only its own
        raise _damage_error(path, error) from error
    return bag


def image_topics(bag: Bag) -> list[ImageTopic]:
    """Return the bag's topics of Image and CompressedImage, in alphabetical order."""
    return [ImageTopic(topic, kind, bag.counts[topic]) for topic, kind in bag.topics.items() if kind in IMAGE_TYPES]


def camera_topic(bag: Bag) -> str:
    """Return the bag's only topic of colour images or, if no images are in colour, its only image topic.

    Raises:
        BagError: no image topic, or several; the message lists them.
    """
    topics = [candidate.topic for candidate in image_topics(bag) if candidate.message_count]
    candidates = [topic for topic in topics if _is_colour(bag, topic)] or topics
    if not candidates:
        absent = "".join(f"; {difference}" for difference in bag.absent_differences())
        unusable = "".join(f"; {topic!r} cannot be used: {reason}" for topic, reason in bag.skipped.items())
        available = ", ".join(bag.topics) or "none"
        raise BagError(f"bag {str(bag.path)!r} has no images; its topics: {available}{absent}{unusable}")
    if len(candidates) > 1:
        raise BagError(f"bag {str(bag.path)!r} has several image topics; choose one of {', '.join(candidates)}")
    return candidates[0]


def read_images(bag: Bag, topic: str | None = None) -> Iterator[ImageRecord]:
    """Yield the images of a topic (None: camera_topic) in order of bag time.

    Raises:
        BagError: a missing topic (the message lists the available ones), a topic of another type, or a damaged bag.
    """
    topic = camera_topic(bag) if topic is None else topic
    bag.require_topic(topic)
    if bag.topics[topic] not in IMAGE_TYPES:
        names = ", ".join(candidate.topic for candidate in image_topics(bag)) or "none"
        raise BagError(f"topic {topic!r} has messages of {bag.topics[topic]}, not images; image topics: {names}")
    for _, stamp_ns, message in bag.read_stamped([topic]):
        yield ImageRecord(stamp_ns, message.header.frame_id, message)


def _is_colour(bag: Bag, topic: str) -> bool:
    record = next(bag.raw_messages([topic]), None)
    if record is None:
        raise BagError(f"bag {str(bag.path)!r} states {bag.counts[topic]} messages of {topic!r}, 0 could be read")
    message = bag.deserialize(record)
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
            f"{str(folder)!r} has no metadata.yaml and several bag files; give one of them, such as {files[0].name!r}"
        )
    raise BagError(f"{str(folder)!r} is not a bag: neither metadata.yaml nor .mcap or .db3 is in it. {HOW_TO_MAKE}")


def _check_database_sizes(path: Path) -> None:
    # sqlite3 notices a missing end only when a query needs one of the missing pages; frames would be lost silently.
    # The header has the page size at byte 16 and the number of pages at byte 28 (sqlite.org/fileformat2.html, 1.3).
    for file in path.glob("*.db3") if path.is_dir() else [path]:
        if file.suffix != ".db3" or not file.is_file():
            continue
        with file.open("rb") as stream:
            header = stream.read(100)
        if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
            continue  # the library's own message is clearer
        page_bytes = int.from_bytes(header[16:18], "big")
        size_bytes = (65536 if page_bytes == 1 else page_bytes) * int.from_bytes(header[28:32], "big")
        # The page count is valid only if bytes 24 to 27 equal bytes 92 to 95.
        if header[24:28] == header[92:96] and size_bytes > file.stat().st_size:
            raise _damage_error(file, EOFError(f"it has {file.stat().st_size} of {size_bytes} bytes"))


def _check_metadata_types(bag: Bag) -> None:
    """Raise ValueError if metadata.yaml has values of wrong types, which rosbags does not check."""
    numbers = [bag.start_ns, bag.end_ns, *bag.counts.values()]
    texts = [*bag.topics, *bag.topics.values(), *bag.facts, *bag.facts.values()]
    for value, kind in [*((value, int) for value in numbers), *((value, str) for value in texts)]:
        if not isinstance(value, kind):
            expected = "a whole number" if kind is int else "text"
            raise ValueError(f"it has {shown(value)} where {expected} is expected")


def _require_standard(name: str, types: Typestore) -> None:
    """Raise ValueError unless the bag defines a type with the fields that it has in ROS 2."""
    fields = dict(types.fielddefs[name][1])
    for field, kind in STANDARD_TYPES.fielddefs[name][1]:
        if fields.get(field) != kind:
            raise ValueError(f"the bag defines {name} without the field {field!r} that it has in ROS 2")
        if kind[0] == Nodetype.NAME:
            _require_standard(str(kind[1]), types)


def _damage_error(path: Path, error: Exception) -> BagError:
    kind = foreign_file(path, "a bag") if path.is_file() else None
    if kind is not None:
        return BagError(f"{str(path)!r} is not a readable bag: it {kind}")
    return BagError(
        f"{str(path)!r} is not a readable bag: {_reason(error)}; it may be truncated or damaged: "
        "try `ros2 bag reindex` or `mcap recover`"
    )


def _reason(error: Exception) -> str:
    return f"{error}".strip().rstrip(".") or type(error).__name__
