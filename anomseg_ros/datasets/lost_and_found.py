"""Lost and Found: small obstacles on the road (Pinggera et al., IROS 2016), with its coarse labels.

Label values are those of the road-anomaly-benchmark repository: 0 ignored, 1 free space, 2 to 200 obstacles. In
seventeen test frames and six training frames all pixels are 0, so no metric counts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomseg_ros.datasets.dataset import ANOMALY, KNOWN, VOID, FileDataset, Found, LabelCodes, pair_folders

CODES = LabelCodes(
    "0 ignored, 1 free space, 2 to 200 obstacles",
    anomaly={0: VOID, 1: KNOWN, **dict.fromkeys(range(2, 201), ANOMALY)},
)


class LostAndFound(FileDataset):
    """The left 8-bit images."""

    name = "lost_and_found"
    splits: ClassVar[Mapping[str, int]] = {"train": 1036, "test": 1203}
    default_split = "test"
    layouts = ("leftImg8bit/test/SEQ/ID_leftImg8bit.png with gtCoarse/test/SEQ/ID_gtCoarse_labelIds.png",)
    folders = ("dataset_LostAndFound", "LostAndFound", "lostandfound", "lost_and_found")

    def find_official(self, root: Path) -> Found | None:
        """Return leftImg8bit/SPLIT/*/*_leftImg8bit.* with gtCoarse/SPLIT/*/*_gtCoarse_labelIds.png."""
        return pair_folders(
            root / "leftImg8bit" / self.split,
            root / "gtCoarse" / self.split,
            CODES,
            pattern="*/*",
            image_suffix="_leftImg8bit",
            label_suffix="_gtCoarse_labelIds.png",
        )
