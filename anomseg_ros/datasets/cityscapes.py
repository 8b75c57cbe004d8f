"""Cityscapes (Cordts et al., CVPR 2016): fine annotations of the training and validation cities.

The labels are the train ids of the 19 evaluated classes; all other pixels are 255. A void classifier is trained on the
255 pixels. They are no ground truth of anomalies, so frames have no anomaly mask. The test split is left out, since its
published labels are blank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomseg_ros.core.file_pairs import files_in, pair, with_suffix_removed
from anomseg_ros.core.labels import CITYSCAPES, UNLABELLED
from anomseg_ros.datasets.dataset import FileDataset, Found, LabelCodes

# cityscapesScripts' labels.py: the label ids of the evaluated classes, by train id.
_EVALUATED_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
TRAIN_IDS = {label_id: train_id for train_id, label_id in enumerate(_EVALUATED_IDS)}
LABEL_ID_CODES = LabelCodes(
    "Cityscapes label ids, 0 to 33",
    labels={**dict.fromkeys((*range(34), 255), UNLABELLED), **TRAIN_IDS},
)
TRAIN_ID_CODES = LabelCodes(
    "Cityscapes train ids, 0 to 18, 255 unlabelled",
    labels={**{train_id: train_id for train_id in range(19)}, 255: UNLABELLED},
)


class Cityscapes(FileDataset):
    """Fine annotations: labelIds files, or labelTrainIds files if there are no others."""

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
    """Return images/**/ID_leftImg8bit.* with labels/**/ID_gtFine_labelIds.png, a part of the frames.

    Label ids from a network often have their picture's name: ID_leftImg8bit.png.
    """
    pictures = with_suffix_removed(files_in(root / "images", "**/*"), "_leftImg8bit")
    files = files_in(root / "labels", "**/*.png")
    labels = with_suffix_removed(files, "_gtFine_labelIds.png") + with_suffix_removed(files, "_leftImg8bit.png")
    if not pictures or not labels:
        return None
    samples, problems = pair(pictures, labels)
    return Found("part", samples, LABEL_ID_CODES, problems)


def _folder(root: Path, kind: str, split: str) -> Path | None:
    """Return the folder of a split, also if each archive was unpacked to a folder with the archive's name."""
    places = (root / kind / split, root / f"{kind}_trainvaltest" / kind / split)
    return next((place for place in places if place.is_dir()), None)
