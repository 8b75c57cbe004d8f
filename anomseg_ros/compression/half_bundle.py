"""Turn a float bundle into one for GPUs, in half precision or float32; the loss is measured before it is written.

A network may lose too much in a few layers, such as the first ones of ENet, whose pooling compares values that hardly
differ. Those layers stay in float32: the costliest ones, as few as are enough (sensitivity.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx

from anomseg_ros.compression.calibration_frames import drawn_frames
from anomseg_ros.compression.drift import compressed_contract, measure_drift, require
from anomseg_ros.compression.half import HALF, in_half_precision, layers_in_half, rounded_like
from anomseg_ros.compression.ranges import plain_session
from anomseg_ros.compression.sensitivity import AUTO, NONE, PROBES, Goal, checked_layers, find_float_layers
from anomseg_ros.compression.step_request import StepRequest, require_float
from anomseg_ros.core.bundle import GPU, GRAPH_FILE, TORCH_FILE, Bundle, save_bundle
from anomseg_ros.core.preprocess import tensor_from_frame
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.resources import own_checkpoint
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError, ConfigError, unknown_name

REMEDY = "use the other type of half precision, or stay with float32"
FP32 = "fp32"
PRECISIONS = (FP32, *HALF)
MAX_FLOAT = 0.25
"""Share of the layers that may stay in float32."""


@dataclass(frozen=True, kw_only=True)
class HalfRequest(StepRequest):
    """How to convert.

    precision: "fp16" (10 bits of fraction, up to 65504), "bf16" (7 bits, the range of float32), or "fp32" (only the
    form of the graph changes). checkpoint: None for the bundle's own, see own_checkpoint; with one, a graph in the form
    for CPUs is exported in the form for GPUs first. keep_float: layers to
    leave in float32: "auto" (as many as the tolerance needs, found on frames that nothing is measured on), "none", or
    names of nodes of the graph.
    """

    precision: str = "fp16"
    keep_float: str | tuple[str, ...] = AUTO

    def check(self) -> None:
        """Raise BundleError, CompressionError or ConfigError for requests that cannot work."""
        if self.precision not in PRECISIONS:
            raise ConfigError(unknown_name("precision", self.precision, PRECISIONS))
        require_float(self.bundle)
        self.bundle.require_program(GRAPH_FILE)
        if self.precision == FP32 and self.source is None:
            raise CompressionError(_no_source(self.bundle))
        if self.precision != FP32 and not self.frames:
            raise ConfigError("give `frames` to measure on: folders of camera frames, or datasets as NAME=PATH")
        super().check()

    @cached_property
    def source(self) -> Path | None:
        """The checkpoint to export in the form for GPUs, None if the graph has that form, or there is none."""
        if self.bundle.contract.target == GPU:
            return None
        return self.checkpoint or own_checkpoint(self.bundle)


def convert_bundle(request: HalfRequest, progress: Progress = no_progress) -> Bundle:
    """Return the written bundle.

    The drift is that of a float32 graph that rounds as the new one does, since ONNX Runtime lacks kernels of these
    types on CPUs. A program of torch is converted as well, and measured as it is. Raises CompressionError, and writes
    nothing, if the drift of either is too much.
    """
    request.check()
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        if request.precision == FP32:
            return _export_for_gpu(request, request.output)
        probes, frames = _draw_frames(request, progress)  # unreadable frames are an error before any export
        source = request.bundle if request.source is None else _export_for_gpu(request, Path(folder, "gpu"))
        return _convert(request, source, probes, frames, Path(folder), progress)


def _export_for_gpu(request: HalfRequest, output: Path) -> Bundle:
    # torch takes seconds to import, and graphs that have the form for GPUs do not need it.
    from anomseg_ros.compression.reexport import export_for_gpu

    assert request.source is not None
    return export_for_gpu(request.bundle, request.source, output, overwrite=request.overwrite)


def _convert(
    request: HalfRequest,
    source: Bundle,
    probes: Sequence[RgbImage],
    frames: Sequence[RgbImage],
    folder: Path,
    progress: Progress,
) -> Bundle:
    """Convert the programs of a bundle, and write the new one.

    Args:
        request: how to convert.
        source: the parent itself, or its form for GPUs.
        probes: frames for the search of layers that stay in float32.
        frames: frames to measure the drift on.
        folder: for files in between.
        progress: told what is done.

    Raises:
        CompressionError: the drift is too much.
    """
    parent, precision = request.bundle, request.precision
    model = onnx.load(source.graph_path)
    layers = layers_in_half(model, precision)
    float_layers, noise = _find_float_layers(request, model, layers, probes, progress)
    typed, rounded = folder / "typed.onnx", folder / "rounded.onnx"
    onnx.save(in_half_precision(model, precision, float_layers), typed)
    onnx.save(rounded_like(model, precision, float_layers), rounded)
    stand_in = save_bundle(parent.contract, {GRAPH_FILE: rounded}, folder / "rounded")
    drift = measure_drift(parent, stand_in, frames, request.guard, progress=progress)
    drift = require(drift, request.guard.accept_drift, REMEDY)
    files = {GRAPH_FILE: typed}
    settings: dict[str, Any] = {"seed": request.seed, "float_layers": list(float_layers), "noise_db": noise}
    if TORCH_FILE in source.contract.files:
        files[TORCH_FILE] = _convert_program(source, precision, folder)
        settings["torch_program"] = _program_drift(request, files[TORCH_FILE], frames, progress)
    method = f"{precision}, typed graph"
    if float_layers:
        method += f", {len(float_layers)} of {len(layers)} layers in float32"
    contract = compressed_contract(parent, precision, method, settings, drift)
    contract = replace(contract, target=source.contract.target)
    return save_bundle(contract, files, request.output, overwrite=request.overwrite)


def _no_source(bundle: Bundle) -> str:
    name = bundle.contract.name
    if bundle.contract.target == GPU:
        return f"bundle {name!r} is in float32 and has the form for GPUs already"
    return f"bundle {name!r} has no checkpoint to export in the form for GPUs; give the file as `checkpoint`"


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
