"""Turn a float bundle into an 8-bit bundle: fine-tune on request, quantize, compare with the parent, write."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from anomseg_ros.compression.calibration_frames import FrameSource, FrameSplit, draw_split, read_split
from anomseg_ros.compression.drift import DriftError, compressed_contract, measure_drift, require, with_original
from anomseg_ros.compression.quantize_onnx import QuantizeConfig, quantize
from anomseg_ros.compression.step_request import StepRequest, require_float
from anomseg_ros.core.bundle import (
    CHECKPOINT_FILE,
    GRAPH_FILE,
    TORCH_FILE,
    Bundle,
    Contract,
    Provenance,
    save_bundle,
    sha256_of,
)
from anomseg_ros.core.preprocess import tensor_from_frame
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CompressionError, ConfigError

if TYPE_CHECKING:  # torch takes seconds to import, and quantizing a graph does not need it
    from anomseg_ros.compression.qat import FineTuneConfig
    from anomseg_ros.compression.quantize_torch import TorchQuantizeConfig
    from anomseg_ros.networks.network import SegmentationNetwork


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest(StepRequest):
    """How to quantize.

    config: of the graph for ONNX Runtime or TensorRT, or of the program for torch. backend, provider: run the new
    bundle when it is measured; only torch runs a program for torch. fine_tune: None for none. Fine-tuning and programs
    for torch need the checkpoint. original: the bundle that an earlier step started with; the drift from it is recorded
    too.
    """

    config: QuantizeConfig | TorchQuantizeConfig = field(default_factory=QuantizeConfig)
    backend: str = "onnxruntime"
    provider: str = "cpu"
    fine_tune: FineTuneConfig | None = None
    calibration_frames: int = 16
    allow_few: bool = False
    original: Bundle | None = None

    @property
    def needs_checkpoint(self) -> bool:
        """Whether the checkpoint is needed beside the graph."""
        return self.fine_tune is not None or not isinstance(self.config, QuantizeConfig)

    def check(self) -> None:
        """Raise BundleError, CheckpointError, CompressionError or ConfigError for requests that cannot work."""
        contract = self.bundle.contract
        require_float(self.bundle)
        super().check()
        if (self.backend == "torch") is isinstance(self.config, QuantizeConfig):
            raise ConfigError(f"`backend` {self.backend!r} does not run what {type(self.config).__name__} makes")
        if not self.needs_checkpoint:
            return
        from anomseg_ros.compression.reexport import require_same_checkpoint

        if self.checkpoint is None:
            raise ConfigError(
                f"torch and fine-tuning need the weights that {contract.name!r} was exported from: give `checkpoint`"
            )
        require_same_checkpoint(self.bundle, self.checkpoint)

    def draw_frames(self) -> tuple[list[FrameSource], list[FrameSource]]:
        """Return the frames for calibration and for measuring; see draw_split."""
        return draw_split(
            self.frames,
            self.calibration_frames,
            self.held_out_frames,
            seed=self.seed,
            allow_few=self.allow_few,
            measured=self.guard.datasets,
        )


def quantize_bundle(request: QuantizeRequest, progress: Progress = no_progress) -> Bundle:
    """Return the written bundle. Raises CompressionError, and writes nothing, if it is too far from its parent.

    If the layers to leave in float are sought and the held-out frames still lose too much, more of them stay in float.
    """
    request.check()
    frames = read_split(request.draw_frames(), progress)
    wider = _wider_configs(request)
    while True:
        try:
            return _quantize(request, frames, progress)
        except DriftError:
            config = next(wider, None)
            if config is None:
                raise
            request = replace(request, config=config)


def _wider_configs(request: QuantizeRequest) -> Iterator[QuantizeConfig]:
    """Yield configurations that leave more layers in float and aim at the guard's limits, if layers are sought."""
    config, limits = request.config, request.guard.tolerance
    if isinstance(config, QuantizeConfig) and request.fine_tune is None:
        yield from replace(
            config,
            label_agreement=max(config.label_agreement, limits.label_agreement),
            rank_correlation=max(config.rank_correlation, limits.rank_correlation),
        ).wider()


def _quantize(request: QuantizeRequest, frames: FrameSplit, progress: Progress) -> Bundle:
    parent, guard = request.bundle, request.guard
    tensors = [tensor_from_frame(frame, parent.contract.input) for frame in frames.calibration]
    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        parts = _make_parts(request, tensors, Path(folder), progress)

        def guarded(quantized: Bundle) -> Contract:
            drift_from = partial(
                measure_drift,
                child=quantized,
                frames=frames.held_out,
                calibration_frames=len(frames.calibration),
                child_backend=request.backend,
                child_provider=request.provider,
                progress=progress,
            )
            drift = require(drift_from(parent, guard=guard), guard.accept_drift)
            settings = {**parts.settings, "seed": request.seed, "calibration_frames": list(frames.calibration_names)}
            contract = compressed_contract(parent, "int8", parts.method, settings, drift)
            contract = replace(contract, provenance=parts.provenance)
            if request.original is None:
                return contract
            whole = drift_from(request.original, guard=replace(guard, datasets=()))
            return with_original(contract, request.original, whole)

        planned = replace(parent.contract, precision="int8")
        return save_bundle(planned, parts.files, request.output, overwrite=request.overwrite, finish=guarded)


