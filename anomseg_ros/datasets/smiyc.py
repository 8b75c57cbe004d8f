"""SegmentMeIfYouCan's RoadAnomaly21 and RoadObstacle21, validation frames (Chan et al., NeurIPS D&B 2021).

Names, label values and left-out frames are those of the road-anomaly-benchmark repository (datasets/tracks.py). The
archives also contain the test frames. Their labels are not public, so only the validation frames are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomseg_ros.core.file_pairs import files_in, pair, with_suffix_removed
from anomseg_ros.datasets.dataset import FLAT_CODES, FileDataset, Found

LABEL_SUFFIX = "_labels_semantic.png"


class _Track(FileDataset):
    default_split = "validation"
    left_out: ClassVar[tuple[str, ...]] = ()

    def find_official(self, root: Path) -> Found | None:
        """Return images/validation* with labels_masks/*_labels_semantic.png."""
        labels = with_suffix_removed(files_in(root / "labels_masks"), LABEL_SUFFIX)
        if not labels:
            return None
        images = [(path.stem, path) for path in files_in(root / "images")]
        samples, problems = pair(
            [entry for entry in images if self._is_used(entry[0])],
            [entry for entry in labels if self._is_used(entry[0])],
        )
        return Found("official", samples, FLAT_CODES, problems)

    def _is_used(self, id_: str) -> bool:
        return id_.startswith("validation") and not id_.startswith(self.left_out)


class RoadAnomaly21(_Track):
    """RoadAnomaly21: anomalies anywhere in the picture."""

    name = "road_anomaly_21"
    splits: ClassVar[Mapping[str, int]] = {"validation": 10}
    layouts = ("dataset_AnomalyTrack/images/validation0000.jpg with labels_masks/validation0000_labels_semantic.png",)
    folders = ("dataset_AnomalyTrack", "RoadAnomaly21")


class RoadObstacle21(_Track):
    """RoadObstacle21: obstacles on the road ahead, all else void."""

    name = "road_obstacle_21"
    splits: ClassVar[Mapping[str, int]] = {"validation": 30}
    layouts = ("dataset_ObstacleTrack/images/validation_1.webp with labels_masks/validation_1_labels_semantic.png",)
    folders = ("dataset_ObstacleTrack", "RoadObstacle21", "RoadObsticle21")
    # `ObstacleTrack-validation` leaves these out.
    left_out = ("validation_19", *(f"validation_{number}" for number in range(21, 30)))
