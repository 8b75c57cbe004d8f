"""Sources of pasted outliers: procedural objects that need no files, or cut-outs in a folder.

COCO's classes that road scenes ordinarily show are no outliers, after section 3.5 of "Efficient Anomaly Segmentation
via Angular Margins and Low-Rank Adaptation" (Ziccardi, Sanna et al.).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.outliers.files import OVERLAP_CLASSES, PARTS, FolderFiles, find_objects
from anomseg_ros.outliers.masks import cut_sides, eroded, without_plain_rim
from anomseg_ros.outliers.shapes import SHAPES, rasterise
from anomseg_ros.outliers.surfaces import paint

__all__ = [
    "ALL_KINDS",
    "OVERLAP_CLASSES",
    "DescribedSource",
    "FolderObjects",
    "ObjectSource",
    "OutlierObject",
    "ProceduralObjects",
    "SourceInfo",
]

FRAME_PART = "frame_part"
ALL_KINDS: tuple[str, ...] = (*SHAPES, FRAME_PART)
"""Kinds of procedural objects; `frame_part` is a lump or shard that shows a part of another frame."""

SIZE_SHARES = (0.09, 0.6)
"""Longer side of procedural objects as shares of the frames' height, if no size is given."""

_SMALLEST_SIDE_PX = 8
_LARGEST_EROSION = 0.3
_CACHE_BYTES = 256 * 2**20
"""Memory for decoded objects, per source and process."""


@dataclass(frozen=True, eq=False)
class OutlierObject:
    """One object. image: uint8 (h, w, 3) RGB. mask: bool (h, w), tight around the object.

    cut_sides: the sides at which the border of its picture cuts it, of "top", "bottom", "left" and "right".
    """

    image: RgbImage
    mask: npt.NDArray[np.bool_]
    kind: str
    cut_sides: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SourceInfo:
    """The description of a source, which datasets made of it contain; equal infos give equal objects.

    name: `procedural`, the layout of a folder, or `mixture` of weighted sources. count, sha256: of the files, None for
    procedural objects.
    """

    name: str
    kinds: tuple[str, ...] = ()
    size_px: tuple[int, int] | None = None
    excluded: tuple[str, ...] = ()
    min_area_px: int | None = None
    count: int | None = None
    sha256: str | None = None
    part: str = "all"
    erode_share: float = 0.0
    trim_plain: bool = False
    weight: float = 1.0
    sources: tuple[SourceInfo, ...] = ()


class ObjectSource(Protocol):
    """Draws objects at random; can be sent to worker processes."""

    def draw(self, rng: np.random.Generator, frames: Sequence[RgbImage]) -> OutlierObject:
        """Return one object, which depends on the state of `rng` and the frames alone.

        frames: uint8 (H, W, 3) RGB frames for textures; may be empty.
        """
        ...


class DescribedSource(ObjectSource, Protocol):
    """A source that a dataset on disk can describe."""

    def describe(self) -> SourceInfo:
        """Return the source's description."""
        ...


class ProceduralObjects:
    """Objects made from random numbers.

    Outlier exposure generalises better from varied outliers (Hendrycks et al., 2019), so outline, surface, colour and
    light are drawn independently of each other.
    """

    def __init__(self, kinds: tuple[str, ...] = ALL_KINDS, size_px: tuple[int, int] | None = None) -> None:
        """kinds: names of ALL_KINDS, equally likely. size_px: bounds of the longer side, drawn log-uniformly; None for
        0.09 to 0.6 of the frames' height, or 32 to 216 px without frames.

        Raises ConfigError for no kind, an unknown kind, or wrong bounds.
        """
        for kind in kinds:
            if kind not in ALL_KINDS:
                raise ConfigError(unknown_name("kind of object", kind, ALL_KINDS))
        if not kinds:
            raise ConfigError(f"kinds is {kinds!r}; expected at least one of {', '.join(ALL_KINDS)}")
        if size_px is not None and not _SMALLEST_SIDE_PX <= size_px[0] <= size_px[1]:
            raise ConfigError(f"size_px is {size_px!r}; expected a smallest, at least 8, and a largest side in pixels")
        self.kinds = tuple(kinds)
        self.size_px = size_px

    def draw(self, rng: np.random.Generator, frames: Sequence[RgbImage]) -> OutlierObject:
        """Draw one object; see ObjectSource."""
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        smallest_px, largest_px = self.size_px or _sizes_for(frames)
        size_px = round(float(np.exp(rng.uniform(np.log(smallest_px), np.log(largest_px)))))
        outline = ("blob", "polygon")[int(rng.integers(2))] if kind == FRAME_PART else kind
        parts = rasterise(SHAPES[outline](rng), size_px)
        return OutlierObject(paint(rng, parts, frames, kind == FRAME_PART), parts > 0, kind)

    def describe(self) -> SourceInfo:
        """Return kinds and sizes."""
        return SourceInfo("procedural", kinds=self.kinds, size_px=self.size_px)


