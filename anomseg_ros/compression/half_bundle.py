"""Turn a float bundle into one of half precision, for GPUs; the loss is measured before the bundle is written.

A network may lose too much in a few layers, such as the first ones of ENet, whose pooling compares values that hardly
differ. Those layers stay in float32: the costliest ones, as few as are enough (sensitivity.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from anomseg_ros.compression.calibration_frames import drawn_frames
from anomseg_ros.compression.drift import compressed_contract, measure_drift, require
from anomseg_ros.compression.half import HALF, in_half_precision, layers_in_half, rounded_like
from anomseg_ros.compression.ranges import plain_session
from anomseg_ros.compression.sensitivity import AUTO, NONE, PROBES, Goal, checked_layers, find_float_layers
from anomseg_ros.compression.step_request import StepRequest, require_float
from anomseg_ros.core.bundle import GRAPH_FILE, TORCH_FILE, Bundle, save_bundle
from anomseg_ros.core.preprocess import tensor_from_frame
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError, unknown_name

REMEDY = "use the other type of half precision, or stay with float32"
MAX_FLOAT = 0.25
"""Share of the layers that may stay in float32."""


@dataclass(frozen=True, kw_only=True)
class HalfRequest(StepRequest):
    """How to convert.

    precision: "fp16" (10 bits of fraction, up to 65504) or "bf16" (7 bits, the range of float32). keep_float: layers to
    leave in float32: "auto" (as many as the tolerance needs, found on frames that nothing is measured on), "none", or
    names of nodes of the graph.
    """

    precision: str = "fp16"
    keep_float: str | tuple[str, ...] = AUTO

    def check(self) -> None:
        """Raise BundleError, CompressionError or ConfigError for requests that cannot work."""
        if self.precision not in HALF:
            raise ConfigError(unknown_name("precision", self.precision, HALF))
        require_float(self.bundle)
        self.bundle.require_program(GRAPH_FILE)
        super().check()


def convert_bundle(request: HalfRequest, progress: Progress = no_progress) -> Bundle:
    """Return the written bundle.

    The drift is that of a float32 graph that rounds as the new one does, since ONNX Runtime lacks kernels of these
    types on CPUs. A program of torch is converted as well, and measured as it is. Raises CompressionError, and writes
    nothing, if the drift of either is too much.
    """
    request.check()
    parent, precision = request.bundle, request.precision
    probes, frames = _draw_frames(request, progress)
    model = onnx.load(parent.graph_path)
    layers = layers_in_half(model, precision)
    float_layers, noise = _find_float_layers(request, model, layers, probes, progress)
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        typed, rounded = Path(folder, "typed.onnx"), Path(folder, "rounded.onnx")
        onnx.save(in_half_precision(model, precision, float_layers), typed)
        onnx.save(rounded_like(model, precision, float_layers), rounded)
        stand_in = save_bundle(parent.contract, {GRAPH_FILE: rounded}, Path(folder, "rounded"))
        drift = measure_drift(parent, stand_in, frames, request.guard, progress=progress)
        drift = require(drift, request.guard.accept_drift, REMEDY)
        files = {GRAPH_FILE: typed}
        settings: dict[str, Any] = {"seed": request.seed, "float_layers": list(float_layers), "noise_db": noise}
        if TORCH_FILE in parent.contract.files:
            files[TORCH_FILE] = _convert_program(parent, precision, Path(folder))
            settings["torch_program"] = _program_drift(request, files[TORCH_FILE], frames, progress)
        method = f"{precision}, typed graph"
        if float_layers:
            method += f", {len(float_layers)} of {len(layers)} layers in float32"
        contract = compressed_contract(parent, precision, method, settings, drift)
        return save_bundle(contract, files, request.output, overwrite=request.overwrite)


def _draw_frames(request: HalfRequest, progress: Progress) -> tuple[list[RgbImage], list[RgbImage]]:
    """Return the frames for the search, a quarter of all at most, and the frames for measuring."""
    count = PROBES if request.keep_float == AUTO else 0
    frames = drawn_frames(request.frames, request.held_out_frames + count, seed=request.seed, progress=progress)
    count = min(count, len(frames) // 4)
    return frames[:count], frames[count:][: request.held_out_frames]


def _find_float_layers(
    request: HalfRequest,
    model: onnx.ModelProto,
    layers: Sequence[str],
    probes: Sequence[RgbImage],
    progress: Progress,
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return the layers to leave in float32 and what each layer costs. Raises CompressionError for unknown names."""
    if request.keep_float not in (AUTO, NONE):
        return checked_layers(request.keep_float, layers), {}
    if not probes:
        return (), {}
    tolerance = request.guard.tolerance
    goal = Goal(tolerance.label_agreement, tolerance.rank_correlation, int(MAX_FLOAT * len(layers)))
    tensors = [tensor_from_frame(frame, request.bundle.contract.input) for frame in probes]
    build = partial(rounded_like, model, request.precision)
    return find_float_layers(build, layers, plain_session(model), tensors, goal, progress)


def _convert_program(parent: Bundle, precision: str, folder: Path) -> Path:
    # torch takes seconds to import, and graphs do not need it.
    from anomseg_ros.backends.torch_graph import load_program
    from anomseg_ros.compression.half_torch import program_in_half_precision
    from anomseg_ros.networks.torch_program import save_program

    program = program_in_half_precision(load_program(parent.require_program(TORCH_FILE)), precision)
    return save_program(program, folder / TORCH_FILE)


def _program_drift(
    request: HalfRequest, program: Path, frames: Sequence[RgbImage], progress: Progress
) -> dict[str, Any]:
    """Return the drift of a program in the form of bundle.yaml. Raises CompressionError if it is too much."""
    child = save_bundle(request.bundle.contract, {TORCH_FILE: program}, program.with_name("program"))
    guard = replace(request.guard, datasets=())
    drift = measure_drift(
        request.bundle, child, frames, guard, child_backend="torch", child_provider="eager", progress=progress
    )
    plain = require(drift, request.guard.accept_drift, REMEDY).plain()
    return {name: plain[name] for name in ("label_agreement", "scores")}
