"""Polygons of objects in the format of Ultralytics' YOLO trainers: labels/ID.txt for images/ID.jpg.

A line `class x1 y1 x2 y2 …` is one polygon, with coordinates as shares of the picture's width and height. Class numbers
are those of COCO's 80 classes, in the order of the annotations of 2014 and later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.file_pairs import files_in, pair
from anomseg_ros.core.pixel_files import read_picture
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import DatasetError
from anomseg_ros.outliers.coco import polygon_mask
from anomseg_ros.outliers.masks import require_object

CLASSES: tuple[str, ...] = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,
bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,
snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,
knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,
dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,
scissors,teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")
)

_USUAL_PICTURE_PX = 640 * 480
"""Size of COCO's usual picture. Reading the true size of each would take minutes for all of COCO."""


@dataclass(frozen=True, eq=False)
class YoloObject:
    """One line of a label file. polygon: float32 (N, 2), x and y as shares of width and height."""

    kind: str
    image_path: Path
    label_path: Path
    polygon: npt.NDArray[np.float32]
    title: str
    in_photograph = True

    @property
    def picture(self) -> str:
        """Name of its picture."""
        return self.image_path.stem

    @property
    def usual_area_px(self) -> float:
        """Return the polygon's area in a picture of 640x480."""
        x, y = self.polygon.T.astype(np.float64)
        return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 * _USUAL_PICTURE_PX)

    def read(self) -> tuple[RgbImage, npt.NDArray[np.bool_]]:
        """Return picture and mask; see files.Entry."""
        image = read_picture(self.image_path)
        height, width = image.shape[:2]
        mask = polygon_mask([self.polygon * np.array([width, height], np.float32)], (height, width))
        return image, require_object(mask, self.title)


def read_yolo(root: Path) -> list[YoloObject]:
    """Return all objects of ROOT/labels/*.txt with pictures in ROOT/images; [] if there is no such label file.

    As in YOLO's trainers, pictures without a label file hold no object, and labels without a picture are ignored.
    Raises DatasetError for a wrong line.
    """
    labels = [path for path in (root / "labels").glob("*.txt") if not path.name.startswith(".")]
    if not labels or not (root / "images").is_dir():
        return []
    samples, _ = pair(((path.stem, path) for path in files_in(root / "images")), ((path.stem, path) for path in labels))
    return [item for sample in samples for item in _read_lines(sample.image_path, sample.label_path)]


def _read_lines(image_path: Path, label_path: Path) -> list[YoloObject]:
    try:
        lines = label_path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {str(label_path)!r}: {error}") from None
    return [_parse(line, number, image_path, label_path) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, number: int, image_path: Path, label_path: Path) -> YoloObject:
    title = f"line {number} of {str(label_path)!r}"
    try:
        number_text, *values = line.split()
        kind, points = dict(enumerate(CLASSES))[int(number_text)], np.array(values, np.float32).reshape(-1, 2)
    except (ValueError, KeyError):
        kind, points = "", np.empty((0, 2), np.float32)
    if len(points) < 3 or not bool(((points >= -0.01) & (points <= 1.01)).all()):
        raise DatasetError(
            f"{title} is {line[:60]!r}; expected a class of 0 to {len(CLASSES) - 1} and at least three points "
            "x y between 0 and 1"
        )
    return YoloObject(kind, image_path, label_path, points, title)
