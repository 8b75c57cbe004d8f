"""Instance annotations in the format of COCO (Lin et al., ECCV 2014; cocodataset.org, "Data format").

An object's segmentation is a list of polygons (x1, y1, x2, y2, …), or run lengths in column order that begin with
background. Run lengths are a list of integers, or the text into which COCO's mask API packs them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.pixel_files import read_picture
from anomseg_ros.core.types import RgbImage
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import DatasetError
from anomseg_ros.outliers.masks import require_object


@dataclass(frozen=True, eq=False)
class CocoObject:
    """One annotation. size_px: (height, width) of its picture. area_px: as annotated. polygons or runs: its mask."""

    kind: str
    image_path: Path
    size_px: tuple[int, int]
    area_px: float
    polygons: tuple[npt.NDArray[np.float32], ...] | None
    runs: str | tuple[int, ...] | None
    title: str
    in_photograph = True

    @property
    def picture(self) -> str:
        """Name of its picture."""
        return self.image_path.stem

    def read(self) -> tuple[RgbImage, npt.NDArray[np.bool_]]:
        """Return picture and mask; see files.Entry. Raises DatasetError for another size and for a wrong mask."""
        image, (height, width) = read_picture(self.image_path), self.size_px
        if image.shape[:2] != self.size_px:
            raise DatasetError(
                f"picture {str(self.image_path)!r} is {image.shape[1]}x{image.shape[0]}, its annotations say "
                f"{width}x{height}; unpack the pictures of the same release"
            )
        return image, require_object(self.mask(), self.title)

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return the mask, bool (H, W). Raises DatasetError for run lengths that do not fit."""
        if self.polygons is not None:
            return polygon_mask(self.polygons, self.size_px)
        runs = run_lengths(self.runs, self.title) if isinstance(self.runs, str) else list(self.runs or ())
        return run_mask(runs, self.size_px, self.title)


@dataclass(frozen=True)
class Instances:
    """Annotations of a folder. classes: category id -> name. sha256: of the annotation files."""

    objects: tuple[CocoObject, ...]
    classes: Mapping[int, str]
    sha256: str


def read_instances(root: Path, crowds: bool = False) -> Instances:
    """Read ROOT/annotations/instances_*.json. crowds: also groups of objects that are annotated as one.

    The pictures of instances_NAME.json may be in ROOT/NAME, ROOT/images/NAME, ROOT/images or ROOT.

    Raises DatasetError if there is no such file, if it is not valid JSON of COCO annotations, or if no folder has its
    pictures.
    """
    files = sorted((root / "annotations").glob("instances_*.json"))
    if not files:
        raise DatasetError(
            f"no annotations/instances_*.json in {str(root)!r}; unpack COCO's annotations there, beside the pictures"
        )
    digest = hashlib.sha256()
    classes: dict[int, str] = {}
    objects: list[CocoObject] = []
    for path in files:
        content = _read(path)
        digest.update(content)
        file_classes, file_objects = _parse(content, path, root, crowds)
        if any(classes.get(number, name) != name for number, name in file_classes.items()):
            raise DatasetError(f"{str(path)!r} numbers its categories otherwise than {files[0].name}; keep one of them")
        classes.update(file_classes)
        objects += file_objects
    return Instances(tuple(objects), classes, digest.hexdigest())


