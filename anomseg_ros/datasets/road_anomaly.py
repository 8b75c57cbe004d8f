"""RoadAnomaly: 60 pictures of unusual dangers (Lis et al., "Detecting the Unexpected via Image Resynthesis", 2019).

Label values are those of its authors' loaders: 0 background, 1 road, 2 anomaly, 255 ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomseg_ros.core.file_pairs import files_in, pair
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.datasets.dataset import ANOMALY, KNOWN, VOID, FileDataset, Found, LabelCodes
from anomseg_ros.errors import DatasetError

CODES = LabelCodes("0 background, 1 road, 2 anomaly, 255 void", anomaly={0: KNOWN, 1: KNOWN, 2: ANOMALY, 255: VOID})


class RoadAnomaly(FileDataset):
    """The whole dataset; it has no splits of its own."""

    name = "road_anomaly"
    splits: ClassVar[Mapping[str, int]] = {"test": 60}
    default_split = "test"
    layouts = ("RoadAnomaly_jpg/frames/X.jpg with frames/X.labels/labels_semantic.png",)
    folders = ("RoadAnomaly_jpg", "RoadAnomaly", "dataset_RoadAnomaly")
    # Flat copies have the value 2, or masks of 0 and 1.
    flat_codes = LabelCodes("0 known, 1 or 2 anomaly, 255 void", anomaly={0: KNOWN, 1: ANOMALY, 2: ANOMALY, 255: VOID})

    def find_official(self, root: Path) -> Found | None:
        """Return the frames that frame_list.json names, or all of them where there is no such list."""
        frames = root / "frames"
        if not frames.is_dir():
            return None
        images = {path.stem: path for path in files_in(frames)}
        listed = _listed(root / "frame_list.json")
        labels = (
            (path.parent.name.removesuffix(".labels"), path) for path in frames.glob("*.labels/labels_semantic.png")
        )
        samples, problems = pair(
            [entry for entry in images.items() if listed is None or entry[0] in listed],
            [entry for entry in labels if listed is None or entry[0] in listed],
        )
        absent = [name for stem, name in (listed or {}).items() if stem not in images]
        return Found("official", samples, CODES, (*problems, *(_absent(frames / name) for name in absent)))


def _listed(path: Path) -> dict[str, str] | None:
    """Return stem -> file name of a frame list, None if there is no list."""
    if not path.is_file():
        return None
    try:
        names = parse_json(path.read_text(encoding="utf-8"))
        return {Path(name).stem: Path(name).name for name in names}
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{str(path)!r} is not a list of file names ({error}); unpack it again") from None


def _absent(path: Path) -> FrameProblem:
    return FrameProblem("unreadable", path, "named in frame_list.json, but not there")