class FolderObjects:
    """Cut-out objects in a folder, equally likely; an object is read when it is first drawn."""

    def __init__(
        self,
        folder: str | Path,
        exclude: Sequence[str] = OVERLAP_CLASSES,
        min_area_px: int | None = None,
        part: str = "all",
        erode_share: float = 0.0,
        trim_plain: bool = False,
    ) -> None:
        """Find the objects. Annotations are read now, pictures later.

        Args:
            folder: annotations/instances_*.json with their pictures (COCO; without crowds); images/ID.* with
                labels/ID.txt (YOLO's polygons, COCO's 80 classes) or with masks/ID.png or labels/ID.png (not 0: the
                object); or PNG files with an alpha channel (128 and above: the object), in folders named by class or
                in none.
            exclude: classes to leave out.
            min_area_px: smaller objects of COCO and YOLO are left out (None: 1000, as in section 3.5 of the paper).
            part: "all", "train" or "val". By the digest of its name, one picture in five belongs to "val".
            erode_share: distance by which the mask's outline is moved inwards, as a share of the root of its area.
            trim_plain: whether to remove rims of masks that show plain ground, or a shadow on it.

        Raises:
            ConfigError: an unknown class or part, or a wrong share.
            DatasetError: no objects; annotations that are missing, damaged or incomplete; or missing pictures.
        """
        if part not in PARTS:
            raise ConfigError(unknown_name("part of the objects", part, PARTS))
        if not 0 <= erode_share <= _LARGEST_EROSION:
            raise ConfigError(f"erode_share is {erode_share!r}; expected 0 to {_LARGEST_EROSION}")
        area_px = 1000 if min_area_px is None else min_area_px
        self.files: FolderFiles = find_objects(Path(folder).expanduser(), tuple(exclude), area_px, part)
        self.part, self.erode_share, self.trim_plain = part, erode_share, trim_plain
        self._cache: dict[int, OutlierObject] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.files.objects)

    def draw(self, rng: np.random.Generator, frames: Sequence[RgbImage]) -> OutlierObject:
        """Read one object; see ObjectSource. Raises DatasetError that names a damaged file or an empty mask."""
        return self.read(int(rng.integers(len(self))))

    def read(self, index: int) -> OutlierObject:
        """Return one object by its number. Raises DatasetError."""
        if index in self._cache:
            return self._cache[index]
        entry = self.files.objects[index]
        image, mask = entry.read()
        sides = cut_sides(mask) if entry.in_photograph else frozenset()
        if self.trim_plain and entry.in_photograph:
            mask = without_plain_rim(image, mask)
        mask = eroded(mask, self.erode_share)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        window = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        cut_out = OutlierObject(np.ascontiguousarray(image[window]), mask[window].copy(), entry.kind, sides)
        # A full cache stays as it is: that is simpler than evicting objects, and as quick on average.
        size = cut_out.image.nbytes + cut_out.mask.nbytes
        if self._cached_bytes + size <= _CACHE_BYTES:
            self._cache[index] = cut_out
            self._cached_bytes += size
        return cut_out

    def describe(self) -> SourceInfo:
        """Return layout, options and the digest of the files."""
        return SourceInfo(
            self.files.layout,
            kinds=self.files.kinds,
            excluded=self.files.excluded,
            min_area_px=self.files.min_area_px,
            count=len(self),
            sha256=self.files.sha256,
            part=self.part,
            erode_share=self.erode_share,
            trim_plain=self.trim_plain,
        )


def _sizes_for(frames: Sequence[RgbImage]) -> tuple[int, int]:
    height_px = int(frames[0].shape[0]) if len(frames) else 360
    smallest_px, largest_px = (max(_SMALLEST_SIDE_PX, round(share * height_px)) for share in SIZE_SHARES)
    return smallest_px, largest_px
