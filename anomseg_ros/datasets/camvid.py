"""CamVid (Brostow et al., 2009) in the 11 classes, size and splits of SegNet's tutorial (Badrinarayanan et al., 2017).

Frames have semantic labels but no anomaly mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomseg_ros.core.labels import CAMVID, UNLABELLED
from anomseg_ros.datasets.dataset import FileDataset, Found, LabelCodes, pair_folders

CODES = LabelCodes(
    "CamVid classes 0 to 10, 11 unlabelled",
    labels={**{train_id: train_id for train_id in range(11)}, 11: UNLABELLED, 255: UNLABELLED},
)


class CamVid(FileDataset):
    """Frames and labels in two folders per split: val and valannot, and so on."""

    name = "camvid"
    splits: ClassVar[Mapping[str, int]] = {"train": 367, "val": 101, "test": 233}
    default_split = "val"
    layouts = ("val/ID.png with valannot/ID.png",)
    label_set = "camvid"
    classes = CAMVID
    folders = ("CamVid", "camvid")
    flat_codes = CODES

    def find_official(self, root: Path) -> Found | None:
        """Return SPLIT/* with SPLITannot/*.png."""
        return pair_folders(root / self.split, root / f"{self.split}annot", CODES, label_suffix=".png")
