"""Tolerant versions of the rosbags readers: bags are read as their storage files are.

They read bags that rosbags refuses: with a metadata.yaml that differs from the storage files in QoS, counts or times,
with channels of other encodings, or with definitions that cannot be parsed. The storage files determine the topics;
metadata.yaml is only compared with them.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from heapq import merge
from io import BytesIO
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from urllib.parse import quote

from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.rosbag2.metadata import ReaderMetadata, parse_qos
from rosbags.rosbag2.storage_mcap import McapReader, Statistics, decompress
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

import yaml

from anomseg_ros.core.file_kinds import foreign_file
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.errors import BagError

NO_DEFINITION = MessageDefinition(MessageDefinitionFormat.NONE, "")
_READABLE_SCHEMAS = (b"ros2msg", b"ros2idl", b"omgidl", b"")
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 0x03, 0x04, 0x05, 0x06, 0x0F
"""Opcodes of MCAP records (mcap.dev/spec)."""
_FOOTER = 0x02
_CDR = "cdr"

_NEVER_NS = 2**63 - 1
_Identity = tuple[str, str, str, str]
"""Topic, type, digest and QoS of a connection."""


class TolerantReader(Reader):
    """Reads a bag without its unusable topics, where rosbags refuses the whole bag.

    skipped: topic -> why its messages cannot be used. undefined: type -> why its messages cannot be deserialized.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        readers: dict[str, Any] = {".mcap": ForeignMcapReader, ".db3": AnyNameSqlite3Reader}
        storage: Any = BagDirectory(path) if path.is_dir() else readers[path.suffix](path)
        self.storage = storage
        self.skipped: dict[str, str] = {}
        self.undefined: dict[str, str] = {}

    @property
    def connections(self) -> list[Connection]:
        """The connections with CDR messages; a definition that cannot be used is removed from its connection."""
        usable = []
        for connection in super().connections:
            assert isinstance(connection.ext, ConnectionExtRosbag2)
            if connection.ext.serialization_format != _CDR:
                self.skipped[connection.topic] = f"its encoding is {connection.ext.serialization_format!r}, not CDR"
                continue
            problem = _definition_problem(connection.msgtype, connection.msgdef, connection.digest)
            if problem is not None:
                self.undefined[connection.msgtype] = problem
                connection = connection._replace(msgdef=NO_DEFINITION)
            usable.append(connection)
        return usable


