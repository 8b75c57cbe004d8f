"""Files of a folder by name: images and labels of the same id, joined in natural order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from anomseg_ros.core.image_files import IMAGE_SUFFIXES, natural_key
from anomseg_ros.core.problems import FrameProblem


@dataclass(frozen=True)
class Sample:
    """The files of one frame. base_path: the picture below an overlay (Fishyscapes Static), None elsewhere."""

    id: str
    image_path: Path
    label_path: Path
    base_path: Path | None = None


def pair(
    images: Iterable[tuple[str, Path]], labels: Iterable[tuple[str, Path]]
) -> tuple[tuple[Sample, ...], tuple[FrameProblem, ...]]:
    """Join images and labels of the same id into samples, in natural order. A file without a partner is a problem."""
    problems: list[FrameProblem] = []
    by_id: list[dict[str, Path]] = [{}, {}]
    for files, paths in zip((images, labels), by_id, strict=True):
        for id_, path in files:
            if id_ in paths:
                problems.append(FrameProblem("same name twice", path, f"{paths[id_].name} is there too"))
            paths.setdefault(id_, path)
    pictures, masks = by_id
    problems += [FrameProblem("image without labels", pictures[id_]) for id_ in in_order(set(pictures) - set(masks))]
    problems += [FrameProblem("labels without an image", masks[id_]) for id_ in in_order(set(masks) - set(pictures))]
    samples = tuple(Sample(id_, pictures[id_], masks[id_]) for id_ in in_order(set(pictures) & set(masks)))
    return samples, tuple(problems)


def files_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the image files of a folder that match a pattern (`**/` allowed), without macOS's hidden copies.

    A symbolic link that leads nowhere is among them: reading it says so.
    """
    found = (path for path in folder.glob(pattern) if path.suffix.lower() in IMAGE_SUFFIXES)
    return [path for path in found if not path.name.startswith(".") and not path.is_dir()]


def with_suffix_removed(paths: Iterable[Path], suffix: str) -> list[tuple[str, Path]]:
    """Return (id, path) of the files named id + suffix; a suffix without a dot is followed by any file ending."""
    named = ((path.name if "." in suffix else path.stem, path) for path in paths)
    return [(name[: -len(suffix)], path) for name, path in named if name.endswith(suffix)]


def in_order(ids: Iterable[str]) -> list[str]:
    """Return ids in natural order (2 before 10), ties in plain order."""
    return sorted(ids, key=lambda id_: (natural_key(id_), id_))
