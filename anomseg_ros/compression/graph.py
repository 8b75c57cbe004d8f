"""An ONNX graph that can be looked at and changed by value names. Whoever changes it calls `finish` at the end."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from anomseg_ros.errors import CompressionError

Array = npt.NDArray[Any]


class Graph:
    """The main graph of an ONNX model: its nodes, constants and shapes, indexed by value name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index a model, whose graph this object changes in place."""
        self.model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self.nodes: list[NodeProto] = list(self.model.graph.node)
        self.outputs = tuple(value.name for value in self.model.graph.output)
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        self._named = 0
        self._added: dict[tuple[Any, ...], str] = {}
        self._take_constant_nodes()
        self.index()

    def index(self) -> None:
        """Look up producers, consumers and shapes again, after nodes were changed."""
        self._producers = {name: node for node in self.nodes for name in node.output}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._consumers.setdefault(name, []).append(node)
        values = (*self.model.graph.value_info, *self.model.graph.input, *self.model.graph.output)
        self._types = {value.name: value.type.tensor_type for value in values}

    def producer(self, name: str) -> NodeProto | None:
        """Return the node that makes a value, None for an input or constant."""
        return self._producers.get(name)

    def consumers(self, name: str) -> list[NodeProto]:
        """Return the nodes that read a value."""
        return list(self._consumers.get(name, ()))

    def only_consumer(self, name: str) -> NodeProto | None:
        """Return the one node that reads a value; None where there are more, none, or it is an output of the graph."""
        readers = self.consumers(name)
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def constant(self, name: str) -> Array | None:
        """Return a constant's value, None for anything computed."""
        return self._constants.get(name)

    def constants_of(self, node: NodeProto) -> list[Array]:
        """Return those inputs of a node that are constants."""
        found = (self.constant(name) for name in node.input)
        return [value for value in found if value is not None]

    def is_float(self, name: str) -> bool:
        """Return whether a value is computed, in float32."""
        return name in self._types and self._types[name].elem_type == onnx.TensorProto.FLOAT

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a value's shape. Raises CompressionError where it is not static."""
        constant = self._constants.get(name)
        if constant is not None:
            return tuple(constant.shape)
        known = self._types.get(name)
        sizes = [] if known is None else [dimension.dim_value for dimension in known.shape.dim]
        if known is None or not known.HasField("shape") or not all(sizes):
            raise CompressionError(
                f"the size of {name!r} in the graph is not known; export the checkpoint again at a fixed size"
            )
        return tuple(sizes)

    def add_constant(self, value: Array, what: str) -> str:
        """Keep an array as a constant; return its name. The same array for the same purpose is kept once: the strips of
        a classifier share their weights."""
        array = np.asarray(value)
        key = (what, array.shape, array.dtype.str, hashlib.sha256(array.tobytes()).digest())
        known = self._added.get(key)
        if known is None or known not in self._constants:
            known = self._added[key] = self.new_name(what)
            self._constants[known] = array
        return known

    def new_name(self, what: str) -> str:
        """Return a name that nothing has yet."""
        while True:
            self._named += 1
            name = f"{what}~{self._named}"
            if name not in self._constants and name not in self._producers:
                return name

    def node(self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> NodeProto:
        """Return a new node of one output, not yet in the graph."""
        output = output or self.new_name(op.lower())
        return helper.make_node(op, list(inputs), [output], name=f"{output}:{op}", **attributes)

    def replace(self, old: Iterable[NodeProto], new: Iterable[NodeProto]) -> None:
        """Put nodes in the place of others and sort, so that each comes after those it reads from."""
        gone = {id(node) for node in old}
        self.nodes = [node for node in self.nodes if id(node) not in gone] + list(new)
        self._sort()
        self.index()

    def infer(self) -> None:
        """Find the shapes of values that changes have made."""
        fresh = Graph(self.finish())
        self.model, self.nodes, self._constants = fresh.model, fresh.nodes, fresh._constants
        self.index()

    def finish(self) -> onnx.ModelProto:
        """Return the model as it is now, without what no output needs."""
        self._drop_unused()
        used = {name for node in self.nodes for name in node.input}
        tensors = [numpy_helper.from_array(value, name) for name, value in self._constants.items() if name in used]
        kept = onnx.ModelProto()
        kept.CopyFrom(self.model)
        for part, items in ((kept.graph.node, self.nodes), (kept.graph.initializer, tensors)):
            copies = [type(item).FromString(item.SerializeToString()) for item in items]
            del part[:]
            part.extend(copies)
        del kept.graph.value_info[:]
        return kept

    def _take_constant_nodes(self) -> None:
        """Constants may be nodes too, scalars also filled-in shapes; from here on they are initializers."""
        for node in [node for node in self.nodes if node.op_type == "ConstantOfShape"]:
            shape, value = self._constants.get(node.input[0]), attributes(node).get("value")
            if shape is not None and shape.size == 0:
                filled = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
                self._constants[node.output[0]] = filled.reshape(())
                self.nodes.remove(node)
        for node in [node for node in self.nodes if node.op_type == "Constant"]:
            value = attributes(node).get("value")
            if value is not None:
                self._constants[node.output[0]] = numpy_helper.to_array(value)
                self.nodes.remove(node)

    def _drop_unused(self) -> None:
        needed = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        self.index()

    def _sort(self) -> None:
        made = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        needs = [{made[name] for name in node.input if name in made} for node in self.nodes]
        readers: dict[int, list[int]] = {}
        for index, sources in enumerate(needs):
            for source in sources:
                readers.setdefault(source, []).append(index)
        waiting = [len(sources) for sources in needs]
        ready = deque(index for index, count in enumerate(waiting) if count == 0)
        order = []
        while ready:
            index = ready.popleft()
            order.append(self.nodes[index])
            for reader in readers.get(index, ()):
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    ready.append(reader)
        self.nodes = order


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