def polygon_mask(polygons: Sequence[npt.NDArray[np.float32]], size_px: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the union of polygons, bool (H, W). polygons: float32 (N, 2) x and y from the picture's corner, pixels."""
    mask = np.zeros(size_px, np.bool_)
    for points in polygons:
        mask |= _inside(points.astype(np.float64), size_px)
    return mask


def _inside(points: npt.NDArray[np.float64], size_px: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels whose centre is inside a polygon; cv2.fillPoly would add those that its edges touch."""
    height, width = size_px
    (x, y), (next_x, next_y) = points.T, np.roll(points, -1, axis=0).T
    centres = np.arange(height) + 0.5
    edges, rows = np.nonzero((y[:, None] <= centres) != (next_y[:, None] <= centres))
    share = (centres[rows] - y[edges]) / (next_y - y)[edges]
    crossings = x[edges] + share * (next_x - x)[edges]
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.intp)
    # Each crossing of a row changes between outside and inside.
    flips = np.zeros((height, width + 1), np.uint8)
    np.add.at(flips, (rows, columns), 1)
    return np.asarray(np.cumsum(flips, axis=1, dtype=np.uint8)[:, :width] % 2 == 1)


def run_mask(runs: Sequence[int], size_px: tuple[int, int], what: str) -> npt.NDArray[np.bool_]:
    """Return the mask of run lengths, bool (H, W); runs go down the columns. Raises DatasetError if they do not fit."""
    height, width = size_px
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise DatasetError(
            f"{what}: its run lengths add up to {sum(runs)}, expected {width}x{height} = {height * width}"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def run_lengths(text: str, what: str) -> list[int]:
    """Unpack run lengths from text, as COCO's mask API packs them.

    A number is a row of characters above '0' with 6 bits each, the lowest first: 5 bits of the number, and one that
    tells whether more characters follow. The highest bit of the last is the sign. From the fourth number on, the
    difference to the last but one is packed. Raises DatasetError for other text.
    """
    runs: list[int] = []
    value = position = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DatasetError(f"{what}: its run lengths hold {character!r}, which the packing does not use")
        value |= (bits & 31) << (5 * position)
        position += 1
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << (5 * position)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = position = 0
    if position:
        raise DatasetError(f"{what}: its run lengths end in the middle of a number")
    return runs


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _parse(content: bytes, path: Path, root: Path, crowds: bool) -> tuple[dict[int, str], list[CocoObject]]:
    try:
        data = parse_json(content)
    except ValueError as error:
        raise DatasetError(
            f"{str(path)!r} ({len(content)} bytes) is damaged or cut short: {error}; unpack or download it again"
        ) from None
    try:
        classes = {int(row["id"]): str(row["name"]) for row in data["categories"]}
        pictures = {row["id"]: row for row in data["images"]}
        rows = [row for row in data["annotations"] if crowds or not row.get("iscrowd")]
        folder = _picture_folder(path, root, pictures) if rows else root
        unknown = {int(row["category_id"]) for row in rows} - set(classes)
        objects = [
            _object(row, classes[int(row["category_id"])], pictures[row["image_id"]], folder, path)
            for row in rows
            if not unknown
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{str(path)!r} is not a file of COCO instances ({type(error).__name__}: {error}); expected `images`, "
            "`categories` and `annotations` with id, image_id, category_id and segmentation"
        ) from None
    if unknown:
        raise DatasetError(f"{str(path)!r} uses the categories {sorted(unknown)}, which it does not define")
    return classes, objects


def _picture_folder(path: Path, root: Path, pictures: Mapping[Any, Mapping[str, Any]]) -> Path:
    """Return the folder with the first picture that exists, or raise DatasetError."""
    part = path.stem.removeprefix("instances_")
    folders = [root / part, root / "images" / part, root / "images", root]
    for row in pictures.values():
        for folder in folders:
            if (folder / str(row["file_name"])).is_file():
                return folder
    tried = ", ".join(str(folder) for folder in folders)
    raise DatasetError(f"none of the {len(pictures)} pictures of {path.name!r} is in {tried}; unpack them there")


def _object(row: Mapping[str, Any], kind: str, picture: Mapping[str, Any], folder: Path, path: Path) -> CocoObject:
    size_px = (int(picture["height"]), int(picture["width"]))
    polygons, runs = _segmentation(row["segmentation"])
    # A path in a downloaded file must not leave its folder.
    name = str(picture["file_name"])
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"file_name {name!r} leads out of the folder")
    title = f"annotation {row['id']} of {path.name!r}"
    # Objects without an area count as large enough; pasting measures their mask.
    area_px = float(row.get("area", size_px[0] * size_px[1]))
    return CocoObject(kind, folder / name, size_px, area_px, polygons, runs, title)


def _segmentation(value: Any) -> tuple[tuple[npt.NDArray[np.float32], ...] | None, str | tuple[int, ...] | None]:
    if isinstance(value, list):
        # Arrays take a tenth of the memory of JSON's lists.
        return tuple(np.array(polygon, np.float32).reshape(-1, 2) for polygon in value), None
    counts = value["counts"]
    return None, counts if isinstance(counts, str) else tuple(map(int, counts))
