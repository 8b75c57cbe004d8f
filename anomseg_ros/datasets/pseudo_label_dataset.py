"""A dataset of frames that teachers labelled, written by `anomseg datasets pseudo-label`.

images/ID.png       the frame
labels/ID.png       train ids of Cityscapes, 252 known but class uncertain, 255 unlabelled
confidence/ID.png   255 times the probability of the class; 0 where no class is possible
agreement/ID.png    255 times the share of views with the same class; 0 likewise
preview.jpg         some frames beside their labels and their confidence
pseudo_label.yaml   the manifest; written last, so a folder without it is unfinished
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from anomseg_ros.core.file_pairs import files_in, pair
from anomseg_ros.core.labels import CITYSCAPES, KNOWN_UNCERTAIN, UNLABELLED
from anomseg_ros.datasets.dataset import FileDataset, Found, LabelCodes
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
    """Everything that determines the bytes of a dataset. made_with: versions of the code. validation: held-out ids."""

    format: int
    made_with: str
    teachers: tuple[TeacherInfo, ...]
    sources: tuple[SourceSpec, ...]
    labels: LabelConfig
    validation: tuple[str, ...]


@dataclass(frozen=True)
class SourceResult:
    """The frames of one source.

    stated: number that it should have; written, validation: number that were written, and that are held out.
    confidence, agreement: means over the pixels with a possible class, 0 to 1.
    """

    stated: int
    written: int
    validation: int
    confidence: float
    agreement: float


@dataclass(frozen=True)
class Manifest:
    """Contents of pseudo_label.yaml.

    count: number of written frames. sha256: of all their files, in order. shares: of all pixels, by class and without
    one. failures: one line for each frame that could not be written.
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
        self._use(self.find_official(root))

    def find_official(self, root: Path) -> Found:
        """Return images/*.png with labels/*.png of the split."""
        held_out, validates = set(self.manifest.made_of.validation), self.split == VALIDATION
        chosen = [
            [(file.stem, file) for file in files_in(root / name, "*.png") if (file.stem in held_out) == validates]
            for name in (IMAGES, LABELS)
        ]
        samples, problems = pair(*chosen)
        return Found("official", samples, CODES, problems)

    def by_source(self) -> dict[str, tuple[int, ...]]:
        """Return the indices of the frames of each source that has any in this split, by its name."""
        indices: dict[str, list[int]] = {}
        for index, sample in enumerate(self.samples):
            indices.setdefault(sample.id.partition("-")[0], []).append(index)
        return {name: tuple(own) for name, own in indices.items()}


CODES = LabelCodes(
    f"train ids 0 to {len(CITYSCAPES) - 1}, {KNOWN_UNCERTAIN} known but class uncertain, {UNLABELLED} unlabelled",
    labels={value: value for value in (*range(len(CITYSCAPES)), KNOWN_UNCERTAIN, UNLABELLED)},
)
