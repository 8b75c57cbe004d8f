"""A machine with a fake TensorRT: its engines run in ONNX Runtime, as wrong as a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from fake_tensorrt import read_plan

from anomseg_ros.backends.tensorrt_build import BuildOptions
from anomseg_ros.backends.tensorrt_library import load_library
from anomseg_ros.compression.engine_machines import TensorRtMachine
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.types import RgbImage

Change = Callable[[str, npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True)
class Gpu:
    name: str = "Orin"
    compute_capability: str = "8.7"
    multiprocessors: int = 16
    integrated: bool = True


class PlanBackend:
    """Runs the model of a fake plan. change: (output's name, its array) -> what the engine gives instead."""

    requested = actual = "tensorrt:gpu"

    def __init__(self, plan: bytes, change: Change) -> None:
        model = read_plan(plan)[1]
        self.operators = {node.op_type for node in onnx.load_from_string(model).graph.node}
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._change = change
        self.closed = False

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        arrays = self._session.run(list(outputs), {"image": tensor})
        return [self._change(name, array) for name, array in zip(outputs, arrays, strict=True)]

    def close(self) -> None:
        self.closed = True


class FakeMachine(TensorRtMachine):
    """Install the fake of tensorrt first. `opened` lists the backends, all of which should be closed in the end."""

    def __init__(self, device: int = 0) -> None:
        super().__init__(load_library(), Gpu())
        self.change: Change = lambda name, array: array
        self.opened: list[PlanBackend] = []
        self.closed = 0

    @property
    def builds(self) -> list[Any]:
        found: list[Any] = self.library.module.builds
        return found

    def close(self) -> None:
        self.closed += 1

    def entered(self) -> AbstractContextManager[object]:
        return nullcontext()

    def open_plan(self, bundle: Bundle, plan: bytes, outputs: Sequence[str], options: BuildOptions) -> PlanBackend:
        self.opened.append(PlanBackend(plan, self.change))
        return self.opened[-1]
