"""The configuration of a training run: frozen dataclasses, read strictly from YAML, changed by `key=value`.

Each raises ConfigError for values that are unknown, out of range or contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.datasets.transforms import AugmentConfig
from anomseg_ros.errors import ConfigError, reason_of, unknown_name
from anomseg_ros.outliers.cut_paste import PasteConfig
from anomseg_ros.outliers.mixture import ObjectsConfig
from anomseg_ros.training.objectives import DEFAULT_OBJECTIVE, Options, objective_class

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("poly", "cosine", "constant")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
VOID_SOURCES = ("none", "outliers", "unlabelled", "both")
TRAINED_PARTS = ("all", "classifier")
BACKBONES = ("none", "timm", "efficientnet_lite0")
WITH_OUTLIERS = ("cut_paste", "synthetic")
"""Datasets whose own frames have outliers."""
CACHES = ("disk", "memory")


@dataclass(frozen=True)
class InitialConfig:
    """The source of the first weights: a checkpoint file, or another configuration to train first."""

    checkpoint: str | None = None  # a path, or the path of a file that ships with the package
    config: str | None = None
    part: str = "all"
    """"all"; "features", all but the classifier, for other classes; or a submodule's name, such as "encoder". "encoder"
    of a mask network reads the file of a pretrained encoder, such as DINOv2's.

    With "all", the checkpoint may have fewer classes; the others start with fresh weights."""
    num_classes: int | None = None  # outputs of the checkpoint, None for the number of known classes

    def __post_init__(self) -> None:
        _one_source("initial", self)


@dataclass(frozen=True)
class NetworkConfig:
    """The network and the weights that it starts from."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of its constructor
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)  # normalisation of 0..1 RGB
    initial: InitialConfig | None = None
    backbone: str = "none"
    """ImageNet weights of the backbone: "none", "timm" (downloaded), or "efficientnet_lite0" (a package)."""
    trained: str = "all"  # "all", or "classifier" to freeze every layer but the last (paper MiDE, section 4.3)
    frozen: tuple[str, ...] = ()  # submodules whose weights and norms do not change, such as "backbone.stem"
    frozen_norms: bool = False  # whether norms keep their mean and variance while their scale and shift learn

    def __post_init__(self) -> None:
        _choice("network.backbone", self.backbone, BACKBONES)
        _choice("network.trained", self.trained, TRAINED_PARTS)
        if self.trained == "classifier" and self.initial is None and self.backbone == "none":
            raise ConfigError("network.trained=classifier would freeze random weights; give network.initial")


@dataclass(frozen=True)
class CutPasteConfig:
    """Outliers that are pasted into training frames."""

    probability: float = 0.0  # share of the frames with outliers
    objects: str | tuple[ObjectsConfig, ...] = "procedural"
    """"procedural", a folder of cut-out objects in a layout of FolderObjects, or a list of several sources."""
    paste: PasteConfig = field(default_factory=PasteConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"cut_paste.probability is {self.probability!r}; give a share from 0 to 1")
        if not self.objects:
            raise ConfigError(f"cut_paste.objects is {self.objects!r}; give `procedural`, a folder, or several of them")

    @property
    def sources(self) -> tuple[ObjectsConfig, ...]:
        """The sources of objects as a list, also if there is one."""
        return (ObjectsConfig(self.objects),) if isinstance(self.objects, str) else self.objects


