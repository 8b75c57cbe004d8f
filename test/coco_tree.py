"""A small folder in the layout of COCO, and encoders of its masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 80, 100
CLASSES = {3: "car", 18: "dog", 62: "chair"}
BOXES = {"dog": (10, 20, 50, 70), "chair": (5, 5, 60, 45), "car": (0, 0, 40, 40), "small": (2, 2, 12, 12)}
"""Top, left, bottom, right of each object's mask."""


def coco(
    root: Path, form: str = "polygon", pictures: str = "train2017", empty_dog: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write two pictures with a dog (1), a chair (2), a car (3), a small dog (4) and a crowd of dogs (5).

    form of the masks: polygon, runs or packed. Returns picture (RGB) and mask of dog and chair.
    """
    rng = np.random.default_rng(0)
    folder = root / pictures
    folder.mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir()
    images = {}
    for name in ("a.png", "b.png"):
        images[name] = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), images[name][:, :, ::-1])
    rows = [("dog", 18, 1, 0), ("chair", 62, 2, 0), ("car", 3, 1, 0), ("small", 18, 2, 0), ("dog", 18, 2, 1)]
    annotations = []
    for number, (box, category, image_id, crowd) in enumerate(rows, start=1):
        top, left, bottom, right = BOXES[box]
        if empty_dog and number == 1:
            top, left, bottom, right = 10, 10, 10, 10
        area = 2000 if box == "dog" else (bottom - top) * (right - left)
        segmentation = segment((top, left, bottom, right), "runs" if crowd else form)
        annotations.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": category,
                "iscrowd": crowd,
                "area": area,
                "segmentation": segmentation,
            }
        )
    data = {
        "images": [
            {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for number, name in enumerate(images, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in CLASSES.items()],
        "annotations": annotations,
    }
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(data))
    return {"dog": (images["a.png"], mask_of(BOXES["dog"])), "chair": (images["b.png"], mask_of(BOXES["chair"]))}


def mask_of(box: tuple[int, int, int, int]) -> np.ndarray:
    top, left, bottom, right = box
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def segment(box: tuple[int, int, int, int], form: str) -> object:
    """Return COCO's `segmentation` of a box."""
    top, left, bottom, right = box
    if form == "polygon":
        return [[left, top, right, top, right, bottom, left, bottom]]
    runs = runs_of(mask_of(box))
    return {"size": [HEIGHT, WIDTH], "counts": runs if form == "runs" else packed(runs)}


def runs_of(mask: np.ndarray) -> list[int]:
    """Return the run lengths of a mask in column order, starting with background."""
    flat = mask.T.reshape(-1)
    starts = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    runs = np.diff([0, *starts, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def packed(runs: list[int]) -> str:
    """Return run lengths as text in the encoding of the COCO mask API."""
    text = ""
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + (32 if more else 0))
    return text