@dataclass(frozen=True)
class _Parts:
    """The files of the new bundle, the method in words, its settings, and the origin of the weights."""

    files: Mapping[str, Path]
    method: str
    settings: Mapping[str, Any]
    provenance: Provenance


def _make_parts(request: QuantizeRequest, tensors: Sequence[RgbImage], folder: Path, progress: Progress) -> _Parts:
    contract, config = request.bundle.contract, request.config
    provenance, network = contract.provenance, None
    files: dict[str, Path] = {}
    tuning: dict[str, Any] = {}
    if request.needs_checkpoint:
        network, tuning = _load_network(request, tensors, progress)
        if tuning:
            files[CHECKPOINT_FILE] = _write_checkpoint(network, tuning, folder)
            digest = sha256_of(files[CHECKPOINT_FILE])
            provenance = replace(provenance, source_checkpoint=CHECKPOINT_FILE, source_sha256=digest)
    if isinstance(config, QuantizeConfig):
        graph = request.bundle.require_program(GRAPH_FILE)
        if network is not None:
            graph = _export_float_graph(network, contract, provenance, folder)
        path, method, settings = _quantize_graph(config, graph, tensors, folder, progress)
    else:
        assert network is not None
        path, method, settings = _quantize_program(config, network, contract, tensors, folder, progress)
    if request.fine_tune is not None:
        method += f", fine-tuned {request.fine_tune.steps} steps"
    return _Parts({path.name: path, **files}, method, {**settings, **tuning}, provenance)


def _quantize_graph(
    config: QuantizeConfig, graph: Path, tensors: Sequence[RgbImage], folder: Path, progress: Progress
) -> tuple[Path, str, dict[str, Any]]:
    """Quantize a float ONNX graph; return the new graph's file, the method in words and its settings."""
    made = quantize(onnx.load(graph), tensors, config, progress)
    path = folder / GRAPH_FILE
    onnx.save(made.model, path)
    layers = f"{len(made.float_layers)} of {made.layers} layers in float"
    found = {"float_layers": list(made.float_layers), "noise_db": dict(made.noise_db)}
    settings = {**asdict(config), "weight_bits": config.bits, **found}
    return path, f"int8 static, QDQ, {config.target}, {config.ranges.method}, {layers}", settings


def _quantize_program(
    config: TorchQuantizeConfig,
    network: SegmentationNetwork,
    contract: Contract,
    tensors: Sequence[RgbImage],
    folder: Path,
    progress: Progress,
) -> tuple[Path, str, dict[str, Any]]:
    """Quantize a network for torch; return the program's file, the method in words and its settings."""
    from anomseg_ros.compression.quantize_torch import quantize_torch
    from anomseg_ros.compression.reexport import export_config_of
    from anomseg_ros.networks.torch_program import save_program

    if contract.input.channel_order != "rgb":
        raise CompressionError(f"bundle {contract.name!r} takes {contract.input.channel_order}, only rgb is exported")
    made = quantize_torch(network, export_config_of(contract), tensors, config, progress)
    path = save_program(made.program, folder / TORCH_FILE)
    layers = f"{len(made.float_layers)} of {made.layers} layers in float"
    method = f"int8 static, torch {config.method}, {config.ranges}, {layers}"
    return path, method, {**asdict(config), "float_layers": list(made.float_layers)}


def _load_network(
    request: QuantizeRequest, tensors: Sequence[RgbImage], progress: Progress
) -> tuple[SegmentationNetwork, dict[str, Any]]:
    """Return the network of the checkpoint, fine-tuned on request, and the settings of fine-tuning."""
    from anomseg_ros.compression.qat import fine_tune
    from anomseg_ros.networks.checkpoints import load_checkpoint

    contract = request.bundle.contract
    assert request.checkpoint is not None
    network = load_checkpoint(request.checkpoint, contract.network, len(contract.classes))
    if request.fine_tune is None:
        return network, {}
    bits = request.config.bits if isinstance(request.config, QuantizeConfig) else 8
    tuned = fine_tune(network, tensors, request.fine_tune, progress, bits)
    losses = {"loss_before": float(f"{tuned.loss_before:.4g}"), "loss_after": float(f"{tuned.loss_after:.4g}")}
    return tuned.network, {"fine_tuning": {**asdict(request.fine_tune), **losses}}


def _write_checkpoint(network: SegmentationNetwork, tuning: dict[str, Any], folder: Path) -> Path:
    from anomseg_ros.networks.checkpoints import save_checkpoint

    save_checkpoint(folder / CHECKPOINT_FILE, network, {**network.checkpoint_metadata, **tuning})
    return folder / CHECKPOINT_FILE


def _export_float_graph(network: SegmentationNetwork, contract: Contract, provenance: Provenance, folder: Path) -> Path:
    """Return the float ONNX graph of a network, with the inputs and outputs of a contract."""
    from anomseg_ros.compression.reexport import export_config_of
    from anomseg_ros.export import export_network

    config = replace(export_config_of(contract), torch_program=False)
    bundle, _ = export_network(network, contract.network, config, folder / "float", provenance)
    return bundle.require_program(GRAPH_FILE)
