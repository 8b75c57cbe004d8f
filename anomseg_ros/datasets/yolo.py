"""Polygons of objects as Ultralytics' YOLO trainers take them: labels/ID.txt beside images/ID.jpg.

A line is `class x1 y1 x2 y2 …`, one polygon, with coordinates as shares of the picture's width and height. Class
numbers are those of COCO's 80 classes, in the order that the annotations of 2014 and later list them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomseg_ros.datasets.base import files_in, pair
from anomseg_ros.datasets.coco import polygon_mask
from anomseg_ros.errors import DatasetError

CLASSES: tuple[str, ...] = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,
bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,
snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,
knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,
dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,
scissors,teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")
)

_USUAL_PICTURE_PX = 640 * 480
"""Size of COCO's usual picture. The size of each is known only when it is read, which takes minutes for all of COCO."""


@dataclass(frozen=True, eq=False)
class YoloObject:
    """One line of a label file. polygon: float32 (N, 2), x and y as shares of width and height."""

    kind: str
    image_path: Path
    label_path: Path
    polygon: npt.NDArray[np.float32]
    title: str

    @property
    def usual_area_px(self) -> float:
        """Return the polygon's area in a picture of 640x480."""
        x, y = self.polygon.T.astype(np.float64)
        return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 * _USUAL_PICTURE_PX)

    def mask(self, size_px: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Return the object's pixels in its picture, bool (H, W); size_px: height and width."""
        height, width = size_px[:2]
        return polygon_mask([self.polygon * np.array([width, height], np.float32)], (height, width))


def read_yolo(root: Path) -> list[YoloObject]:
    """Return all objects of ROOT/labels/*.txt with their pictures in ROOT/images; [] if there is no such label file.

    As in YOLO's trainers, pictures without a label file hold no object, and labels without a picture are passed over.
    Raises DatasetError for a line that is none.
    """
    labels = [path for path in (root / "labels").glob("*.txt") if not path.name.startswith(".")]
    if not labels or not (root / "images").is_dir():
        return []
    samples, _ = pair(((path.stem, path) for path in files_in(root / "images")), ((path.stem, path) for path in labels))
    return [found for sample in samples for found in _read_lines(sample.image_path, sample.label_path)]


def _read_lines(image_path: Path, label_path: Path) -> list[YoloObject]:
    try:
        lines = label_path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {str(label_path)!r}: {error}") from None
    return [_parse(line, number, image_path, label_path) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, number: int, image_path: Path, label_path: Path) -> YoloObject:
    title = f"line {number} of {str(label_path)!r}"
    try:
        class_number, *values = line.split()
        kind, points = CLASSES[_index(class_number)], np.array(values, np.float32).reshape(-1, 2)
    except (ValueError, IndexError):
        kind, points = "", np.empty((0, 2), np.float32)
    if len(points) < 3 or not bool(((points >= -0.01) & (points <= 1.01)).all()):
        raise DatasetError(
            f"{title} is {line[:60]!r}; expected a class of 0 to {len(CLASSES) - 1} and at least three points "
            "x y between 0 and 1"
        )
    return YoloObject(kind, image_path, label_path, points, title)


def _index(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number
