"""Cuts an ONNX file down to the outputs that are wanted, so that no time goes into scores that nobody asked for.

ONNX Runtime computes every node of a graph, whichever outputs are fetched, and the onnx package, which could cut, is
larger than the rest of the run-time half. An ONNX file is a protocol buffer: nested records of (field number, bytes).
Only the fields named below (onnx.proto, ONNX IR version 3 and later) are looked at; all else is copied as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from anomseg_ros.errors import BackendError

MODEL_GRAPH = 7
GRAPH_NODE = 1
GRAPH_OUTPUT = 12
NODE_INPUT, NODE_OUTPUT, NODE_ATTRIBUTE = 1, 2, 5
VALUE_NAME = 1
ATTRIBUTE_GRAPHS = (6, 11)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field: its number, its payload, and the whole of it with its tag."""

    number: int
    payload: memoryview
    whole: memoryview


def keep_outputs(model: bytes, names: Collection[str]) -> bytes:
    """Return the ONNX model with only the outputs `names` and the nodes they need. Raises BackendError."""
    try:
        parts = [
            _cut_graph(field, names) if field.number == MODEL_GRAPH else bytes(field.whole) for field in _fields(model)
        ]
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise BackendError(
            f"the graph is not an ONNX file ({error}); is it the one that `anomseg export` wrote?"
        ) from error
    return b"".join(parts)


def _cut_graph(graph: Field, names: Collection[str]) -> bytes:
    fields = list(_fields(graph.payload))
    needed_nodes = _needed_nodes([field.payload for field in fields if field.number == GRAPH_NODE], set(names))
    kept = []
    nodes = iter(needed_nodes)
    for field in fields:
        if field.number == GRAPH_NODE:
            wanted = next(nodes)
        elif field.number == GRAPH_OUTPUT:
            wanted = _strings(field.payload, VALUE_NAME)[0] in names
        else:
            wanted = True
        if wanted:
            kept.append(bytes(field.whole))
    content = b"".join(kept)
    return _varint(MODEL_GRAPH << 3 | _BYTES) + _varint(len(content)) + content


def _needed_nodes(nodes: list[memoryview], needed: set[str]) -> list[bool]:
    """Return which nodes the values `needed` depend on. Nodes are in topological order, as ONNX demands."""
    wanted = [False] * len(nodes)
    for index in range(len(nodes) - 1, -1, -1):
        if needed.intersection(_strings(nodes[index], NODE_OUTPUT)):
            wanted[index] = True
            needed.update(_node_inputs(nodes[index]))
    return wanted


def _node_inputs(node: memoryview) -> list[str]:
    """Return the values a node reads, those that a nested graph takes from outside included."""
    names = _strings(node, NODE_INPUT)
    for attribute in _fields(node):
        if attribute.number != NODE_ATTRIBUTE:
            continue
        for graph in _fields(attribute.payload):
            if graph.number in ATTRIBUTE_GRAPHS:
                inner = [field.payload for field in _fields(graph.payload) if field.number == GRAPH_NODE]
                names += [name for payload in inner for name in _node_inputs(payload)]
    return names


def _strings(record: memoryview, number: int) -> list[str]:
    return [bytes(field.payload).decode() for field in _fields(record) if field.number == number]


def _fields(record: bytes | memoryview) -> Iterator[Field]:
    view = memoryview(record)
    position = 0
    while position < len(view):
        start = position
        tag, position = _read_varint(view, position)
        wire_type = tag & 7
        if wire_type == _BYTES:
            size, position = _read_varint(view, position)
            end = position + size
        elif wire_type == _VARINT:
            _, end = _read_varint(view, position)
        elif wire_type in (_FIXED32, _FIXED64):
            end = position + (4 if wire_type == _FIXED32 else 8)
        else:
            raise ValueError(f"unknown wire type {wire_type} at byte {start}")
        if end > len(view):
            raise ValueError(f"the record ends early, at byte {len(view)} of {end}")
        yield Field(tag >> 3, view[position:end], view[start:end])
        position = end


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
