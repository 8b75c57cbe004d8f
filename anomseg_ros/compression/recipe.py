"""A compression recipe: prune, fine-tune and quantize in one file, read strictly from YAML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from anomseg_ros.compression.calibration import METHODS, Calibration
from anomseg_ros.compression.prune import PruneConfig
from anomseg_ros.compression.quantize_onnx import TARGETS, QuantizeConfig
from anomseg_ros.core.schema import from_plain
from anomseg_ros.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class FineTuneStep:
    """config: a training configuration, file or name of a shipped one; set: `key=value` changes to it."""

    config: str
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizeStep:
    """What `anomseg quantize` takes under the same names. keep_float: auto, none, or names of layers."""

    target: str = QuantizeConfig().target
    calibration: str = Calibration().method
    percentile: float = Calibration().percentile
    keep_float: str = "auto"
    calibration_frames: int = 16

    def __post_init__(self) -> None:
        """Raise ConfigError for unknown choices and figures out of range."""
        for name, options in (("target", TARGETS), ("calibration", METHODS)):
            if getattr(self, name) not in options:
                raise ConfigError(unknown_name(f"quantize.{name}", getattr(self, name), options))
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"quantize.percentile {self.percentile:g}: expected more than 50 and at most 100")
        if self.calibration_frames < 1:
            raise ConfigError(f"quantize.calibration_frames {self.calibration_frames!r}: expected 1 or more")

    def arguments(self) -> list[str]:
        """Return the step as command-line options."""
        return [
            f"--target={self.target}",
            f"--calibration={self.calibration}",
            f"--percentile={self.percentile:g}",
            f"--keep-float={self.keep_float}",
            f"--calibration-frames={self.calibration_frames}",
        ]


@dataclass(frozen=True)
class Recipe:
    """Steps in this order, each of which may be left out; fine-tuning needs pruning before it."""

    name: str
    prune: PruneConfig | None = None
    fine_tune: FineTuneStep | None = None
    quantize: QuantizeStep | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a recipe that does nothing, or fine-tunes what is not pruned."""
        if self.prune is None and self.quantize is None:
            raise ConfigError("a recipe needs prune, quantize or both; this one has neither")
        if self.fine_tune is not None and self.prune is None:
            raise ConfigError(
                "fine_tune comes after prune, which is missing; `anomseg train` trains what is not pruned"
            )


def load_recipe(path: Path) -> Recipe:
    """Return the recipe in a YAML file. Raises ConfigError, and CompressionError for a fraction out of range."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(data, dict):
        # `quantize:` alone means its defaults, not that the step is left out.
        data = {key: {} if value is None and key in ("prune", "quantize") else value for key, value in data.items()}
    return from_plain(Recipe, data, str(path))
