"""Where pasted outliers come from: drawn ones that need no files, or cut-outs in a folder.

Which classes of COCO may not serve as outliers follows section 3.5 of "Efficient Anomaly Segmentation via Angular
Margins and Low-Rank Adaptation" (Ziccardi, Sanna et al.): what road scenes ordinarily show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import RgbImage
from anomseg_ros.datasets.outlier_files import OVERLAP_CLASSES, PARTS, FolderFiles, find_objects
from anomseg_ros.datasets.outlier_masks import cut_sides, eroded, without_plain_rim
from anomseg_ros.datasets.outlier_shapes import SHAPES, rasterise
from anomseg_ros.datasets.outlier_textures import paint
from anomseg_ros.errors import ConfigError, unknown_name

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
"""Kinds of drawn objects; `frame_part` is a lump or shard that shows a part of another frame."""

SIZE_SHARES = (0.09, 0.6)
"""Longer side of drawn objects as shares of the frames' height, where no size is given."""

_SMALLEST_SIDE_PX = 8
_LARGEST_EROSION = 0.3
_KEPT_BYTES = 256 * 2**20
"""Memory for decoded objects, per source and process."""


@dataclass(frozen=True, eq=False)
class OutlierObject:
    """One object. image: uint8 (h, w, 3) RGB. mask: bool (h, w), tight around the object. kind: what it is called.

    cut_sides: of "top", "bottom", "left", "right", those where the border of its picture cuts it.
    """

    image: RgbImage
    mask: npt.NDArray[np.bool_]
    kind: str
    cut_sides: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SourceInfo:
    """What a source holds, as written into a dataset made of it; equal infos give equal objects.

    name: `procedural`, the layout of a folder, or `mixture` of several sources, each with its weight. count and sha256:
    of the files, None for drawn objects.
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
    """Gives objects at random; may be sent to worker processes."""

    def draw(self, rng: np.random.Generator, frames: Sequence[RgbImage]) -> OutlierObject:
        """Return one object, the same for the same state of `rng` and the same frames.

        frames: uint8 (H, W, 3) RGB frames that textures may be taken from; may be empty.
        """
        ...


class DescribedSource(ObjectSource, Protocol):
    """A source that a dataset on disk can name."""

    def describe(self) -> SourceInfo:
        """Return what the source holds."""
        ...


class ProceduralObjects:
    """Objects drawn from random numbers.

    Outlier exposure generalises by the variety of what it is shown (Hendrycks et al., 2019), so outline, surface,
    colour and light are drawn independently of each other.
    """

    def __init__(self, kinds: tuple[str, ...] = ALL_KINDS, size_px: tuple[int, int] | None = None) -> None:
        """Choose what is drawn.

        kinds: names of ALL_KINDS, each equally likely. size_px: bounds of the longer side, drawn log-uniformly; None:
        0.09 to 0.6 of the height of the frames that draw() is given, 32 to 216 px where it is given none.

        Raises:
            ConfigError: no or an unknown kind, or bounds that are none.
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
        """Return the kinds and sizes."""
        return SourceInfo("procedural", kinds=self.kinds, size_px=self.size_px)


class FolderObjects:
    """Cut-out objects in a folder, each equally likely; they are read when they are drawn, then kept."""

    def __init__(
        self,
        folder: str | Path,
        exclude: Sequence[str] = OVERLAP_CLASSES,
        min_area_px: int | None = None,
        part: str = "all",
        erode_share: float = 0.0,
        trim_plain: bool = False,
    ) -> None:
        """Find the objects; annotations are read, pictures are not.

        Args:
            folder: annotations/instances_*.json with their pictures (COCO layout; crowds are left out), images/ID.*
                with labels/ID.txt (YOLO's polygons, COCO's 80 classes) or with masks/ID.png or labels/ID.png (not 0:
                the object), or PNG files with an alpha channel (128 and above: the object), in folders named after
                their class or in none.
            exclude: classes to leave out.
            min_area_px: smaller objects of COCO and YOLO are left out (None: 1000, as in section 3.5 of the paper).
            part: "all"; or "train" or "val", which one picture in five belongs to, by the digest of its name.
            erode_share: of an object's size (the root of its area), how far its mask is moved inwards.
            trim_plain: whether the rim of masks that shows the plain ground, or a shadow on it, is taken off.

        Raises:
            ConfigError: `exclude` names an unknown class, an unknown part, or a share that is none.
            DatasetError: no objects, annotations that are missing, damaged or incomplete, or pictures that are missing.
        """
        if part not in PARTS:
            raise ConfigError(unknown_name("part of the objects", part, PARTS))
        if not 0 <= erode_share <= _LARGEST_EROSION:
            raise ConfigError(f"erode_share is {erode_share!r}; expected 0 to {_LARGEST_EROSION}")
        area_px = 1000 if min_area_px is None else min_area_px
        self.files: FolderFiles = find_objects(Path(folder).expanduser(), tuple(exclude), area_px, part)
        self.part, self.erode_share, self.trim_plain = part, erode_share, trim_plain
        self._kept: dict[int, OutlierObject] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.files.objects)

    def draw(self, rng: np.random.Generator, frames: Sequence[RgbImage]) -> OutlierObject:
        """Read one object; see ObjectSource. Raises DatasetError that names a damaged file or an empty mask."""
        return self.read(int(rng.integers(len(self))))

    def read(self, index: int) -> OutlierObject:
        """Return one object by its number. Raises DatasetError."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        entry = self.files.objects[index]
        image, mask = entry.read()
        sides = cut_sides(mask) if entry.in_photograph else frozenset()
        if self.trim_plain and entry.in_photograph:
            mask = without_plain_rim(image, mask)
        mask = eroded(mask, self.erode_share)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        window = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        found = OutlierObject(np.ascontiguousarray(image[window]), mask[window].copy(), entry.kind, sides)
        # Objects that find no room are read anew each time: simpler than to throw others out, and as quick on average.
        if self._kept_bytes + found.image.nbytes + found.mask.nbytes <= _KEPT_BYTES:
            self._kept[index] = found
            self._kept_bytes += found.image.nbytes + found.mask.nbytes
        return found

    def describe(self) -> SourceInfo:
        """Return layout, classes left out, and the digest of the files."""
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
