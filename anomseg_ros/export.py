"""Checkpoint to bundle: one ONNX graph from camera pixels to labels and scores, checked against the torch network.

The graph casts, normalises, runs the network, takes the argmax and computes every requested score with its temperature.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from anomseg_ros.backends.onnxruntime import OnnxRuntimeBackend
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import (
    FORMAT_VERSION,
    GRAPH_FILE,
    GRAPH_INPUT,
    LABELS_OUTPUT,
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
from anomseg_ros.core.preprocess import tensor_from_frame
from anomseg_ros.core.scores import DEFAULT_SCORES, SCORES, check_score_names, reference_score
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError, ExportError
from anomseg_ros.networks.base import EnlargingSegmentationNetwork, SegmentationNetwork
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.score_graphs import score_graph
from anomseg_ros.networks.strips import StripClassifier, Strips, StripUpsampler

OPSET = 18

# float32 sums in another order: the error grows with the size of the logits. Measured: some 1e-6 of it.
RELATIVE_TOLERANCE = 5e-5
USUAL_LOGIT = 20.0
# Max-unpooling puts a value where the maximum was. Between pixels that are equal up to rounding that place is
# arbitrary, so a few outputs near flat regions differ at will: 0.24 % at most in ENet on real frames, none on noise.
UNPOOLING_SHARE = 0.005


@dataclass(frozen=True)
class ExportConfig:
    """What to export. num_classes counts the void class, whose output index is void_class (None: there is none)."""

    name: str
    num_classes: int
    void_class: int | None = None
    label_set: str = "cityscapes"
    height_px: int = 512
    width_px: int = 1024
    resize: str = "bilinear"
    scores: tuple[str, ...] = ()
    temperature: float = 1.0
    channel_order: str = "rgb"

    def classes(self) -> tuple[ClassInfo, ...]:
        """Return one entry per network output; raise ConfigError if the label set does not fit num_classes."""
        known = list(label_set(self.label_set))
        if self.void_class is not None:
            if not 0 <= self.void_class < self.num_classes:
                raise ConfigError(f"void class {self.void_class} is not one of the outputs 0 to {self.num_classes - 1}")
            known.insert(self.void_class, VOID)
        if len(known) != self.num_classes:
            raise ConfigError(
                f"label set {self.label_set!r} with void class {self.void_class} has {len(known)} classes, the network "
                f"{self.num_classes}; give --label-set and, for a void classifier, --void-class"
            )
        return tuple(known)

    def score_names(self) -> tuple[str, ...]:
        """Return the scores to export: those asked for, else void first where there is a void class, then the rest."""
        names = self.scores or (("void", *DEFAULT_SCORES) if self.void_class is not None else DEFAULT_SCORES)
        check_score_names(names, self.void_class)
        return names


@dataclass(frozen=True)
class Parity:
    """How far the graph is from the torch network on `frames` frames, and how often the argmax differs (near ties)."""

    frames: int
    max_score_difference: float
    label_disagreement: float


def export_checkpoint(
    network_name: str,
    checkpoint: Path,
    config: ExportConfig,
    output: Path,
    *,
    command: str | None = None,
    frames: Sequence[RgbImage] = (),
    overwrite: bool = False,
) -> tuple[Bundle, Parity]:
    """Load a checkpoint strictly and export it; see export_network. Raises CheckpointError too."""
    config.classes()
    network = load_checkpoint(checkpoint, network_name, config.num_classes)
    provenance = Provenance(checkpoint.name, sha256_of(checkpoint), command=command)
    return export_network(network, network_name, config, output, provenance, frames=frames, overwrite=overwrite)


def export_network(
    network: SegmentationNetwork,
    network_name: str,
    config: ExportConfig,
    output: Path,
    provenance: Provenance,
    *,
    frames: Sequence[RgbImage] = (),
    overwrite: bool = False,
    form: type[DetectorGraph] | None = None,
    files: Mapping[str, Path] | None = None,
    finish: Finish | None = None,
) -> tuple[Bundle, Parity]:
    """Write the bundle of a network and check it on random frames and on `frames` (uint8 (H, W, 3) RGB).

    form: how the graph computes (None: StripGraph). files: name -> source of files to keep beside the graph. finish:
    what is measured of the bundle after that check, before it is in place. Returns the bundle and how far it is from
    the network. Raises ExportError, leaving nothing behind, if it is off.
    """
    check_target(output, overwrite)
    contract = contract_of(network_name, config, provenance)
    parities = []

    def checked(bundle: Bundle) -> Contract:
        parities.append(check_parity(bundle, network, [*random_frames(config), *frames]))
        return bundle.contract if finish is None else finish(bundle)

    with tempfile.TemporaryDirectory() as folder:
        made = {GRAPH_FILE: write_graph(network, config, Path(folder), form), **(files or {})}
        bundle = save_bundle(contract, made, output, overwrite=overwrite, finish=checked)
    return bundle, parities[0]


class DetectorGraph(nn.Module):
    """The whole computation from uint8 (1, H, W, 3) RGB to (labels, score, score…), each (1, H, W)."""

    def __init__(self, network: SegmentationNetwork, config: ExportConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        classes = config.classes()
        train_ids = [info.train_id for info in classes]
        self.known = [index for index in range(len(classes)) if index != config.void_class]
        self.void_is_last = config.void_class == len(classes) - 1
        self.register_buffer("train_ids", torch.tensor(train_ids, dtype=torch.uint8))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """image: uint8 (1, H, W, 3)."""
        logits = self.network(pixels_to_input(image))
        return self.labels(logits), *self.scores(logits)

    def labels(self, logits: torch.Tensor) -> torch.Tensor:
        """Return uint8 (1, H, W) train ids, the void class as 255."""
        index = logits.argmax(dim=1)
        if self.config.void_class is None:
            return index.to(torch.uint8)  # label sets are in train-id order
        if not self.void_is_last:
            return self.get_buffer("train_ids")[index]
        # Comparing takes a fifth of the time of looking every pixel up.
        small = index.to(torch.uint8)
        return torch.where(small == self.config.void_class, torch.tensor(VOID.train_id, dtype=torch.uint8), small)

    def scores(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """Return one float32 (1, H, W) per score name."""
        known = logits if len(self.known) == logits.shape[1] else self._known_logits(logits)
        return [self._score(name, known, logits) for name in self.config.score_names()]

    def _score(self, name: str, known: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        parts = (known, logits[:, self.config.void_class]) if SCORES[name].needs_void else (known,)
        return score_graph(name)(*parts, self.config.temperature)

    def _known_logits(self, logits: torch.Tensor) -> torch.Tensor:
        if self.config.void_class == logits.shape[1] - 1:
            return logits[:, :-1]
        return logits[:, self.known]


class StripGraph(DetectorGraph):
    """The same computation for engines that run one operator after another: full-size logits, labels and scores strip
    by strip, see networks/strips.py, and PReLUs of one slope as leaky ReLUs.

    ONNX Runtime computes a leaky ReLU within the convolution before it; its PRelu took a sixth of ENet's time.
    """

    def __init__(self, network: SegmentationNetwork, config: ExportConfig) -> None:
        super().__init__(leaky(network), config)
        # Its kernels are computed in numpy, for which a tracer's weights have no values.
        self.classifier: StripClassifier | None = None
        if isinstance(network, EnlargingSegmentationNetwork):
            self.classifier = StripClassifier(network.classifier)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """image: uint8 (1, H, W, 3)."""
        images = pixels_to_input(image)
        if self.classifier is not None and isinstance(self.network, EnlargingSegmentationNetwork):
            features = self.network.features_padded(images)
            layer: Strips = self.classifier
        else:
            features = self.network.classify_padded(images)
            height, width = features.shape[-2:]
            layer = StripUpsampler(self.network.padded_size(*image.shape[1:3])[0] // height, height, width)
        strips = [(self.labels(strip), *self.scores(strip)) for strip in layer(features)]
        outputs = (layer.join(parts)[None] for parts in zip(*strips, strict=True))
        return tuple(output[:, : image.shape[1], : image.shape[2]] for output in outputs)


def leaky(network: SegmentationNetwork) -> SegmentationNetwork:
    """Return a copy of the network whose PReLUs of one slope are leaky ReLUs: the same function, a constant slope."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.PReLU) and child.num_parameters == 1:
                setattr(module, name, nn.LeakyReLU(float(child.weight.detach())))
    return network


