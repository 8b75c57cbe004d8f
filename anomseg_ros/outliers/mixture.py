"""Objects from several weighted sources, as listed in a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.outliers.files import PARTS
from anomseg_ros.outliers.objects import (
    OVERLAP_CLASSES,
    DescribedSource,
    FolderObjects,
    OutlierObject,
    ProceduralObjects,
    SourceInfo,
)

PROCEDURAL = "procedural"


@dataclass(frozen=True)
class ObjectsConfig:
    """One source of objects. The options after `weight` are for folders; see FolderObjects.

    source: `procedural`, or a folder. weight: frequency relative to the other sources. exclude: None for the classes
    that overlap road scenes.
    """

    source: str = PROCEDURAL
    weight: float = 1.0
    part: str = "all"
    erode_share: float = 0.0
    trim_plain: bool = False
    exclude: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"objects: weight of {self.source!r} is {self.weight!r}; give a number above 0")
        if self.part not in PARTS:
            raise ConfigError(unknown_name(f"objects: part of {self.source!r}", self.part, PARTS))
        of_folders = (self.part, self.erode_share, self.trim_plain, self.exclude)
        if self.source == PROCEDURAL and of_folders != ("all", 0.0, False, None):
            raise ConfigError(
                "objects: part, erode_share, trim_plain and exclude are for folders; `procedural` draws its objects"
            )


class MixedObjects:
    """Objects from one of several sources, drawn by weight."""

    def __init__(self, sources: Sequence[DescribedSource], weights: Sequence[float]) -> None:
        """weights: one above 0 per source."""
        self.sources, self.weights = tuple(sources), tuple(weights)
        self._bounds = np.cumsum(self.weights) / sum(self.weights)

    def draw(self, rng: np.random.Generator, frames: Sequence[RgbImage]) -> OutlierObject:
        """Return an object of one of the sources; see ObjectSource."""
        chosen = int(np.searchsorted(self._bounds, rng.random(), side="right"))
        return self.sources[min(chosen, len(self.sources) - 1)].draw(rng, frames)

    def describe(self) -> SourceInfo:
        """Return the infos of the sources."""
        infos = [source.describe() for source in self.sources]
        return SourceInfo(
            "mixture",
            sources=tuple(replace(info, weight=weight) for info, weight in zip(infos, self.weights, strict=True)),
        )


def open_objects(configs: Sequence[ObjectsConfig]) -> DescribedSource:
    """Return the source of objects for configurations. Raises ConfigError for no configuration; see FolderObjects."""
    if not configs:
        raise ConfigError("objects is an empty list; give at least one source, such as `procedural`")
    sources = [_open(config) for config in configs]
    return sources[0] if len(sources) == 1 else MixedObjects(sources, [config.weight for config in configs])


def _open(config: ObjectsConfig) -> DescribedSource:
    if config.source == PROCEDURAL:
        return ProceduralObjects()
    exclude = OVERLAP_CLASSES if config.exclude is None else config.exclude
    return FolderObjects(
        config.source, exclude, part=config.part, erode_share=config.erode_share, trim_plain=config.trim_plain
    )
