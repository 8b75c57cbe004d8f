"""One's own frames and classes: a folder that anybody can fill, or that `anomseg datasets import` writes.

images/[DRIVE/]ID.jpg   pictures
labels/[DRIVE/]ID.png   label images of the same names: one channel, values as classes.yaml gives them
classes.yaml            names, colours, values and roles of the classes; splits (core/class_table.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from anomseg_ros.core.class_table import (
    CLASSES_FILE,
    IGNORED_ROLE,
    KNOWN_ROLE,
    OUTLIER_ROLE,
    UNLABELLED_ROLE,
    ClassTable,
    label_set_name,
    read_class_table,
)
from anomseg_ros.core.file_pairs import files_in, pair
from anomseg_ros.core.labels import KNOWN_UNCERTAIN, UNLABELLED
from anomseg_ros.datasets.dataset import ANOMALY, KNOWN, VOID, FileDataset, Found, LabelCodes
from anomseg_ros.datasets.folder_splits import ALL, TRAIN, VALIDATION, split_frames, split_note
from anomseg_ros.errors import ConfigError, DatasetError, closest_first

IMAGES, LABELS = "images", "labels"


class Folder(FileDataset):
    """The frames of a split, in train ids of the known classes, and an anomaly mask if any class is an outlier."""

    name = "folder"
    splits: ClassVar[Mapping[str, int]] = {TRAIN: 0, VALIDATION: 0, ALL: 0}
    default_split = VALIDATION
    layouts = (f"{IMAGES}/[DRIVE/]ID.jpg with {LABELS}/[DRIVE/]ID.png and {CLASSES_FILE}; splits as it states them",)

    def __init__(self, path: str, split: str | None = None) -> None:
        """Read classes.yaml and find the files of a split. Raises DatasetError, also for a split without a frame."""
        root = Path(path).expanduser()
        if not root.is_dir():
            raise DatasetError(f"folder: {path!r} is not a folder; give the one with {IMAGES}/ and {CLASSES_FILE}")
        try:
            self.table = read_class_table(root)
        except ConfigError as error:
            raise DatasetError(f"folder: {error}") from None
        self.path = path
        self.published_count = None
        self.licence = self.table.licence or f"unknown: state the terms of the frames in {CLASSES_FILE}"
        self.classes = self.table.known()
        self.label_set = label_set_name(self.table, root.resolve().name)
        self._use(self._chosen(self.find_official(root), split, root))

    def find_official(self, root: Path) -> Found:
        """Return all frames: images/**/* with labels/**/*."""
        named = [_named(root / folder) for folder in (IMAGES, LABELS)]
        if not any(named):
            raise DatasetError(f"folder: {str(root)!r} holds no frame; expected {self.layouts[0]}")
        samples, problems = pair(*named)
        return Found("own", samples, label_codes(self.table), problems)

    def _chosen(self, found: Found, split: str | None, root: Path) -> Found:
        """Return the frames of a split, and set `split` and `notes`."""
        ids, rules = [sample.id for sample in found.samples], self.table.splits
        splits = split_frames(ids, rules, root)
        self.split = split or (VALIDATION if VALIDATION in splits else ALL)
        if self.split == ALL and ALL not in splits:
            return found
        if self.split not in splits:
            known = ", ".join(closest_first(self.split, [*splits, ALL]))
            raise DatasetError(f"folder: {str(root)!r} has no split {self.split!r}; known: {known}")
        chosen = set(splits[self.split])
        if ids and not chosen:
            raise DatasetError(
                f"folder: {str(root)!r} has one frame, too few for {TRAIN!r} and {VALIDATION!r}; label more"
            )
        note = split_note(ids, splits, bool(rules))
        self.notes = (note,) if note else ()
        return replace(found, samples=tuple(sample for sample in found.samples if sample.id in chosen))


def label_codes(table: ClassTable) -> LabelCodes:
    """Return what the values of labels/**/*.png mean."""
    roles = {role: table.values(role) for role in (UNLABELLED_ROLE, IGNORED_ROLE, OUTLIER_ROLE)}
    known = {value: train_id for train_id, value in enumerate(table.values(KNOWN_ROLE))}
    names = ", ".join(f"{own.id} {own.name}" for own in sorted(table.classes, key=lambda own: own.id))
    labels = {
        **known,
        **dict.fromkeys((*roles[UNLABELLED_ROLE], *roles[OUTLIER_ROLE]), UNLABELLED),
        **dict.fromkeys(roles[IGNORED_ROLE], KNOWN_UNCERTAIN),
    }
    anomaly = {
        **dict.fromkeys(known, KNOWN),
        **dict.fromkeys((*roles[UNLABELLED_ROLE], *roles[IGNORED_ROLE]), VOID),
        **dict.fromkeys(roles[OUTLIER_ROLE], ANOMALY),
    }
    return LabelCodes(f"the values in {CLASSES_FILE}: {names}", labels, anomaly if roles[OUTLIER_ROLE] else None)


def _named(folder: Path) -> list[tuple[str, Path]]:
    """Return (path below the folder without ending, path) of its image files."""
    return [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in files_in(folder, "**/*")]
