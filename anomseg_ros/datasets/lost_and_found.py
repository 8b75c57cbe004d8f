"""Lost and Found: small obstacles on the road (Pinggera et al., IROS 2016), with its coarse labels.

Label values as the road-anomaly-benchmark repository reads them: 0 ignored, 1 free space, 2 to 200 obstacles. Seventeen
test frames and six training frames are labelled 0 throughout; no metric counts a pixel of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomseg_ros.datasets.base import (
    ANOMALY,
    KNOWN,
    VOID,
    FileDataset,
    Found,
    LabelCodes,
    files_in,
    pair,
    with_suffix_removed,
)

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
        images, labels = root / "leftImg8bit" / self.split, root / "gtCoarse" / self.split
        if not images.is_dir() or not labels.is_dir():
            return None
        samples, problems = pair(
            with_suffix_removed(files_in(images, "*/*"), "_leftImg8bit"),
            with_suffix_removed(files_in(labels, "*/*"), "_gtCoarse_labelIds.png"),
        )
        return Found("official", samples, CODES, problems)
