"""A cut-paste dataset on disk, written by `anomseg datasets cut-paste`.

images/ID.png     the frame with pasted objects
labels/ID.png     train ids, 255 unlabelled, 254 pasted
preview.jpg       some frames with outlines of the pasted objects
cut_paste.yaml    the manifest; written last, so a folder without it is unfinished
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from anomseg_ros.core.labels import KNOWN_UNCERTAIN, UNLABELLED, ClassInfo
from anomseg_ros.datasets.dataset import ANOMALY, KNOWN, VOID, FileDataset, Found, LabelCodes, pair_folders
from anomseg_ros.datasets.written_folder import WrittenFolder
from anomseg_ros.errors import DatasetError
from anomseg_ros.outliers.cut_paste import OUTLIER, PasteConfig
from anomseg_ros.outliers.objects import SourceInfo

IMAGES, LABELS = "images", "labels"
FORMAT = 1


@dataclass(frozen=True)
class CutPasteSpec:
    """Everything that determines the bytes of a dataset.

    made_with: versions of the code. source, split: the dataset that was pasted into. source_sha256: of its frames'
    names and its first frame's pixels. frames: number of its frames that were used, from the first one on.
    """

    format: int
    made_with: str
    source: str
    split: str
    source_sha256: str
    label_set: str | None
    classes: tuple[ClassInfo, ...]
    seed: int
    frames: int
    copies: int
    paste: PasteConfig
    objects: SourceInfo


@dataclass(frozen=True)
class Manifest:
    """Contents of cut_paste.yaml. count: frames written. sha256: of all images and labels, in order."""

    made_of: CutPasteSpec
    count: int
    sha256: str


def written_folder(folder: Path) -> WrittenFolder:
    """Return the place of a cut-paste dataset."""
    return WrittenFolder(folder, "cut_paste", "cut-paste", (IMAGES, LABELS))


def read_manifest(folder: Path) -> Manifest:
    """Read FOLDER/cut_paste.yaml. Raises DatasetError: missing, unfinished, damaged, or of another format."""
    return written_folder(folder).read_manifest(Manifest, FORMAT)


class CutPaste(FileDataset):
    """The frames of a folder. Pasted pixels are 255 (unlabelled) in `labels` and 1 (anomaly) in `anomaly`."""

    name = "cut_paste"
    splits: ClassVar[Mapping[str, int]] = {}
    default_split = ""
    layouts = (f"{IMAGES}/ID.png with {LABELS}/ID.png and cut_paste.yaml",)

    def __init__(self, path: str, split: str | None = None) -> None:
        """Read the manifest and find the files. path: the folder; there are no splits. Raises DatasetError."""
        if split:
            raise DatasetError(f"cut_paste has no splits, {split!r} was given; expected the folder alone")
        root = Path(path).expanduser()
        if not root.is_dir():
            raise DatasetError(f"cut_paste: {path!r} is not a folder; give what `datasets cut-paste` wrote")
        self.manifest = read_manifest(root)
        made_of = self.manifest.made_of
        self.path, self.split = path, ""
        self.published_count = self.manifest.count
        self.label_set, self.classes = made_of.label_set, made_of.classes
        self._use(self.find_official(root))

    def find_official(self, root: Path) -> Found:
        """Return images/* with labels/*.png."""
        codes = label_codes(self.manifest.made_of.classes)
        return pair_folders(root / IMAGES, root / LABELS, codes, label_suffix=".png") or Found("official", (), codes)


def label_codes(classes: tuple[ClassInfo, ...]) -> LabelCodes:
    """Return what the values of labels/*.png mean."""
    known = [info.train_id for info in classes]
    return LabelCodes(
        f"train ids {min(known)} to {max(known)}, {OUTLIER} pasted, {UNLABELLED} unlabelled",
        labels={**{value: value for value in (*known, KNOWN_UNCERTAIN)}, OUTLIER: UNLABELLED, UNLABELLED: UNLABELLED},
        anomaly={**dict.fromkeys((*known, KNOWN_UNCERTAIN), KNOWN), OUTLIER: ANOMALY, UNLABELLED: VOID},
    )
