"""Frames that teachers labelled, as `anomseg datasets pseudo-label` writes them, read like any other dataset.

images/ID.png       the frame
labels/ID.png       train ids of Cityscapes, 252 known but class uncertain, 255 unlabelled
confidence/ID.png   255 times the probability of the class; 0 where no class was asked for
agreement/ID.png    255 times the share of views that see the same class; 0 likewise
preview.jpg         some frames beside their labels and their confidence
pseudo_label.yaml   what it was made of and how it turned out; written last: a folder without it is unfinished
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from anomseg_ros.core.labels import CITYSCAPES, KNOWN_UNCERTAIN, UNLABELLED
from anomseg_ros.datasets.base import FileDataset, Found, LabelCodes, files_in, pair
from anomseg_ros.datasets.pseudo_label import LabelConfig, TeacherInfo
from anomseg_ros.datasets.pseudo_label_sources import SourceSpec
from anomseg_ros.datasets.written_folder import WrittenFolder
from anomseg_ros.errors import DatasetError

NAME = "pseudo_label"
IMAGES, LABELS, CONFIDENCE, AGREEMENT = "images", "labels", "confidence", "agreement"
FORMAT = 1
TRAIN, VALIDATION = "train", "val"


@dataclass(frozen=True)
class PseudoLabelSpec:
    """All that the bytes of a dataset depend on. made_with: versions of the code. validation: held-out ids."""

    format: int
    made_with: str
    teachers: tuple[TeacherInfo, ...]
    sources: tuple[SourceSpec, ...]
    labels: LabelConfig
    validation: tuple[str, ...]


@dataclass(frozen=True)
class SourceResult:
    """What came of one source.

    stated: frames that it should have; written, validation: how many were written, and are held out. confidence,
    agreement: means over the pixels whose class was asked for, 0 to 1.
    """

    stated: int
    written: int
    validation: int
    confidence: float
    agreement: float


@dataclass(frozen=True)
class Manifest:
    """Contents of pseudo_label.yaml.

    count: frames written. sha256: of all their files, in order. shares: of all pixels, by class, and without one.
    failures: what kept a frame from being written, one line each.
    """

    made_of: PseudoLabelSpec
    count: int
    sha256: str
    sources: Mapping[str, SourceResult]
    shares: Mapping[str, float]
    failures: tuple[str, ...]


def written_folder(folder: Path) -> WrittenFolder:
    """Return the place of a pseudo-labelled dataset."""
    return WrittenFolder(folder, NAME, "pseudo-label", (IMAGES, LABELS, CONFIDENCE, AGREEMENT))


def read_manifest(folder: Path) -> Manifest:
    """Read FOLDER/pseudo_label.yaml. Raises DatasetError: missing, unfinished, damaged, or of another format."""
    return written_folder(folder).read_manifest(Manifest, FORMAT)


class PseudoLabel(FileDataset):
    """The frames of a folder, in train ids of Cityscapes; `labels` also holds 252, known but class uncertain."""

    name = NAME
    splits: ClassVar[Mapping[str, int]] = {TRAIN: 0, VALIDATION: 0}
    default_split = TRAIN
    layouts = (f"{IMAGES}/ID.png with {LABELS}/ID.png and {NAME}.yaml",)
    label_set = "cityscapes"
    classes = CITYSCAPES

    def __init__(self, path: str, split: str | None = None) -> None:
        """Read the manifest and find the files of a split. Raises DatasetError, also for a split without a frame."""
        self.path, self.split = path, self._checked_split(split)
        root = Path(path).expanduser()
        if not root.is_dir():
            raise DatasetError(f"{NAME}: {path!r} is not a folder; give what `datasets pseudo-label` wrote")
        self.manifest = read_manifest(root)
        held_out = sum(result.validation for result in self.manifest.sources.values())
        self.published_count = held_out if self.split == VALIDATION else self.manifest.count - held_out
        if self.published_count == 0:
            other = "give --validation or --validation-share" if self.split == VALIDATION else "hold out fewer"
            raise DatasetError(f"{NAME}: {path!r} has no frame in its split {self.split!r}; write it again and {other}")
        found = self.find_official(root)
        self.layout, self.samples, self.problems = found.layout, found.samples, found.problems
        self._codes = found.codes
        self.has_anomalies = False

    def find_official(self, root: Path) -> Found:
        """Return images/*.png with labels/*.png of the split."""
        held_out = set(self.manifest.made_of.validation)
        chosen = [
            [(file.stem, file) for file in files_in(root / name, "*.png") if self._is_in_split(file.stem, held_out)]
            for name in (IMAGES, LABELS)
        ]
        samples, problems = pair(*chosen)
        return Found("official", samples, CODES, problems)

    def _is_in_split(self, id_: str, held_out: set[str]) -> bool:
        return (id_ in held_out) == (self.split == VALIDATION)


CODES = LabelCodes(
    f"train ids 0 to {len(CITYSCAPES) - 1}, {KNOWN_UNCERTAIN} known but class uncertain, {UNLABELLED} unlabelled",
    labels={value: value for value in (*range(len(CITYSCAPES)), KNOWN_UNCERTAIN, UNLABELLED)},
)
