"""MCAP files written record by record (mcap.dev/spec), for channels that writers of ROS 2 bags do not create."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"\x89MCAP0\r\n"


@dataclass(frozen=True)
class Topic:
    """A channel with its schema and its messages: (time in ns, bytes)."""

    name: str
    type: str
    messages: tuple[tuple[int, bytes], ...]
    encoding: str = "cdr"
    schema_encoding: str = "ros2msg"
    schema: bytes = b""


def write_mcap(
    path: Path, topics: list[Topic], *, summary: bool = True, chunked: bool = False, stated: int | None = None
) -> Path:
    """Write a file.

    summary: with index and statistics; chunked: all in one uncompressed chunk; stated: number of messages of the first
    topic in the statistics.
    """
    described = b"".join(
        record(3, struct.pack("<H", n) + text(one.type) + text(one.schema_encoding) + sized(one.schema))
        + record(4, struct.pack("<HH", n, n) + text(one.name) + text(one.encoding) + struct.pack("<I", 0))
        for n, one in enumerate(topics, start=1)
    )
    messages = sorted((time, n, data) for n, one in enumerate(topics, start=1) for time, data in one.messages)
    body = described + b"".join(record(5, struct.pack("<HIQQ", n, 0, time, time) + data) for time, n, data in messages)
    first, last = messages[0][0], messages[-1][0]
    if chunked:
        body = record(
            6, struct.pack("<QQQI", first, last, len(body), 0) + text("") + struct.pack("<Q", len(body)) + body
        )
    head = MAGIC + record(1, text("ros2") + text("test"))
    data = head + body + record(15, struct.pack("<I", 0))
    if summary:
        counts = {n: len(one.messages) for n, one in enumerate(topics, start=1)}
        counts[1] = counts[1] if stated is None else stated
        pairs = b"".join(struct.pack("<HQ", *pair) for pair in counts.items())
        statistics = struct.pack(
            "<QHIIIIQQ", sum(counts.values()), len(topics), len(topics), 0, 0, int(chunked), first, last
        )
        index = described + record(11, statistics + sized(pairs))
        path.write_bytes(data + index + record(2, struct.pack("<QQI", len(data), 0, 0)) + MAGIC)
    else:
        path.write_bytes(data + record(2, struct.pack("<QQI", 0, 0, 0)) + MAGIC)
    return path


def record(opcode: int, payload: bytes) -> bytes:
    """Return a record."""
    return bytes([opcode]) + struct.pack("<Q", len(payload)) + payload


def text(value: str) -> bytes:
    """Return a string in the encoding of MCAP."""
    return sized(value.encode())


def sized(value: bytes) -> bytes:
    """Return bytes prefixed with their length."""
    return struct.pack("<I", len(value)) + value
