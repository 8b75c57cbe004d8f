"""Two forms of the labels in an exported graph: ONNX's ArgMax, or a chain of comparisons that gives the same labels.

TensorRT runs ArgMax over the class axis as TopK, which users report as slow (onnx-tensorrt issues 669, 671, 792). The
chain compares one class after the other with the best so far, and only a greater logit takes its place. So the first of
equal logits wins, as ArgMax has it. Which form is faster depends on the engine: `anomseg build` can measure it.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

ARGMAX, COMPARE = "argmax", "compare"
ARGMAX_FORMS = (ARGMAX, COMPARE)

CLASS_AXIS = 1


def with_comparisons(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with each ArgMax over the class axis, (1, C, …), replaced by a chain of comparisons in int32.

    A model without such an ArgMax comes back as it is.
    """
    chained = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = chained.graph
    sizes = {value.name: [one.dim_value for one in value.type.tensor_type.shape.dim] for value in graph.value_info}
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node.op_type)
    nodes: list[NodeProto] = []
    replaced = set()
    for node in graph.node:
        if not _is_over_classes(node) or len(sizes.get(node.input[0], ())) <= CLASS_AXIS:
            nodes.append(node)
            continue
        only_cast = set(readers[node.output[0]]) == {"Cast"}
        nodes += _chain(node, sizes[node.input[0]][CLASS_AXIS], only_cast, graph)
        replaced.add(node.output[0])
    kept = [value for value in graph.value_info if value.name not in replaced]  # their type may be another
    for field, items in (("node", nodes), ("value_info", kept)):
        graph.ClearField(field)
        getattr(graph, field).extend(items)
    return chained if replaced else model


def _is_over_classes(node: NodeProto) -> bool:
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    options = given.get("axis", 0), given.get("keepdims", 1), given.get("select_last_index", 0)
    return node.op_type == "ArgMax" and options == (CLASS_AXIS, 0, 0)


def _chain(node: NodeProto, classes: int, only_cast: bool, graph: onnx.GraphProto) -> list[NodeProto]:
    """Return the nodes in place of an ArgMax; what they need is added to the graph's constants."""
    name = node.output[0]

    def constant(value: int | list[int], kind: type) -> str:
        label = f"{name}:{kind.__name__}{value}"
        graph.initializer.append(numpy_helper.from_array(np.array(value, kind), label))
        return label

    logits = [f"{name}:logit{index}" for index in range(classes)]
    nodes = [helper.make_node("Split", [node.input[0]], logits, f"{name}:split", axis=CLASS_AXIS, num_outputs=classes)]
    best, index = logits[0], constant(0, np.int32)
    for number in range(1, classes):
        greater, chosen, larger = (f"{name}:{what}{number}" for what in ("greater", "index", "best"))
        nodes.append(helper.make_node("Greater", [logits[number], best], [greater], greater))
        nodes.append(helper.make_node("Where", [greater, constant(number, np.int32), index], [chosen], chosen))
        if number < classes - 1:
            nodes.append(helper.make_node("Max", [best, logits[number]], [larger], larger))
        best, index = larger, chosen
    squeezed = name if only_cast else f"{name}:int32"
    nodes.append(helper.make_node("Squeeze", [index, constant([CLASS_AXIS], np.int64)], [squeezed], f"{name}:squeeze"))
    if not only_cast:  # another operator may want what ArgMax gives
        nodes.append(helper.make_node("Cast", [squeezed], [name], f"{name}:cast", to=TensorProto.INT64))
    return nodes
