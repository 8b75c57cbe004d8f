"""The outputs of an ONNX graph: cut a file down to the wanted ones, and compare a graph with its bundle.

ONNX Runtime computes every node of a graph, whichever outputs are fetched. So unwanted scores are cut off. The onnx
package could do that, but it is larger than the rest of the run-time half. An ONNX file is a protocol buffer: nested
records of (field number, bytes). Only the fields named below (onnx.proto, ONNX IR version 3 and later) are read; all
others are copied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from anomseg_ros.core.bundle import GRAPH_INPUT, LABELS_OUTPUT, Bundle
from anomseg_ros.errors import BackendError

MODEL_GRAPH = 7
GRAPH_NODE = 1
GRAPH_OUTPUT = 12
NODE_INPUT, NODE_OUTPUT, NODE_ATTRIBUTE = 1, 2, 5
VALUE_NAME = 1
ATTRIBUTE_GRAPHS = (6, 11)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field: its number, its payload, and all its bytes with the tag."""

    number: int
    payload: memoryview
    whole: memoryview


def next_outputs(wanted: frozenset[str], current: frozenset[str]) -> frozenset[str] | None:
    """Return the outputs of the next session, None where the current session computes what is wanted and nothing else.

    Labels stay once they were wanted: their subscribers come and go, and a new session each time would cost too much.
    """
    scores = wanted - {LABELS_OUTPUT}
    if wanted <= current and (not scores or scores == current - {LABELS_OUTPUT}):
        return None
    return wanted | (current & {LABELS_OUTPUT})


def check_graph(
    bundle: Bundle,
    inputs: list[tuple[str, str, list[Any]]],
    outputs: Mapping[str, str],
    type_names: Mapping[str, str],
) -> None:
    """Raise BackendError unless a graph has the input and the outputs that bundle.yaml describes.

    Args:
        bundle: what the graph is from.
        inputs: (name, type, shape) of the graph's inputs.
        outputs: name -> type of the graph's outputs.
        type_names: numpy's name of a type -> the engine's name.
    """
    spec = bundle.contract.input
    expected = [(GRAPH_INPUT, type_names["uint8"], [1, spec.height_px, spec.width_px, 3])]
    if inputs != expected:
        raise BackendError(f"{bundle.graph_path} is not an anomseg graph: its inputs are {inputs}, expected {expected}")
    for output in bundle.contract.outputs:
        if outputs.get(output.name) != type_names.get(output.dtype):
            raise BackendError(
                f"{bundle.graph_path} is not the graph that bundle.yaml describes: output {output.name!r} should be "
                f"{output.dtype}, the graph's outputs are {outputs}"
            )


def keep_outputs(model: bytes, names: Collection[str]) -> bytes:
    """Return the ONNX model with only the outputs `names` and the nodes they need. Raises BackendError."""
    try:
        parts = [
            _cut_graph(field, names) if field.number == MODEL_GRAPH else bytes(field.whole) for field in _fields(model)
        ]
    except (IndexError, ValueError, RecursionError) as error:
        raise BackendError(
            f"the graph is not an ONNX file ({error}); is it the one that `anomseg export` wrote?"
        ) from error
    return b"".join(parts)


def _cut_graph(graph: Field, names: Collection[str]) -> bytes:
    fields = list(_fields(graph.payload))
    needed_nodes = iter(_needed_nodes([field.payload for field in fields if field.number == GRAPH_NODE], set(names)))

    def is_wanted(field: Field) -> bool:
        if field.number == GRAPH_NODE:
            return next(needed_nodes)
        return field.number != GRAPH_OUTPUT or _strings(field.payload, VALUE_NAME)[0] in names

    content = b"".join(bytes(field.whole) for field in fields if is_wanted(field))
    return _varint(MODEL_GRAPH << 3 | _BYTES) + _varint(len(content)) + content


def _needed_nodes(nodes: list[memoryview], needed: set[str]) -> list[bool]:
    """Return which nodes compute the values `needed`. Nodes are in topological order, as ONNX requires."""
    wanted = [False] * len(nodes)
    for index in range(len(nodes) - 1, -1, -1):
        if needed.intersection(_strings(nodes[index], NODE_OUTPUT)):
            wanted[index] = True
            needed.update(_node_inputs(nodes[index]))
    return wanted


def _node_inputs(node: memoryview) -> list[str]:
    """Return the values that a node reads, also those that its nested graphs read."""
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
