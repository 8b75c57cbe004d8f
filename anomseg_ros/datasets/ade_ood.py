"""ADE-OoD: 111 scenes with objects foreign to ADE20k (Galesso et al., ECCV 2024), not only of roads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomseg_ros.datasets.base import FLAT_CODES, FileDataset, Found, files_in, pair, with_suffix_removed


class AdeOod(FileDataset):
    """The whole benchmark; it has no splits."""

    name = "ade_ood"
    splits: ClassVar[Mapping[str, int]] = {"test": 111}
    default_split = "test"
    layouts = ("images/X.jpg with annotations/X_mask.png",)
    folders = ("ade_ood", "ADE-OoD", "ADE_OoD")

    def find_official(self, root: Path) -> Found | None:
        """Return images/* with annotations/*_mask.png: 0 known, 1 anomaly, 255 void (evaluation/evaluator.py)."""
        images, labels = root / "images", root / "annotations"
        if not images.is_dir() or not labels.is_dir():
            return None
        samples, problems = pair(
            ((path.stem, path) for path in files_in(images)), with_suffix_removed(files_in(labels), "_mask.png")
        )
        return Found("official", samples, FLAT_CODES, problems)
