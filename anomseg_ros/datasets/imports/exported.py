"""What every reader of an export returns, and what they share: paths, errors, shapes that are painted into labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.class_table import SplitRule
from anomseg_ros.core.types import LabelImage
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import AnomsegError, DatasetError, closest_first, reason_of

NOTHING = 255
"""Label of pixels that nobody labelled. Others have the index of their class."""

Size = tuple[int, int]
"""Height and width of a picture, in pixels."""
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SourceClass:
    """A class as its tool calls it, and its RGB colour there, if any."""

    name: str
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One labelled picture. name: path without ending, unique in the export.

    labels: returns uint8 (H, W), indices of classes and NOTHING, for the picture's size. Raises DatasetError where the
    labels are of another size, or damaged.
    """

    name: str
    picture: Path
    labels: Callable[[Size], LabelImage]


@dataclass(frozen=True)
class Export:
    """Classes and frames below a folder. splits: where the format has them; see ClassTable."""

    classes: tuple[SourceClass, ...]
    frames: tuple[SourceFrame, ...]
    splits: Mapping[str, SplitRule] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Shape:
    """A part of a picture with one class. mask: returns bool (H, W) for the picture's size."""

    index: int
    mask: Callable[[Size], Mask]


def paint(shapes: Iterable[Shape], size_px: Size) -> LabelImage:
    """Return labels on which later shapes cover earlier ones."""
    labels = np.full(size_px, NOTHING, np.uint8)
    for shape in shapes:
        labels[shape.mask(size_px)] = shape.index
    return labels


def require_size(stated: Size, size_px: Size, what: str) -> None:
    """Raise DatasetError unless the stated size is that of the picture."""
    if stated != size_px:
        raise DatasetError(
            f"{what} is for a picture of {stated[1]}x{stated[0]}, the picture is {size_px[1]}x{size_px[0]}; give the "
            "pictures that were labelled, as they were"
        )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises DatasetError."""
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"cannot read {str(path)!r}: {reason_of(error)}") from None
    except ValueError as error:
        raise DatasetError(f"{str(path)!r} is damaged or cut short: {error}; export or download it again") from None


@contextmanager
def understood(path: Path, what: str) -> Iterator[None]:
    """Turn errors of plain data that lacks keys or has other types into one DatasetError that names the file."""
    try:
        yield
    except AnomsegError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise DatasetError(f"{str(path)!r} is not {what} ({type(error).__name__}: {error}); export it again") from None


def plain_name(name: str) -> str:
    """Return a name from a file as a path without ending. Raises DatasetError where it would lead out of a folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in name:
        raise DatasetError(f"the file name {name!r} leads out of the folder; export it again under a plain name")
    return path.with_suffix("").as_posix()


def picture_at(folders: Sequence[Path], name: str, source: Path) -> Path:
    """Return the picture of a name in the first folder that has it. Raises DatasetError that lists the folders."""
    plain_name(name)
    for folder in folders:
        path = folder / name
        if path.is_file():
            return path
    tried = ", ".join(repr(str(folder)) for folder in folders)
    raise DatasetError(f"the picture {name!r} of {str(source)!r} is not in {tried}; export with pictures, or copy them")


def index_of(name: str, names: Sequence[str], source: Path) -> int:
    """Return the index of a class. Raises DatasetError for one that the export does not list."""
    if name not in names:
        known = ", ".join(closest_first(name, names)[:10])
        raise DatasetError(f"{str(source)!r} uses the class {name!r}, which it does not list; it lists: {known}")
    return names.index(name)


def hex_color(text: str) -> tuple[int, int, int] | None:
    """Return the RGB colour of `#rrggbb`, None for other texts."""
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except (ValueError, AttributeError):
        return None
    return red, green, blue