@dataclass(frozen=True)
class DataConfig:
    """Frames to train and validate on, resized to height_px x width_px."""

    dataset: str
    height_px: int
    width_px: int
    path: str = ""
    validation_path: str = ""  # empty for `path`
    train_split: str = "train"
    validation_split: str = "val"
    void: str = "none"
    """Pixels of the void class K: "none" (no such class), pasted "outliers", "unlabelled" pixels, or "both"."""
    cut_paste: CutPasteConfig = field(default_factory=CutPasteConfig)
    allow_partial: bool = False
    workers: int = 1  # processes that augment; 0 augments in the trainer
    cache: str = "disk"  # decoded frames on "disk", shared by all runs, or in "memory"
    repeat_below: float = 0.0
    """Frames repeat for classes that fewer than this share of the frames show, see `repeated_frames`."""

    def __post_init__(self) -> None:
        _choice("data.void", self.void, VOID_SOURCES)
        _choice("data.cache", self.cache, CACHES)
        _positive("data", height_px=self.height_px, width_px=self.width_px)
        if not 0 <= self.repeat_below <= 1:
            raise ConfigError(f"data.repeat_below is {self.repeat_below!r}; give a share of the frames from 0 to 1")
        if self.workers < 0:
            raise ConfigError(f"data.workers is {self.workers!r}; give 0 (augment in the trainer) or more")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its rates."""

    kind: str = "adam"
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    momentum: float = 0.9  # of SGD
    betas: tuple[float, float] = (0.9, 0.999)
    norm_decay: bool = True  # whether norms, biases and slopes get weight decay, too
    gradient_clip: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    """Factors on the learning rate by submodule, such as {backbone: 0.2}."""

    def __post_init__(self) -> None:
        _choice("optimizer.kind", self.kind, OPTIMIZERS)
        _positive("optimizer", learning_rate=self.learning_rate)
        _positive("optimizer.rates", **self.rates)
        _not_negative("optimizer", weight_decay=self.weight_decay, momentum=self.momentum)
        if self.gradient_clip is not None:
            _positive("optimizer", gradient_clip=self.gradient_clip)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over time; poly is (1 - t / T)^power, with t in optimizer steps or, as LambdaLR, in epochs."""

    kind: str = "poly"
    power: float = 0.9
    warmup_steps: int = 0
    every: str = "step"

    def __post_init__(self) -> None:
        _choice("schedule.kind", self.kind, SCHEDULES)
        _choice("schedule.every", self.every, ("step", "epoch"))
        _positive("schedule", power=self.power)
        _not_negative("schedule", warmup_steps=self.warmup_steps)


@dataclass(frozen=True)
class TeacherConfig:
    """A network to distil from. num_classes: None for as many outputs as the student."""

    network: str
    checkpoint: str | None = None
    config: str | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        _one_source("teachers", self)


@dataclass(frozen=True)
class RunConfig:
    """Length and machine of a run. An optimizer step takes batch_size x accumulate x processes samples."""

    epochs: int
    batch_size: int
    accumulate: int = 1
    precision: str = "32-true"
    ema_decay: float | None = None  # of the averaged weights that are validated and saved, None for no average
    seed: int = 0
    compile: bool = False
    channels_last: bool = True
    threads: int = 0  # 0 for all cores
    validate_every: int = 1  # epochs between validations
    checkpoint_every: int = 100  # steps between saved states
    early_stop: int = 0  # the run ends after this number of validations without a better mIoU; 0: never
    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = 1
    sync_batch_norm: bool = True

    def __post_init__(self) -> None:
        _choice("run.precision", self.precision, PRECISIONS)
        counts = ("epochs", "batch_size", "accumulate", "validate_every", "checkpoint_every", "nodes")
        _positive("run", **{name: getattr(self, name) for name in counts})
        _not_negative("run", **{name: getattr(self, name) for name in ("seed", "threads", "early_stop")})
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"run.ema_decay is {self.ema_decay!r}; give a number between 0 and 1, such as 0.999")


@dataclass(frozen=True)
class DeployConfig:
    """The bundle that is made after training."""

    height_px: int | None = None
    width_px: int | None = None  # size of its input, None for that of the training frames
    scores: tuple[str, ...] = ()  # the default score first
    target_fprs: tuple[float, ...] = (0.001, 0.005, 0.01, 0.02, 0.05)
    calibrate: bool = True
    """Fit temperature and thresholds on the validation frames, with pasted outliers if the run had them."""
    licence: str = "unknown: state the terms of the training data"


