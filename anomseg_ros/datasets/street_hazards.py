"""StreetHazards of the CAOS benchmark (Hendrycks et al., "Scaling Out-of-Distribution Detection", ICML 2022).

The archives unpack to train/ and test/; the label files hold class + 1 (hendrycks/anomaly-seg, create_dataset.py and
dataset.py; issues 15 and 17): 1 unlabelled, a class that is trained and counts as known, to 13 traffic sign, and
14 anomaly, in the test split only. 0 is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomseg_ros.core.file_pairs import files_in, pair
from anomseg_ros.core.labels import UNLABELLED, ClassInfo
from anomseg_ros.datasets.dataset import ANOMALY, KNOWN, VOID, FileDataset, Found, LabelCodes

STREET_HAZARDS = tuple(
    ClassInfo(name, color, train_id)
    for train_id, (name, color) in enumerate(
        (
            ("unlabelled", (0, 0, 0)),
            ("building", (70, 70, 70)),
            ("fence", (190, 153, 153)),
            ("other", (250, 170, 160)),
            ("pedestrian", (220, 20, 60)),
            ("pole", (153, 153, 153)),
            ("road line", (157, 234, 50)),
            ("road", (128, 64, 128)),
            ("sidewalk", (244, 35, 232)),
            ("vegetation", (107, 142, 35)),
            ("car", (0, 0, 142)),
            ("wall", (102, 102, 156)),
            ("traffic sign", (220, 220, 0)),
        )
    )
)
CLASS_IDS = {train_id + 1: train_id for train_id in range(13)}
TRAIN_CODES = LabelCodes("1 to 13, one more than the class", labels={0: UNLABELLED, **CLASS_IDS})
TEST_CODES = LabelCodes(
    "1 to 13, one more than the class, and 14 anomaly",
    labels={0: UNLABELLED, **CLASS_IDS, 14: UNLABELLED},
    anomaly={0: VOID, **dict.fromkeys(CLASS_IDS, KNOWN), 14: ANOMALY},
)
FOLDERS = {"train": ("train", "training"), "val": ("train", "validation"), "test": ("test", "test")}


class StreetHazards(FileDataset):
    """Rendered streets; only the test split has anomalies."""

    name = "street_hazards"
    splits: ClassVar[Mapping[str, int]] = {"train": 5125, "val": 1031, "test": 1500}
    default_split = "test"
    layouts = ("test/images/test/TOWN/N.png with test/annotations/test/TOWN/N.png",)
    label_set = "street_hazards"
    classes = STREET_HAZARDS
    folders = ("street_hazards", "streethazards", "StreetHazards")

    def find_official(self, root: Path) -> Found | None:
        """Return ARCHIVE/images/FOLDER/TOWN/* with ARCHIVE/annotations/FOLDER/TOWN/*."""
        archive, folder = FOLDERS[self.split]
        images, labels = (root / archive / kind / folder for kind in ("images", "annotations"))
        if not images.is_dir() or not labels.is_dir():
            return None
        samples, problems = pair(_by_town(images), _by_town(labels))
        return Found("official", samples, TEST_CODES if self.split == "test" else TRAIN_CODES, problems)


def _by_town(folder: Path) -> list[tuple[str, Path]]:
    """Return (TOWN/stem, path): numbers repeat between towns."""
    return [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in files_in(folder, "**/*")]
