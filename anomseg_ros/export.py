"""Export a checkpoint to a bundle: one ONNX graph from camera pixels to labels and scores, and a program of torch.

The graph casts and normalises the pixels, runs the network, takes the argmax and computes each requested score with its
temperature. Its outputs are compared with those of the torch network. So are the program's, where one is asked for.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx
import torch
from torch import nn

from anomseg_ros.core.bundle import (
    CHECKPOINT_FILE,
    FORMAT_VERSION,
    GRAPH_FILE,
    GRAPH_INPUT,
    LABELS_OUTPUT,
    TARGETS,
    TORCH_FILE,
    Bundle,
    Contract,
    Finish,
    InputSpec,
    OutputSpec,
    Provenance,
    check_target,
    save_bundle,
    sha256_of,
)
from anomseg_ros.core.labels import VOID, ClassInfo, label_set
from anomseg_ros.core.preprocess import noise_frames
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import CheckpointError, ConfigError
from anomseg_ros.networks.adapters import load_with_adapter
from anomseg_ros.networks.argmax_form import ARGMAX, COMPARE, with_comparisons
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.dcnv3 import DEFORM_CONV_OPSET, with_deform_conv
from anomseg_ros.networks.leaky_relus import with_leaky_relus
from anomseg_ros.networks.network import FittedScore, SegmentationNetwork, pixels_to_input
from anomseg_ros.networks.prediction import Prediction
from anomseg_ros.networks.score_head import ScoreHead
from anomseg_ros.networks.strips import StripClassifier, Strips, StripUpsampler
from anomseg_ros.networks.torch_program import inference_copy, program_of, save_program
from anomseg_ros.parity import Parity, check_parity
from anomseg_ros.scores import check_scores, default_scores, find_score

OPSET = 18


@dataclass(frozen=True)
class ExportConfig:
    """Settings of an export.

    num_classes includes the void class. void_class: its output index, None without one. label_set: name of the known
    classes; known_classes: those of an own label set, in train-id order, None for the published ones of that name.
    target: "cpu" for a graph that works in strips (StripGraph), "gpu" for one that works on whole frames
    (DetectorGraph). argmax: form of the labels, see networks/argmax_form.py. torch_program: also write model.pt2, for
    the backend torch, of whole frames. deform_conv: write ONNX's DeformConv in place of grid sampling.
    """

    name: str
    num_classes: int
    void_class: int | None = None
    label_set: str = "cityscapes"
    known_classes: tuple[ClassInfo, ...] | None = None
    height_px: int = 512
    width_px: int = 1024
    resize: str = "bilinear"
    scores: tuple[str, ...] = ()
    temperature: float = 1.0
    channel_order: str = "rgb"
    target: str = TARGETS[0]
    argmax: str = ARGMAX
    torch_program: bool = False
    deform_conv: bool = False

    def known(self) -> tuple[ClassInfo, ...]:
        """Return the known classes. Raises ConfigError for an unknown label set, or train ids that are no row."""
        known = label_set(self.label_set) if self.known_classes is None else self.known_classes
        if [info.train_id for info in known] != list(range(len(known))):
            raise ConfigError(
                f"label set {self.label_set!r} has train ids in another order than 0, 1, 2, …; number them so"
            )
        return known

    def classes(self) -> tuple[ClassInfo, ...]:
        """Return one entry per network output. Raises ConfigError if the label set does not fit num_classes."""
        classes = list(self.known())
        if self.void_class is not None:
            if not 0 <= self.void_class < self.num_classes:
                raise ConfigError(f"void class {self.void_class} is not one of the outputs 0 to {self.num_classes - 1}")
            classes.insert(self.void_class, VOID)
        if len(classes) != self.num_classes:
            raise ConfigError(
                f"label set {self.label_set!r} with void class {self.void_class} has {len(classes)} classes, the "
                f"network has {self.num_classes}; give --label-set and, for a void classifier, --void-class"
            )
        return tuple(classes)

    def score_names(self) -> tuple[str, ...]:
        """Return the scores to export: the requested or the default ones."""
        names = self.scores or default_scores(with_void=self.void_class is not None)
        check_scores(names, self.void_class)
        return names


def export_checkpoint(
    network_name: str,
    checkpoint: Path,
    config: ExportConfig,
    output: Path,
    *,
    adapter: Path | None = None,
    command: str | None = None,
    frames: Sequence[RgbImage] = (),
    overwrite: bool = False,
) -> tuple[Bundle, Parity]:
    """Load a checkpoint and export it; return the bundle and the result of the comparison.

    Args:
        network_name: name in the table of networks.
        checkpoint: file that is loaded strictly.
        config: settings of the export.
        output: directory of the bundle.
        adapter: a file of networks/adapters.py; the checkpoint is its base, and the bundle holds the merged weights.
        command: command line for the bundle's provenance.
        frames: frames for the comparison besides random ones.
        overwrite: replace an existing bundle.

    Raises:
        CheckpointError: the checkpoint does not fit the network.
        ExportError: see export_network.
    """
    config.classes()
    if adapter is None:
        network = load_checkpoint(checkpoint, network_name, config.num_classes)
        provenance = Provenance(checkpoint.name, sha256_of(checkpoint), command=command)
        return export_network(network, network_name, config, output, provenance, frames=frames, overwrite=overwrite)
    network = load_with_adapter(checkpoint, adapter)
    if (network.name, network.num_classes) != (network_name, config.num_classes):
        raise CheckpointError(
            f"{adapter} is for network {network.name!r} of {network.num_classes} classes, not {network_name!r} of "
            f"{config.num_classes}; ask for that one"
        )
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / CHECKPOINT_FILE
        save_checkpoint(merged, network, {**network.checkpoint_metadata, "adapter_sha256": sha256_of(adapter)})
        provenance = Provenance(CHECKPOINT_FILE, sha256_of(merged), command=command)
        files = {CHECKPOINT_FILE: merged}
        return export_network(
            network, network_name, config, output, provenance, frames=frames, overwrite=overwrite, files=files
        )


def export_network(
    network: SegmentationNetwork,
    network_name: str,
    config: ExportConfig,
    output: Path,
    provenance: Provenance,
    *,
    frames: Sequence[RgbImage] = (),
    overwrite: bool = False,
    graph_class: type[DetectorGraph] | None = None,
    files: Mapping[str, Path] | None = None,
    finish: Finish | None = None,
) -> tuple[Bundle, Parity]:
    """Write the bundle of a network; return it and the result of the comparison with the network.

    Args:
        network: the network, in evaluation mode.
        network_name: name in the table of networks.
        config: settings of the export.
        output: directory of the bundle.
        provenance: provenance for the contract.
        frames: frames for the comparison besides random ones, uint8 (H, W, 3) RGB.
        overwrite: replace an existing bundle.
        graph_class: class of the ONNX graph; None: the class for the configuration's target.
        files: name -> source of further files of the bundle.
        finish: called after the comparison, before the bundle is moved to `output`; returns the final contract.

    Raises:
        ExportError: the graph does not compute what the network computes. Nothing is written.
    """
    check_target(output, overwrite)
    contract = contract_of(network_name, config, provenance, network.fitted_scores)
    parities = []

    def check_and_finish(bundle: Bundle) -> Contract:
        parities.append(check_parity(bundle, network, [*random_frames(config), *frames]))
        return bundle.contract if finish is None else finish(bundle)

    with tempfile.TemporaryDirectory() as folder:
        all_files = {**write_programs(network, config, Path(folder), graph_class), **(files or {})}
        bundle = save_bundle(contract, all_files, output, overwrite=overwrite, finish=check_and_finish)
    return bundle, parities[0]


class DetectorGraph(nn.Module):
    """The complete computation from uint8 (1, H, W, 3) RGB to (labels, score, score…), each (1, H, W)."""

    def __init__(self, network: SegmentationNetwork, config: ExportConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.scores = ScoreHead(network, config.score_names(), config.void_class, config.temperature)
        self.features = self.scores.features
        """Feature maps that the scores need."""
        classes = config.classes()
        train_ids = [info.train_id for info in classes]
        self.void_is_last = config.void_class == len(classes) - 1
        self.register_buffer("train_ids", torch.tensor(train_ids, dtype=torch.int32))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """image: uint8 (1, H, W, 3)."""
        prediction = self.network.predict(pixels_to_input(image), self.features)
        logits = prediction.pixel_logits()
        evidence = prediction.pixel_evidence() if self.scores.needs_evidence else None
        scores = self.scores.frame_scores(self.scores.pixel_maps(logits, evidence), prediction)
        return self.labels(logits).to(torch.uint8), *scores

    def labels(self, logits: torch.Tensor) -> torch.Tensor:
        """Return int32 train ids of the pixels of logits (N, C, …), 255 for the void class.

        The graph casts them to uint8 at its very end: TensorRT takes uint8 as input and output alone.
        """
        index = logits.argmax(dim=1).to(torch.int32)
        if self.config.void_class is None:
            return index  # label sets are in train-id order
        if not self.void_is_last:
            return self.get_buffer("train_ids")[index]
        # A comparison takes a fifth of the time of a table lookup. A constant tensor would stay on the CPU, where a
        # CUDA graph cannot read it.
        return index.masked_fill(index == self.config.void_class, VOID.train_id)


class StripGraph(DetectorGraph):
    """The same computation for engines that run the operators one by one.

    Full-size logits, labels and scores are computed in strips, see networks/strips.py. PReLUs with one slope become
    leaky ReLUs, which ONNX Runtime fuses with the preceding convolution; its PRelu took a sixth of ENet's time.
    """

    def __init__(self, network: SegmentationNetwork, config: ExportConfig) -> None:
        super().__init__(with_leaky_relus(network), config)
        # Created here because numpy computes its kernels, and weights have no values during tracing.
        self.classifier: StripClassifier | None = None
        if isinstance(network.classifier_layer, nn.ConvTranspose2d):
            self.classifier = StripClassifier(network.classifier_layer)
            self.features = (*self.scores.features, network.feature_names[-1])

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """image: uint8 (1, H, W, 3)."""
        prediction = self.network.predict(pixels_to_input(image), self.features)
        layer, features = self._last_layer(prediction)
        strips = []
        for maps in layer(features):
            logits = prediction.decode(maps)
            strips.append((self.labels(logits), self.scores.strip_maps(prediction, maps, logits)))

        def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
            return layer.join(parts)[None, : image.shape[1], : image.shape[2]]

        label_strips, map_strips = zip(*strips, strict=True)
        full_maps = [tuple(map(join, zip(*parts, strict=True))) for parts in zip(*map_strips, strict=True)]
        return join(label_strips).to(torch.uint8), *self.scores.frame_scores(full_maps, prediction)

    def _last_layer(self, prediction: Prediction) -> tuple[Strips, torch.Tensor]:
        """Return the layer that upsamples in strips, and its input."""
        if self.classifier is not None:
            return self.classifier, prediction.features[self.network.feature_names[-1]]
        height, width = prediction.maps.shape[-2:]
        return StripUpsampler(prediction.padded_px[0] // height, height, width), prediction.maps


GRAPH_CLASSES: Mapping[str, type[DetectorGraph]] = {"cpu": StripGraph, "gpu": DetectorGraph}
"""Target -> class of the graph."""


def contract_of(
    network_name: str,
    config: ExportConfig,
    provenance: Provenance,
    fitted: Mapping[str, FittedScore] = MappingProxyType({}),
) -> Contract:
    """Return the contract of the bundle that a configuration describes, without files.

    fitted: the network's fitted scores, whose constants the meanings then state. Raises ConfigError.
    """
    outputs = [OutputSpec(LABELS_OUTPUT, "uint8", "train ids, 255 = void or unlabelled")]
    for name in config.score_names():
        score = find_score(name)
        meaning = score.describe(fitted[name].tensors) if name in fitted else score.meaning
        outputs.append(OutputSpec(name, "float32", f"{meaning}; higher = more anomalous"))
    return Contract(
        format_version=FORMAT_VERSION,
        name=config.name,
        network=network_name,
        precision="fp32",
        classes=config.classes(),
        input=InputSpec(config.height_px, config.width_px, config.channel_order, config.resize),
        outputs=tuple(outputs),
        files={},
        void_class=config.void_class,
        temperature=config.temperature,
        provenance=provenance,
        target=config.target,
    )


def write_programs(
    network: SegmentationNetwork, config: ExportConfig, folder: Path, graph_class: type[DetectorGraph] | None = None
) -> dict[str, Path]:
    """Write the programs that a configuration asks for; return name in the bundle -> path. Arguments as write_graph."""
    programs = {GRAPH_FILE: write_graph(network, config, folder, graph_class)}
    if config.torch_program:
        programs[TORCH_FILE] = write_program(network, config, folder)
    return programs


def write_program(network: SegmentationNetwork, config: ExportConfig, folder: Path) -> Path:
    """Write the program of torch of a network in evaluation mode; return its path. Raises ExportError."""
    graph = DetectorGraph(inference_copy(_for_target(network, config)), config).eval()
    return save_program(program_of(graph, _black_pixels(config)), folder / TORCH_FILE)


def write_graph(
    network: SegmentationNetwork, config: ExportConfig, folder: Path, graph_class: type[DetectorGraph] | None = None
) -> Path:
    """Write the ONNX graph of a network, without comparing them; return its path.

    Args:
        network: the network, in evaluation mode.
        config: settings of the export.
        folder: folder of the file.
        graph_class: class of the graph; None: the class for the configuration's target.
    """
    network = _for_target(network, config)
    if config.deform_conv:
        network = with_deform_conv(network)
    graph = (graph_class or GRAPH_CLASSES[config.target])(network, config).eval()
    path = folder / GRAPH_FILE
    # The exporter's warnings and logs are of no use to users.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            graph,
            (_black_pixels(config),),
            str(path),
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=DEFORM_CONV_OPSET if config.deform_conv else OPSET,
            input_names=[GRAPH_INPUT],
            output_names=[LABELS_OUTPUT, *config.score_names()],
        )
    model = onnx.load(path)
    if config.argmax == COMPARE:
        model = with_comparisons(model)
    _remove_debug_information(model)
    onnx.save(model, path)
    return path


def _for_target(network: SegmentationNetwork, config: ExportConfig) -> SegmentationNetwork:
    return network.for_gpu() if config.target == "gpu" else network


def _black_pixels(config: ExportConfig) -> torch.Tensor:
    return torch.zeros((1, config.height_px, config.width_px, 3), dtype=torch.uint8)


def _remove_debug_information(model: onnx.ModelProto) -> None:
    """Remove the exporter's source lines and local paths; they are half the size of MiDE-Net."""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        del part.metadata_props[:]
        part.ClearField("doc_string")


def random_frames(config: ExportConfig) -> list[RgbImage]:
    """Return a noise frame and a smooth noise frame of the network's input size."""
    return noise_frames(config.height_px, config.width_px)