class BagDirectory:
    """The storage files that metadata.yaml lists, as one bag; implements the storage protocol of rosbags' Reader.

    Topics, counts and times come from the files. QoS comes from metadata.yaml, where users edit it. metadata_yaml: the
    content of that file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections: list[Connection] = []
        self.metadata = ReaderMetadata(0, _NEVER_NS, 0, 0, None, None, None, None)
        self.metadata_yaml: Mapping[str, Any] = {}
        self._storages: list[Any] = []
        self._merged_ids: dict[_Identity, int] = {}
        self._open_files: ExitStack | None = None

    def open(self) -> None:
        """Open the files. Raises BagError if metadata.yaml is unusable or lists a missing file."""
        self.metadata_yaml = _read_metadata_yaml(self.path)
        reader: Any = _STORAGES[self.metadata_yaml["storage_identifier"]]
        with ExitStack() as stack:
            for file in self._files(stack):
                storage = reader(file)
                storage.open()
                stack.callback(storage.close)
                self._storages.append(storage)
            self._storages.sort(key=lambda storage: storage.metadata.start_time)
            self._merge_connections()
            self.metadata = self._merged_metadata()
            self._open_files = stack.pop_all()

    def close(self) -> None:
        """Close the files."""
        stack, self._open_files = self._open_files, None
        self._storages, self._merged_ids = [], {}
        if stack is not None:
            stack.close()

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Return connection, time in ns and bytes of each message, by time; arguments as in rosbags' readers."""
        selected = {connection.id: connection for connection in connections}
        iterators = [self._messages_of(storage, selected, start, stop) for storage in self._storages]
        spans = [storage.metadata for storage in self._storages if storage.metadata.message_count]
        if all(span.end_time <= next_span.start_time + 1 for span, next_span in pairwise(spans)):
            return chain.from_iterable(iterators)
        return merge(*iterators, key=itemgetter(1))

    def _messages_of(
        self, storage: Any, selected: Mapping[int, Connection], start: int | None, stop: int | None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        merged_ids = {connection.id: self._merged_ids[_identity(connection)] for connection in storage.connections}
        connections = [connection for connection in storage.connections if merged_ids[connection.id] in selected]
        compressed = self.metadata.compression_mode == "message"
        for connection, time_ns, data in storage.messages(connections, start, stop) if connections else ():
            yield selected[merged_ids[connection.id]], time_ns, zstd.decompress(data) if compressed else data

    def _files(self, stack: ExitStack) -> list[Path]:
        """Return the storage files, decompressed to a temporary folder if the bag is compressed by file."""
        files = [self.path / Path(name).name for name in self.metadata_yaml["relative_file_paths"]]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise BagError(
                f"bag {str(self.path)!r} lacks {', '.join(missing)} of the {len(files)} files that metadata.yaml "
                "lists; copy the bag again, or rewrite its metadata.yaml with `ros2 bag reindex`"
            )
        for file in files:
            # is_file() first: a pipe that nobody writes to would be waited for.
            problem = foreign_file(file, "a bag") if file.is_file() else "is not a regular file; copy the bag again"
            if problem is not None:
                raise BagError(f"{str(self.path)!r} is not a readable bag: {file.name} {problem}")
        if _compression_mode(self.metadata_yaml) != "file":
            return files
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="anomseg-")))
        decompressed = [folder / file.stem for file in files]
        for file, target in zip(files, decompressed, strict=True):
            with zstd.open(file, "rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        return decompressed

    def _merge_connections(self) -> None:
        """Merge the equal connections of all files into one each, with the sum of their message counts."""
        groups: dict[_Identity, list[Connection]] = {}
        for storage in self._storages:
            for connection in storage.connections:
                groups.setdefault(_identity(connection), []).append(connection)
        self._merged_ids = {identity: number for number, identity in enumerate(groups, start=1)}
        qos = _declared_qos(self.metadata_yaml)
        self.connections = [
            group[0]._replace(
                id=self._merged_ids[identity],
                msgdef=next((one.msgdef for one in group if one.msgdef.data), NO_DEFINITION),
                msgcount=sum(one.msgcount for one in group),
                ext=qos.get(group[0].topic, group[0].ext),
                owner=self,
            )
            for identity, group in groups.items()
        ]

    def _merged_metadata(self) -> ReaderMetadata:
        not_empty = [storage.metadata for storage in self._storages if storage.metadata.message_count]
        start = min((one.start_time for one in not_empty), default=_NEVER_NS)
        end = max((one.end_time for one in not_empty), default=0)
        return ReaderMetadata(
            duration=end - start if not_empty else 0,
            start_time=start,
            end_time=end,
            message_count=sum(one.message_count for one in not_empty),
            compression_format=self.metadata_yaml.get("compression_format") or None,
            compression_mode=_compression_mode(self.metadata_yaml) or None,
            ros_distro=self.metadata_yaml.get("ros_distro"),
            custom=self.metadata_yaml.get("custom_data"),
        )


class AnyNameSqlite3Reader(Sqlite3Reader):
    """Reads a .db3 file of any name. rosbags opens it by a URI, in which ?, # and % must be escaped."""

    def __init__(self, path: Path) -> None:
        super().__init__(Path(quote(os.fsencode(path.absolute()))))


class ForeignMcapReader(McapReader):
    """Reads an .mcap file with schemas of any encoding. Schemas in encodings that ROS 2 does not use become empty."""

    def read_index(self) -> None:
        """Read the summary section, with foreign schemas emptied."""
        assert self.bio is not None
        file, start = self.bio, self.data_end
        file.seek(start)
        self._read_index_of(_without_foreign_schemas(_summary_records(file)), file, start)

    def meta_scan(self) -> None:
        """Collect schemas, channels and counts from the data section of a file without a summary."""
        assert self.bio is not None
        file, end = self.bio, self.data_end
        records: list[tuple[int, bytes]] = []
        times: list[int] = []
        counts: dict[int, int] = {}
        for opcode, payload in _data_records(file, self.data_start, end):
            if opcode == _MESSAGE:
                channel = int.from_bytes(payload[:2], "little")
                counts[channel] = counts.get(channel, 0) + 1
                times.append(int.from_bytes(payload[6:14], "little"))
            else:
                records.append((opcode, payload))
        self._read_index_of(_without_foreign_schemas(records), file, end)
        span = (min(times), max(times)) if times else (_NEVER_NS, 0)
        self.statistics = Statistics(
            len(times), len(self.schemas), len(self.channels), 0, 0, len(self.chunks), *span, counts
        )

    def _read_index_of(self, records: bytes, file: BinaryIO, data_end: int) -> None:
        self.bio, self.data_end = BytesIO(records), 0
        try:
            super().read_index()
        finally:
            self.bio, self.data_end = file, data_end


_STORAGES = {"mcap": ForeignMcapReader, "sqlite3": AnyNameSqlite3Reader}


def _read_metadata_yaml(folder: Path) -> Mapping[str, Any]:
    """Return rosbag2_bagfile_information of metadata.yaml. Raises BagError."""
    path = folder / "metadata.yaml"
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if not isinstance(document, Mapping):
            raise ValueError("expected the key rosbag2_bagfile_information")
        information = document["rosbag2_bagfile_information"]
        if (
            not isinstance(information["relative_file_paths"], list)
            or information["storage_identifier"] not in _STORAGES
        ):
            raise ValueError(f"expected relative_file_paths, and storage_identifier {' or '.join(_STORAGES)}")
        if _compression_mode(information) and information.get("compression_format") != "zstd":
            raise ValueError(f"compression_format {information.get('compression_format')!r}; only zstd is supported")
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise BagError(
            f"{str(folder)!r} is not a readable bag: its metadata.yaml: {reason}; `ros2 bag reindex` rewrites it"
        ) from error
    return dict(information)


def _compression_mode(metadata_yaml: Mapping[str, Any]) -> str:
    mode = str(metadata_yaml.get("compression_mode") or "").lower()
    return "" if mode == "none" else mode


def declared_counts(metadata_yaml: Mapping[str, Any]) -> dict[str, int]:
    """Return topic -> message count as stated in metadata.yaml, without unusable entries."""
    counts: dict[str, int] = {}
    for entry in metadata_yaml.get("topics_with_message_count") or ():
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            topic = str(entry["topic_metadata"]["name"])
            counts[topic] = counts.get(topic, 0) + int(entry["message_count"])
    return counts


def declared_duration_ns(metadata_yaml: Mapping[str, Any]) -> int | None:
    """Return the time from first to last message as stated in metadata.yaml, or None."""
    try:
        return int(metadata_yaml["duration"]["nanoseconds"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _declared_qos(metadata_yaml: Mapping[str, Any]) -> dict[str, ConnectionExtRosbag2]:
    """Return topic -> QoS of metadata.yaml, without unreadable entries."""
    extensions: dict[str, ConnectionExtRosbag2] = {}
    for entry in metadata_yaml.get("topics_with_message_count") or ():
        with suppress(KeyError, TypeError, AttributeError, ReaderError):
            topic = entry["topic_metadata"]
            qos = parse_qos(topic.get("offered_qos_profiles", []))
            if qos:
                extensions[topic["name"]] = ConnectionExtRosbag2(topic["serialization_format"], qos)
    return extensions


def _identity(connection: Connection) -> _Identity:
    return connection.topic, connection.msgtype, connection.digest, repr(connection.ext)


@cache
def _definition_problem(name: str, definition: MessageDefinition, digest: str) -> str | None:
    """Return why the bag's definition of a type cannot be used to deserialize messages, or None."""
    if definition.format == MessageDefinitionFormat.NONE:
        return None
    try:
        store = get_typestore(Stores.EMPTY)
        if definition.format == MessageDefinitionFormat.MSG:
            store.register(get_types_from_msg(definition.data, name))
        else:
            for text in _idl_parts(definition.data):
                store.register(get_types_from_idl(text))
        actual = store.hash_rihs01(name) if digest else ""
    except Exception as error:  # on foreign definitions, the parser raises any exception, not only its own
        return f"its definition cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
    return None if actual == digest else f"its definition has the hash {actual}, but the bag states {digest}"


def _idl_parts(text: str) -> list[str]:
    line = "=" * 80 + "\n"
    if not text.startswith(f"{line}IDL: "):
        return [text]
    return [part.split("\n", 1)[1] for part in text.split(line)[1:]]


def _summary_records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    while len(head := file.read(9)) == 9:
        yield head[0], file.read(int.from_bytes(head[1:], "little"))
        if head[0] == _FOOTER:
            return


def _data_records(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the schemas, channels and messages (first 22 bytes only) of a file or chunk and of the chunks in it."""
    file.seek(start)
    while file.tell() < end and len(head := file.read(9)) == 9 and head[0] != _DATA_END:
        opcode, size = head[0], int.from_bytes(head[1:], "little")
        if opcode in (_SCHEMA, _CHANNEL):
            yield opcode, _exactly(file, size)
        elif opcode == _MESSAGE:
            yield opcode, _exactly(file, 22)
            file.seek(size - 22, os.SEEK_CUR)
        elif opcode == _CHUNK:
            chunk = _decompressed_chunk(_exactly(file, size))
            yield from _data_records(BytesIO(chunk), 0, len(chunk))
        else:
            file.seek(size, os.SEEK_CUR)
    if file.tell() > end + 9:
        raise EOFError("its last record is cut off")


def _decompressed_chunk(chunk: bytes) -> bytes:
    size, crc, name_bytes = (int.from_bytes(chunk[a:b], "little") for a, b in ((16, 24), (24, 28), (28, 32)))
    name = chunk[32 : 32 + name_bytes].decode()
    return decompress(chunk[32 + name_bytes + 8 :], name, size, crc)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError(f"a record has {len(data)} of {size} bytes")
    return data


def _without_foreign_schemas(records: Collection[tuple[int, bytes]] | Iterator[tuple[int, bytes]]) -> bytes:
    """Return MCAP records as bytes, with foreign schemas emptied and the footer opcode at the end."""
    serialized = bytearray()
    for opcode, payload in records:
        payload = _emptied_if_foreign(payload) if opcode == _SCHEMA else payload
        serialized += bytes([opcode]) + len(payload).to_bytes(8, "little") + payload
    return bytes(serialized) + bytes([_FOOTER])


def _emptied_if_foreign(schema: bytes) -> bytes:
    """Return a schema's payload (id, name, encoding, data), or only id and name if ROS 2 does not use its encoding."""
    name_end = 6 + int.from_bytes(schema[2:6], "little")
    encoding_bytes = int.from_bytes(schema[name_end : name_end + 4], "little")
    encoding = schema[name_end + 4 : name_end + 4 + encoding_bytes]
    return schema if encoding in _READABLE_SCHEMAS else schema[:name_end] + bytes(8)
