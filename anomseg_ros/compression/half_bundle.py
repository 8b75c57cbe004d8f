"""Turn a float bundle into one of half precision, for GPUs; the loss is measured before the bundle is written."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from anomseg_ros.compression.calibration_frames import drawn_frames
from anomseg_ros.compression.drift import compressed_contract, measure_drift, require
from anomseg_ros.compression.half import HALF, in_half_precision, rounded_like
from anomseg_ros.compression.step_request import StepRequest, require_float
from anomseg_ros.core.bundle import GRAPH_FILE, Bundle, save_bundle
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.errors import ConfigError, unknown_name

REMEDY = "use the other type of half precision, or stay with float32"


@dataclass(frozen=True, kw_only=True)
class HalfRequest(StepRequest):
    """precision: "fp16" (10 bits of fraction, up to 65504) or "bf16" (7 bits, the range of float32)."""

    precision: str = "fp16"

    def check(self) -> None:
        """Raise BundleError, CompressionError or ConfigError for requests that cannot work."""
        if self.precision not in HALF:
            raise ConfigError(unknown_name("precision", self.precision, HALF))
        require_float(self.bundle)
        self.bundle.require_program(GRAPH_FILE)
        super().check()


def convert_bundle(request: HalfRequest, progress: Progress = no_progress) -> Bundle:
    """Return the written bundle.

    The drift is that of a float32 graph that rounds as the new one does, since CPUs lack kernels of these types. Raises
    CompressionError, and writes nothing, if it is too much.
    """
    request.check()
    parent, precision = request.bundle, request.precision
    frames = drawn_frames(request.frames, request.held_out_frames, seed=request.seed, progress=progress)
    model = onnx.load(parent.graph_path)
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        typed, rounded = Path(folder, "typed.onnx"), Path(folder, "rounded.onnx")
        onnx.save(in_half_precision(model, precision), typed)
        onnx.save(rounded_like(model, precision), rounded)
        stand_in = save_bundle(parent.contract, {GRAPH_FILE: rounded}, Path(folder, "rounded"))
        drift = measure_drift(parent, stand_in, frames, request.guard, progress=progress)
        drift = require(drift, request.guard.accept_drift, REMEDY)
        contract = compressed_contract(parent, precision, f"{precision}, typed graph", {"seed": request.seed}, drift)
        return save_bundle(contract, {GRAPH_FILE: typed}, request.output, overwrite=request.overwrite)
