"""Frames in the colours of their classes, and a bundle that predicts exactly these classes from the colours.

With them a test determines where the detector sees road, buildings and anomalies. Red is road, blue is building, green
and olive are void. The score `void` is near 1 on green, 0.91 on olive and near 0 elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, Contract, InputSpec, OutputSpec, save_bundle
from anomseg_ros.core.labels import CITYSCAPES, VOID

HEIGHT_PX, WIDTH_PX = 128, 256
RED, BLUE, GREEN, OLIVE = (255, 0, 0), (0, 0, 255), (0, 255, 0), (120, 135, 0)
HORIZON_PX = 60


# Class -> weights of the channels (0 to 1) and bias. The logit is 20 on the colour of the class, below -15 on others.
LOGITS = {0: (40, -40, -40, -20), 1: (20, 20, 20, -40), 2: (-40, -40, 40, -20), 19: (-40, 40, -40, -20)}


def painted_bundle(folder: Path) -> Bundle:
    """Write the bundle: 128x256, classes of Cityscapes and void."""
    outputs = (
        OutputSpec("labels", "uint8", "train ids, 255 = void or unlabelled"),
        OutputSpec("void", "float32", "probability of the void class; higher = more anomalous"),
        OutputSpec("max_logit", "float32", "-max z; higher = more anomalous"),
    )
    classes, size = (*CITYSCAPES, VOID), InputSpec(HEIGHT_PX, WIDTH_PX)
    contract = Contract(1, "painted", "colors", "fp32", classes, size, outputs, {GRAPH_FILE: ""}, void_class=19)
    graph = folder.with_suffix(".onnx")
    onnx.save(_model(), graph)
    return save_bundle(contract, {GRAPH_FILE: graph}, folder)


def _model() -> onnx.ModelProto:
    table = np.full((4, 20), -40, np.float32)
    table[:3] = 0
    for index, logits in LOGITS.items():
        table[:, index] = logits
    train_ids = np.array([info.train_id for info in (*CITYSCAPES, VOID)], np.uint8)
    constants = {
        "weights": table[:3] / 255,
        "bias": table[3],
        "train_ids": train_ids,
        "void_class": np.array(19, np.int64),
        "classes": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "weights"], ["weighted"]),
        helper.make_node("Add", ["weighted", "bias"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=-1, keepdims=0),
        helper.make_node("Gather", ["train_ids", "best"], ["labels"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=-1),
        helper.make_node("Gather", ["shares", "void_class"], ["void"], axis=-1),
        helper.make_node("ReduceMax", ["logits", "classes"], ["largest"], keepdims=0),
        helper.make_node("Neg", ["largest"], ["max_logit"]),
    ]
    size = [1, HEIGHT_PX, WIDTH_PX]
    taken = [helper.make_tensor_value_info("image", TensorProto.UINT8, [*size, 3])]
    given = [
        helper.make_tensor_value_info(name, kind, size)
        for name, kind in (("labels", TensorProto.UINT8), ("void", TensorProto.FLOAT), ("max_logit", TensorProto.FLOAT))
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "colors", taken, given, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def without_road(bundle: Bundle, folder: Path) -> Path:
    """Write the same bundle with another name for its class road."""
    folder.mkdir()
    for file in bundle.directory.iterdir():
        text = file.read_bytes()
        (folder / file.name).write_bytes(text.replace(b"name: road\n", b"name: lawn\n"))
    return folder


def street(*, road: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return a frame uint8 (128, 256, 3) and its anomaly mask uint8 (128, 256).

    The frame has a road from the lower edge to the horizon and buildings elsewhere. An obstacle is on the road. A
    patch of the same size above the horizon is a false anomaly. Both are green above and olive below.
    """
    frame = np.full((HEIGHT_PX, WIDTH_PX, 3), BLUE, np.uint8)
    anomaly = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    if road:
        for row in range(HORIZON_PX, HEIGHT_PX):
            half_px = 8 + (row - HORIZON_PX)
            frame[row, WIDTH_PX // 2 - half_px : WIDTH_PX // 2 + half_px] = RED
    anomaly[90:102, 120:132] = 1
    for top, left in ((90, 120), (20, 30)):
        frame[top : top + 6, left : left + 12] = GREEN
        frame[top + 6 : top + 12, left : left + 12] = OLIVE
    return frame, anomaly
