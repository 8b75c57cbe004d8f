"""ADE-OoD: 111 scenes, not only of roads, with objects that ADE20k lacks (Galesso et al., ECCV 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomseg_ros.datasets.dataset import FLAT_CODES, FileDataset, Found, pair_folders


class AdeOod(FileDataset):
    """The whole benchmark; it has no splits."""

    name = "ade_ood"
    splits: ClassVar[Mapping[str, int]] = {"test": 111}
    default_split = "test"
    layouts = ("images/X.jpg with annotations/X_mask.png",)
    folders = ("ade_ood", "ADE-OoD", "ADE_OoD")

    def find_official(self, root: Path) -> Found | None:
        """Return images/* with annotations/*_mask.png: 0 known, 1 anomaly, 255 void (evaluation/evaluator.py)."""
        return pair_folders(root / "images", root / "annotations", FLAT_CODES, label_suffix="_mask.png")