@dataclass(frozen=True)
class TrainConfig:
    """The whole configuration. objective: a name of OBJECTIVES. loss: the objective's options."""

    name: str
    network: NetworkConfig
    data: DataConfig
    run: RunConfig
    augment: AugmentConfig
    objective: str = DEFAULT_OBJECTIVE
    loss: Options = field(default_factory=lambda: objective_class(DEFAULT_OBJECTIVE).options_type())
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    teachers: tuple[TeacherConfig, ...] = ()
    deploy: DeployConfig = field(default_factory=DeployConfig)

    def __post_init__(self) -> None:
        needs = self.loss.needs
        if needs.teachers and not self.teachers:
            raise ConfigError(
                "the loss asks for a teacher, but there is no teacher; give teachers: [{network: …, checkpoint: FILE}]"
            )
        wants_outliers = needs.outliers or self.data.void in ("outliers", "both")
        if wants_outliers and self.data.cut_paste.probability == 0 and self.data.dataset not in WITH_OUTLIERS:
            raise ConfigError(
                "the loss or data.void asks for outliers, but no frame has any; set data.cut_paste.probability, or "
                "train on a cut_paste dataset"
            )


def load_config(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Return the configuration in a YAML file with `key=value` changes, such as `run.epochs=3`, applied.

    Raises ConfigError for an unreadable file, an unknown key (with the closest known ones) and a wrong value.
    """
    return parse_config(read_plain(path), str(path), changes)


def read_plain(path: Path) -> dict[str, Any]:
    """Return the mapping in a configuration file, unchecked. Raises ConfigError."""
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {reason_of(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {reason_of(error)}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {data!r}; expected the keys name, network, data, run, …")
    return data


def parse_config(data: dict[str, Any], where: str, changes: Sequence[str] = ()) -> TrainConfig:
    """Return the configuration in a mapping, after writing the changes into it. `where` names it in messages."""
    for change in changes:
        _apply(data, change)
    for group, key in (("data", "path"), ("run", "devices")):  # texts that look like numbers
        inner = data.get(group)
        if isinstance(inner, dict) and type(inner.get(key)) is int:
            inner[key] = str(inner[key])
    where += "".join(f" --set {change}" for change in changes)
    config = from_plain(TrainConfig, {key: value for key, value in data.items() if key != "loss"}, where)
    options = objective_class(config.objective).options_type
    return replace(config, loss=from_plain(options, data.get("loss", {}), f"{where}: loss"))


def config_text(config: TrainConfig) -> str:
    """Return the whole configuration, defaults included, as YAML."""
    text: str = yaml.dump(to_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _apply(data: dict[str, Any], change: str) -> None:
    """Set one dotted key. The value is read as YAML, so it may be a number, a list or null."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {change!r} is not of the form key=value, for example run.epochs=3")
    *parents, last = key.strip().split(".")
    place: Any = data
    holder = ""
    for name in parents:
        place, holder = _inner(place, holder, name, change), name
    try:
        value = parse_yaml(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {change!r}: the value is not YAML: {error}") from error
    if isinstance(place, list):
        place[_position(place, last, change)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"--set {change!r}: {holder!r} is a value, not a group of keys")


def _inner(place: Any, holder: str, name: str, change: str) -> Any:
    """Return the value of a mapping's key or a list's position; a missing or empty key becomes a mapping."""
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
    """Reads numbers as YAML 1.2 does; PyYAML reads 1e-3 as text and 7:4 as the number 424."""


class _Dumper(yaml.SafeDumper):
    """Writes numbers and texts so that _Loader reads them back."""


for _kind in (_Loader, _Dumper):
    _numbers = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rows if tag not in _numbers]
        for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver(_numbers[0], re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
    _float = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    _kind.add_implicit_resolver(_numbers[1], re.compile(_float), list("-+.0123456789"))


def _one_source(key: str, config: InitialConfig | TeacherConfig) -> None:
    if (config.checkpoint is None) == (config.config is None):
        raise ConfigError(f"{key}: give either checkpoint (a file) or config (a configuration to train first)")


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