def pixels_to_input(image: torch.Tensor) -> torch.Tensor:
    """Return float32 (N, 3, H, W) in 0 to 1 of uint8 (N, H, W, 3) camera pixels."""
    return image.permute(0, 3, 1, 2).to(torch.float32) / 255.0


def check_parity(bundle: Bundle, network: SegmentationNetwork, frames: Sequence[RgbImage]) -> Parity:
    """Hold the bundle's graph equal to the torch network and the reference scores on frames of any size.

    A score may differ by 1e-3, or by 5e-5 of the largest logit where that is more; a label only where the two best
    logits are that close. After the first frame, which should be noise, networks with max-unpooling may break this in
    UNPOOLING_SHARE of the pixels; with weights pruned to zero, whose results are equal everywhere, on noise as well.
    Raises ExportError naming the output and the frame.
    """
    backend = OnnxRuntimeBackend(bundle, BackendOptions())
    ties = any(bool((weight == 0).any()) for weight in network.parameters() if weight.dim() == 4)
    worst, disagreeing, pixels = 0.0, 0, 0
    for index, frame in enumerate(frames):
        spared = UNPOOLING_SHARE if network.max_unpooling and (index or ties) else 0.0
        tensor = tensor_from_frame(frame, bundle.contract.input)
        with torch.inference_mode():
            logits = network(pixels_to_input(torch.from_numpy(tensor.copy())))[0].numpy()
        frame_parity = _FrameParity(bundle.contract, logits, index, spared)
        labels, *scores = backend.run(tensor, [LABELS_OUTPUT, *bundle.contract.score_names])
        disagreeing += frame_parity.check_labels(np.asarray(labels[0]))
        for name, score in zip(bundle.contract.score_names, scores, strict=True):
            worst = max(worst, frame_parity.check_score(name, np.asarray(score[0])))
        pixels += labels[0].size
    backend.close()
    return Parity(len(frames), worst, disagreeing / pixels)


