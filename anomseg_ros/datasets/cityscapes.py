"""Cityscapes (Cordts et al., CVPR 2016): fine annotations of the training and validation cities.

The labels are the 19 evaluated classes as train ids; all others are 255. Those 255 pixels are what a void classifier is
trained on; they are no ground truth of anomalies, so frames have no anomaly mask. The test split is left out: its
published labels are blank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomseg_ros.core.labels import CITYSCAPES, UNLABELLED
from anomseg_ros.datasets.base import FileDataset, Found, LabelCodes, files_in, pair, with_suffix_removed

# cityscapesScripts' labels.py: label id -> train id of the evaluated classes.
TRAIN_IDS = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}
LABEL_ID_CODES = LabelCodes(
    "Cityscapes label ids, 0 to 33",
    labels={**dict.fromkeys((*range(34), 255), UNLABELLED), **TRAIN_IDS},
)
TRAIN_ID_CODES = LabelCodes(
    "Cityscapes train ids, 0 to 18, 255 unlabelled",
    labels={**{train_id: train_id for train_id in range(19)}, 255: UNLABELLED},
)


class Cityscapes(FileDataset):
    """Fine annotations; labelIds files, or labelTrainIds files where only those are there."""

    name = "cityscapes"
    splits: ClassVar[Mapping[str, int]] = {"train": 2975, "val": 500}
    default_split = "val"
    layouts = (
        "leftImg8bit/val/CITY/ID_leftImg8bit.png with gtFine/val/CITY/ID_gtFine_labelIds.png",
        "images/ID_leftImg8bit.png with labels/ID_gtFine_labelIds.png, in folders of sequences or in none",
    )
    label_set = "cityscapes"
    classes = CITYSCAPES
    folders = ("cityscapes", "Cityscapes", "CityScapes")
    flat_codes = TRAIN_ID_CODES

    def find_official(self, root: Path) -> Found | None:
        """Return leftImg8bit/SPLIT/*/*_leftImg8bit.* with the labels of gtFine/SPLIT, or images/ with labels/."""
        images = _folder(root, "leftImg8bit", self.split)
        annotations = _folder(root, "gtFine", self.split)
        if images is None or annotations is None:
            return _part(root)
        files = files_in(annotations, "*/*.png")
        labels, codes = with_suffix_removed(files, "_gtFine_labelIds.png"), LABEL_ID_CODES
        if not labels:
            labels, codes = with_suffix_removed(files, "_gtFine_labelTrainIds.png"), TRAIN_ID_CODES
        samples, problems = pair(with_suffix_removed(files_in(images, "*/*"), "_leftImg8bit"), labels)
        return Found("official", samples, codes, problems)


def _part(root: Path) -> Found | None:
    """Return images/**/ID_leftImg8bit.* with labels/**/ID_gtFine_labelIds.png: some of the frames.

    Label ids that were made by a network are often named like their picture: ID_leftImg8bit.png.
    """
    pictures = with_suffix_removed(files_in(root / "images", "**/*"), "_leftImg8bit")
    files = files_in(root / "labels", "**/*.png")
    labels = with_suffix_removed(files, "_gtFine_labelIds.png") + with_suffix_removed(files, "_leftImg8bit.png")
    if not pictures or not labels:
        return None
    samples, problems = pair(pictures, labels)
    return Found("part", samples, LABEL_ID_CODES, problems)


def _folder(root: Path, kind: str, split: str) -> Path | None:
    """Return the folder of a split, also where each archive was unpacked to a folder of its own name."""
    places = (root / kind / split, root / f"{kind}_trainvaltest" / kind / split)
    return next((place for place in places if place.is_dir()), None)
