"""An ONNX graph whose nodes and constants are found by value names, and can be changed. Call `finish` at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from anomseg_ros.errors import CompressionError

Array = npt.NDArray[Any]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm")


class Graph:
    """The main graph of an ONNX model: its nodes, constants and shapes, indexed by value name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index a copy of a model."""
        self.model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self.nodes: list[NodeProto] = list(self.model.graph.node)
        self.outputs = tuple(value.name for value in self.model.graph.output)
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        self._name_count = 0
        self._added: dict[tuple[Any, ...], str] = {}
        self._take_constant_nodes()
        self.index()

    def index(self) -> None:
        """Find producers, consumers and shapes again after nodes were changed."""
        self._producers = {name: node for node in self.nodes for name in node.output}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._consumers.setdefault(name, []).append(node)
        values = (*self.model.graph.value_info, *self.model.graph.input, *self.model.graph.output)
        self._types = {value.name: value.type.tensor_type for value in values}

    def producer(self, name: str) -> NodeProto | None:
        """Return the node that computes a value, None for an input or constant."""
        return self._producers.get(name)

    def consumers(self, name: str) -> list[NodeProto]:
        """Return the nodes that read a value."""
        return list(self._consumers.get(name, ()))

    def only_consumer(self, name: str) -> NodeProto | None:
        """Return the one node that reads a value; None for several or no readers, and for outputs of the graph."""
        readers = self.consumers(name)
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def constant(self, name: str) -> Array | None:
        """Return a constant's value, None for a computed value."""
        return self._constants.get(name)

    def constants_of(self, node: NodeProto) -> list[Array]:
        """Return those inputs of a node that are constants."""
        return [self._constants[name] for name in node.input if name in self._constants]

    def bias(self, node: NodeProto) -> Array | None:
        """Return the constant that is a node's third input, such as a convolution's bias; None without one."""
        return self._constants.get(node.input[2]) if len(node.input) > 2 else None

    def is_float(self, name: str) -> bool:
        """Return whether a value is computed and float32."""
        return name in self._types and self._types[name].elem_type == onnx.TensorProto.FLOAT

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a value's shape. Raises CompressionError where it is not static."""
        if name in self._constants:
            return tuple(self._constants[name].shape)
        value_type = self._types.get(name)
        sizes = [] if value_type is None else [dimension.dim_value for dimension in value_type.shape.dim]
        if value_type is None or not value_type.HasField("shape") or min(sizes, default=1) < 1:
            raise CompressionError(
                f"the size of {name!r} in the graph is not known; export the checkpoint again at a fixed size"
            )
        return tuple(sizes)

    def add_constant(self, value: Array, what: str) -> str:
        """Add a constant and return its name. Equal arrays for the same purpose share one constant, as the strips of a
        classifier share their weights."""
        array = np.asarray(value)
        key = (what, array.shape, array.dtype.str, hashlib.sha256(array.tobytes()).digest())
        name = self._added.get(key)
        if name is None or name not in self._constants:
            name = self._added[key] = self.new_name(what)
            self._constants[name] = array
        return name

    def new_name(self, what: str) -> str:
        """Return a name that is not in use."""
        while True:
            self._name_count += 1
            name = f"{what}~{self._name_count}"
            if name not in self._constants and name not in self._producers:
                return name

    def node(self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> NodeProto:
        """Return a new node with one output, which is not yet in the graph."""
        output = output or self.new_name(op.lower())
        return helper.make_node(op, list(inputs), [output], name=f"{output}:{op}", **attributes)

    def replace(self, old: Iterable[NodeProto], new: Iterable[NodeProto]) -> None:
        """Exchange nodes, then sort all nodes so that each follows those it reads from."""
        removed = {id(node) for node in old}
        self.nodes = [node for node in self.nodes if id(node) not in removed] + list(new)
        makers = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        sorter: TopologicalSorter[int] = TopologicalSorter(dict.fromkeys(range(len(self.nodes)), ()))
        for index, node in enumerate(self.nodes):
            sorter.add(index, *{makers[name] for name in node.input if name in makers})
        self.nodes = [self.nodes[index] for index in sorter.static_order()]
        self.index()

    def infer(self) -> None:
        """Infer the shapes of new values."""
        fresh = Graph(self.finish())
        self.model, self.nodes, self._constants = fresh.model, fresh.nodes, fresh._constants
        self.index()

    def finish(self) -> onnx.ModelProto:
        """Return the model as it is now, without what no output needs."""
        self._drop_unused()
        used = {name for node in self.nodes for name in node.input}
        tensors = [numpy_helper.from_array(value, name) for name, value in self._constants.items() if name in used]
        finished = onnx.ModelProto()
        finished.CopyFrom(self.model)
        for field, items in (("node", self.nodes), ("initializer", tensors), ("value_info", [])):
            finished.graph.ClearField(field)
            getattr(finished.graph, field).extend(items)
        return finished

    def _take_constant_nodes(self) -> None:
        """Turn nodes that give constants into initializers: Constant, and ConstantOfShape for a scalar."""
        for node in [node for node in self.nodes if node.op_type in ("Constant", "ConstantOfShape")]:
            value = attributes(node).get("value")
            if node.op_type == "Constant" and value is not None:
                self._constants[node.output[0]] = numpy_helper.to_array(value)
                self.nodes.remove(node)
            elif node.op_type == "ConstantOfShape":
                shape = self._constants.get(node.input[0])
                if shape is not None and shape.size == 0:
                    filled = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
                    self._constants[node.output[0]] = filled.reshape(())
                    self.nodes.remove(node)

    def _drop_unused(self) -> None:
        needed, used = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                used.append(node)
                needed.update(node.input)
        self.nodes = used[::-1]
        self.index()


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def is_layer(graph: Graph, node: NodeProto) -> bool:
    """Return whether a node of the body has weights of its own: a convolution, or a product with a constant matrix."""
    if node.op_type == "MatMul":
        weight = graph.constant(node.input[1])
        return weight is not None and weight.ndim == 2
    return node.op_type in WEIGHTED


def head_nodes(graph: Graph) -> list[NodeProto]:
    """Return the nodes that lead to no weighted layer: upsampling, scores and labels."""
    before_layers: set[str] = set()
    head = []
    for node in reversed(graph.nodes):
        if node.op_type in WEIGHTED or before_layers.intersection(node.output):
            before_layers.update(node.input)
        else:
            head.append(node)
    return head[::-1]


def output_layers(graph: Graph) -> list[NodeProto]:
    """Return the classifiers: the weighted layers whose results only the head reads."""
    head = {id(node) for node in head_nodes(graph)}
    readers = [(node, graph.consumers(node.output[0])) for node in graph.nodes if node.op_type in WEIGHTED]
    return [node for node, read_by in readers if read_by and all(id(one) in head for one in read_by)]


def name_nodes(graph: Graph) -> None:
    """Give every node a unique name: layers are chosen by name."""
    used: set[str] = set()
    for index, node in enumerate(graph.nodes):
        if not node.name or node.name in used:
            node.name = f"{node.op_type}_{index}"
        used.add(node.name)


def with_followers(graph: Graph, chosen: Collection[str], layers: Collection[str]) -> list[str]:
    """Return the names of the chosen layers and of the nodes after each, up to the next of all `layers`."""
    names, inside = [], False
    for node in graph.nodes:
        inside = node.name in chosen if node.name in layers else inside
        if inside:
            names.append(node.name)
    return names
