"""A compression recipe: pruning, fine-tuning and quantizing in one YAML file, which is read strictly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from anomseg_ros.compression.fine_tune import FineTune
from anomseg_ros.compression.prune import PruneConfig
from anomseg_ros.compression.quantize_onnx import TARGETS, QuantizeConfig, default_ranges
from anomseg_ros.compression.ranges import METHODS, RangeConfig
from anomseg_ros.compression.sensitivity import AUTO, NONE
from anomseg_ros.core.resources import find_yaml
from anomseg_ros.core.schema import from_plain
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.errors import ConfigError, reason_of, unknown_name

RECIPE_FOLDER = "config/compress"


@dataclass(frozen=True)
class QuantizeStep:
    """The options of `anomseg quantize` with the same names. keep_float: auto, none, or names of layers.

    calibration, weight_bits: None for those that suit the target.
    """

    target: str = QuantizeConfig().target
    calibration: str | None = None
    percentile: float = RangeConfig().percentile
    keep_float: str = "auto"
    weight_bits: int | None = None
    calibration_frames: int = 16

    def __post_init__(self) -> None:
        """Raise ConfigError for unknown choices and figures out of range."""
        for name, options in (("target", TARGETS), ("calibration", METHODS)):
            if getattr(self, name) not in (*options, None):
                raise ConfigError(unknown_name(f"quantize.{name}", getattr(self, name), options))
        try:
            self.config()
        except ConfigError as error:
            raise ConfigError(f"step quantize: {error}") from None
        if self.calibration_frames < 1:
            raise ConfigError(f"quantize.calibration_frames {self.calibration_frames!r}: expected 1 or more")

    def ranges(self) -> RangeConfig:
        """Return how ranges are found. Raises ConfigError for a percentile out of range."""
        method = self.calibration or default_ranges(self.target)
        return RangeConfig(method, self.percentile, symmetric=self.target == "tensorrt")

    def config(self, label_agreement: float = QuantizeConfig().label_agreement) -> QuantizeConfig:
        """Return the quantizer's configuration. label_agreement: what `keep_float: auto` must preserve."""
        names = self.keep_float
        return QuantizeConfig(
            target=self.target,
            ranges=self.ranges(),
            keep_float=names if names in (AUTO, NONE) else tuple(filter(None, map(str.strip, names.split(",")))),
            label_agreement=label_agreement,
            weight_bits=self.weight_bits,
        )


@dataclass(frozen=True)
class Recipe:
    """Steps in this order. Each may be left out; fine-tuning requires pruning."""

    name: str
    prune: PruneConfig | None = None
    fine_tune: FineTune | None = None
    quantize: QuantizeStep | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a recipe that does nothing, or fine-tunes without pruning."""
        if self.prune is None and self.quantize is None:
            raise ConfigError("a recipe needs prune, quantize or both; this one has neither")
        if self.fine_tune is not None and self.prune is None:
            raise ConfigError(
                "fine_tune comes after prune, which is missing; `anomseg train` trains what is not pruned"
            )


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe given by path or by the name of a shipped one. Raises ConfigError."""
    return find_yaml(name_or_path, RECIPE_FOLDER, "recipe")


def load_recipe(path: Path) -> Recipe:
    """Return the recipe in a YAML file. Raises ConfigError, and CompressionError for a fraction out of range."""
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {reason_of(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(data, dict):
        # A step without settings, `quantize:`, has its defaults.
        data = {key: {} if value is None and key in ("prune", "quantize") else value for key, value in data.items()}
    return from_plain(Recipe, data, str(path))