@dataclass(frozen=True)
class _FrameParity:
    """Holds one frame's outputs against its logits, float32 (C, H, W), as the torch network gives them."""

    contract: Contract
    logits: npt.NDArray[np.float32]
    frame: int
    spared_share: float

    def check_labels(self, labels: npt.NDArray[np.generic]) -> int:
        """Return how many labels differ; raise ExportError if any does that is no near tie."""
        train_ids = np.array([info.train_id for info in self.contract.classes], np.uint8)
        differing = labels != train_ids[self.logits.argmax(axis=0)]
        second, first = np.partition(self.logits, -2, axis=0)[-2:]
        self._refuse(differing & (first - second > self._tolerance()), LABELS_OUTPUT, "are not the torch network's")
        return int(differing.sum())

    def check_score(self, name: str, score: npt.NDArray[np.generic]) -> float:
        """Return the largest difference to the reference score; raise ExportError if it is too large."""
        reference = reference_score(name, self.logits, self.contract.void_class, self.contract.temperature)
        difference = np.abs(np.asarray(score, np.float32) - reference)
        worst = float(np.nan_to_num(difference, nan=np.inf).max())
        self._refuse(
            ~(difference <= self._tolerance()), f"score {name!r}", f"are off the reference, by up to {worst:.3g}"
        )
        return worst

    def _refuse(self, wrong: npt.NDArray[np.bool_], output: str, fault: str) -> None:
        if wrong.mean() > self.spared_share:
            raise ExportError(
                f"bundle {self.contract.name!r}: frame {self.frame}: {int(wrong.sum())} of {wrong.size} pixels of "
                f"{output} {fault} (allowed {self._tolerance():.3g}); the exported graph is wrong, nothing was written"
            )

    def _tolerance(self) -> float:
        return RELATIVE_TOLERANCE * max(USUAL_LOGIT, float(np.abs(self.logits).max()))


def contract_of(network_name: str, config: ExportConfig, provenance: Provenance) -> Contract:
    """Return the contract of the bundle that a configuration gives, without files. Raises ConfigError."""
    names = config.score_names()
    outputs = [OutputSpec(LABELS_OUTPUT, "uint8", "train ids, 255 = void or unlabelled")]
    outputs += [OutputSpec(name, "float32", f"{SCORES[name].meaning}; higher = more anomalous") for name in names]
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
    )


def write_graph(
    network: SegmentationNetwork, config: ExportConfig, folder: Path, form: type[DetectorGraph] | None = None
) -> Path:
    """Write the ONNX graph of a network, unchecked; return its path. form: how it computes (None: StripGraph)."""
    graph = (form or StripGraph)(network, config).eval()
    path = folder / GRAPH_FILE
    pixels = torch.zeros((1, config.height_px, config.width_px, 3), dtype=torch.uint8)
    # The exporter tells its progress through warnings and loggers that mean nothing to a user.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            graph,
            (pixels,),
            str(path),
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=OPSET,
            input_names=[GRAPH_INPUT],
            output_names=[LABELS_OUTPUT, *config.score_names()],
        )
    _drop_origins(path)
    return path


def _drop_origins(path: Path) -> None:
    """Take the exporter's notes out of an ONNX file: lines of source with this machine's paths, half as large as
    MiDE-Net's weights."""
    model = onnx.load(path)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    onnx.save(model, path)


def random_frames(config: ExportConfig) -> list[RgbImage]:
    """Return noise and smooth noise at the input's size, to check a graph on."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (config.height_px, config.width_px, 3), dtype=np.uint8)
    blurred = np.asarray(cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 8.0))
    smooth = (blurred - blurred.min()) * (255.0 / np.ptp(blurred))
    return [noise, smooth.astype(np.uint8)]
