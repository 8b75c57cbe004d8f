"""The same two labelled pictures as labelling tools and datasets export them, and what an import must make of them."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from coco_tree import packed, runs_of
from dataset_trees import image, write

HEIGHT, WIDTH = SIZE = (6, 8)
NAMES = ("road", "car", "debris")
COLORS = {"road": (128, 64, 128), "car": (0, 0, 142), "debris": (250, 1, 2)}
BOXES = {"road": (3, 0, 6, 8), "car": (2, 2, 5, 5), "debris": (4, 6, 6, 8)}
"""Top, left, bottom and right of each class in frame a; frame b has the road alone. Later classes cover others."""
FRAMES = {"a": NAMES, "b": NAMES[:1]}


def truth(frame: str) -> np.ndarray:
    """Return the labels of a frame: indices of NAMES, 255 where nothing is labelled."""
    labels = np.full(SIZE, 255, np.uint8)
    for name in FRAMES[frame]:
        labels[mask_of(name)] = NAMES.index(name)
    return labels


def picture(frame: str) -> np.ndarray:
    return image(1 + list(FRAMES).index(frame))


def mask_of(name: str) -> np.ndarray:
    top, left, bottom, right = BOXES[name]
    mask = np.zeros(SIZE, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def write_pictures(folder: Path) -> None:
    for frame in FRAMES:
        write(folder / f"{frame}.png", picture(frame))


def cvat_xml(root: Path) -> None:
    """Road as a polygon, car as a mask, debris as a box; in the file the car comes first."""
    write_pictures(root / "images")
    labels = "".join(
        f"<label><name>{name}</name><color>#{bytes(COLORS[name]).hex()}</color><type>any</type></label>"
        for name in NAMES
    )
    top, left, bottom, right = BOXES["car"]
    area = (bottom - top) * (right - left)
    shapes = {
        "car": f'<mask label="car" rle="0, {area}" left="{left}" top="{top}" width="{right - left}" '
        f'height="{bottom - top}" z_order="1"/>',
        "road": '<polygon label="road" points="0.0,3.0;8.0,3.0;8.0,6.0;0.0,6.0" z_order="0"/>',
        "debris": '<box label="debris" xtl="6" ytl="4" xbr="8" ybr="6" z_order="2"/>',
    }
    images = "".join(
        f'<image id="{number}" name="{frame}.png" width="{WIDTH}" height="{HEIGHT}">'
        f"{''.join(text for name, text in shapes.items() if name in FRAMES[frame])}</image>"
        for number, frame in enumerate(FRAMES)
    )
    nobody = f'<image id="9" name="unlabelled.png" width="{WIDTH}" height="{HEIGHT}"></image>'
    (root / "annotations.xml").write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><labels>{labels}'
        f"</labels></task></meta>{images}{nobody}</annotations>"
    )


def _colored(frame: str) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[: len(NAMES)] = [COLORS[name] for name in NAMES]
    return np.asarray(table[truth(frame)])


def cvat_masks(root: Path) -> None:
    write_pictures(root / "JPEGImages")
    write(root / "JPEGImages" / "unlabelled.png", image(9))
    for frame in FRAMES:
        write(root / "SegmentationClass" / f"{frame}.png", _colored(frame))
    rows = [f"{name}:{','.join(map(str, COLORS[name]))}::" for name in NAMES]
    text = "\n".join(["# label:color_rgb:parts:actions", *rows, "background:0,0,0::"])
    (root / "labelmap.txt").write_text(text + "\n")


def colors(root: Path) -> None:
    write_pictures(root / "images")
    for frame in FRAMES:
        write(root / "masks" / f"{frame}_L.png", _colored(frame))
    rows = [f"{name},{','.join(map(str, COLORS[name]))}" for name in NAMES]
    (root / "class_dict.csv").write_text("\n".join(["name,r,g,b", *rows, "Void,0,0,0"]))


def label_studio(root: Path) -> None:
    """Road as a polygon, car as a brush stroke, debris as a rectangle, in percent."""
    write_pictures(root / "images")
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    points = [[0, 50], [100, 50], [100, 100], [0, 100]]
    box = {"x": 75, "y": 100 * 4 / 6, "width": 25, "height": 100 * 2 / 6, "rotation": 0}
    rows: dict[str, dict[str, Any]] = {
        "road": {"type": "polygonlabels", "value": {"points": points, "polygonlabels": ["road"]}},
        "car": {"type": "brushlabels", "value": {"format": "rle", "rle": brush("car"), "brushlabels": ["car"]}},
        "debris": {"type": "rectanglelabels", "value": {**box, "rectanglelabels": ["debris"]}},
    }
    old = {"was_cancelled": False, "result": [{**size, **rows["debris"]}]}
    tasks = [
        {
            "data": {"image": f"/data/upload/3/0123abcd-{frame}.png", "note": "x"},
            "annotations": [
                old,
                {"was_cancelled": False, "result": [{**size, **rows[name]} for name in names]},
                {"was_cancelled": True, "result": []},
            ],
        }
        for frame, names in FRAMES.items()
    ]
    tasks.append({"data": {"image": "/data/upload/3/0123abcd-none.png"}, "annotations": []})
    (root / "project.json").write_text(json.dumps(tasks))


def brush(name: str) -> list[int]:
    """Return a mask as Label Studio packs it: a few values one by one, the others as runs."""
    values = np.repeat(np.where(mask_of(name), 255, 0).astype(np.uint8).reshape(-1), 4)
    bits = f"{len(values):032b}{7:05b}{3:04b}{7:04b}{11:04b}{15:04b}"
    bits += "0" + "00" + f"{3:04b}" + "".join(f"{value:08b}" for value in values[:4])
    rest = values[4:]
    edges = [0, *(np.flatnonzero(np.diff(rest)) + 1).tolist(), len(rest)]
    for start, end in pairwise(edges):
        bits += "1" + "01" + f"{end - start - 1:08b}{rest[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


def supervisely(root: Path) -> None:
    """Road as a polygon with a hole that the car's bitmap fills, debris as a rectangle; one dataset."""
    write_pictures(root / "ds0" / "img")
    rows = [{"title": name, "shape": "any", "color": f"#{bytes(COLORS[name]).hex()}"} for name in NAMES]
    (root / "meta.json").write_text(json.dumps({"classes": rows}))
    car = bitmap(np.full((3, 3), 255, np.uint8))
    objects = {
        "road": {"geometryType": "polygon", "points": {"exterior": [[0, 3], [7, 3], [7, 5], [0, 5]], "interior": []}},
        "car": {
            "geometryType": "bitmap",
            "bitmap": {"origin": [2, 2], "data": car},
        },
        "debris": {"geometryType": "rectangle", "points": {"exterior": [[6, 4], [7, 5]], "interior": []}},
    }
    for frame, names in {**FRAMES, "none": ()}.items():
        listed = [{"classTitle": name, **objects[name]} for name in names]
        path = root / "ds0" / "ann" / f"{frame}.png.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"size": {"height": HEIGHT, "width": WIDTH}, "objects": listed}))


def bitmap(pixels: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(cv2.imencode(".png", pixels)[1].tobytes())).decode()


def coco(root: Path) -> None:
    """Road as a polygon, car as run lengths, debris packed."""
    write_pictures(root / "images")
    annotations = []
    for number, (frame, name) in enumerate([(frame, name) for frame, names in FRAMES.items() for name in names], 1):
        runs = runs_of(mask_of(name))
        segmentation: Any = {"size": SIZE, "counts": runs if name == "car" else packed(runs)}
        if name == "road":
            segmentation = [[0, 3, 8, 3, 8, 6, 0, 6]]
        annotations.append(
            {
                **{"id": number, "image_id": list(FRAMES).index(frame), "category_id": 10 + NAMES.index(name)},
                **{"iscrowd": int(name == "car"), "area": int(mask_of(name).sum()), "segmentation": segmentation},
            }
        )
    data = {
        "images": [
            {"id": number, "file_name": f"{frame}.png", "height": HEIGHT, "width": WIDTH}
            for number, frame in enumerate(FRAMES)
        ],
        "categories": [{"id": 10 + number, "name": name} for number, name in enumerate(NAMES)],
        "annotations": annotations,
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_default.json").write_text(json.dumps(data))


def coco_panoptic(root: Path) -> None:
    """Segment ids need all three channels."""
    write_pictures(root / "val")
    numbers = {name: 70_000 + 300 * index for index, name in enumerate(NAMES)}
    annotations = []
    for index, (frame, names) in enumerate(FRAMES.items()):
        ids = np.zeros(256, np.int64)
        ids[: len(NAMES)] = [numbers[name] for name in NAMES]
        found = ids[truth(frame)]
        pixels = np.stack([found % 256, found // 256 % 256, found // 65536], axis=2).astype(np.uint8)
        write(root / "annotations" / "panoptic_val" / f"{frame}.png", pixels)
        segments = [{"id": numbers[name], "category_id": 10 + NAMES.index(name)} for name in names]
        annotations.append({"image_id": index, "file_name": f"{frame}.png", "segments_info": segments})
    data = {
        "images": [{"id": index, "file_name": f"{frame}.png"} for index, frame in enumerate(FRAMES)],
        "categories": [{"id": 10 + i, "name": name, "color": list(COLORS[name])} for i, name in enumerate(NAMES)],
        "annotations": annotations,
    }
    (root / "annotations" / "panoptic_val.json").write_text(json.dumps(data))


def mapillary(root: Path) -> None:
    """Frame a is for training, frame b for validation; 255 of the truth is the class Unlabeled."""
    rows = [{"name": f"object--{name}", "readable": name, "color": COLORS[name]} for name in NAMES]
    rows.append({"name": "void--unlabeled", "readable": "Unlabeled", "color": (0, 0, 0)})
    root.mkdir(parents=True, exist_ok=True)
    (root / "config_v2.0.json").write_text(json.dumps({"labels": rows}))
    for frame, folder in (("a", "training"), ("b", "validation")):
        write(root / folder / "images" / f"{frame}.png", picture(frame))
        write(root / folder / "v2.0" / "labels" / f"{frame}.png", np.minimum(truth(frame), 3))


WRITERS: dict[str, tuple[str, Callable[[Path], None], tuple[str, str]]] = {
    "cvat xml": ("cvat", cvat_xml, ("a", "b")),
    "cvat masks": ("cvat", cvat_masks, ("a", "b")),
    "colors": ("colors", colors, ("a", "b")),
    "label-studio": ("label-studio", label_studio, ("a", "b")),
    "supervisely": ("supervisely", supervisely, ("ds0/a", "ds0/b")),
    "coco": ("coco", coco, ("images/a", "images/b")),
    "coco-panoptic": ("coco-panoptic", coco_panoptic, ("val/a", "val/b")),
    "mapillary": ("mapillary", mapillary, ("training/a", "validation/b")),
}
"""Case -> format, writer of an export, names of the frames a and b in a folder."""


def written(case: str, root: Path) -> tuple[str, Path]:
    """Write an export; return its format and folder."""
    name, writer, _ = WRITERS[case]
    root.mkdir(parents=True, exist_ok=True)
    writer(root)
    return name, root


DRIVE_COLORS = {
    "background": (0, 0, 0),
    "drivable": (110, 110, 120),
    "path": (244, 35, 232),
    "green": (60, 150, 40),
    "sky": (70, 130, 180),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "debris": (255, 120, 0),
}
"""Classes of cvat_drive; five remain with --map car=vehicle truck=vehicle and --outliers debris."""
DRIVE_SEED = 1
_DRAWN = {"road": "drivable", "sidewalk": "path", "vegetation": "green", "terrain": "green", "sky": "sky", "car": "car"}


def cvat_drive(root: Path, frames: int, size_px: tuple[int, int] | None = None) -> Path:
    """Write frames of a drawn drive, three seconds apart, as CVAT exports masks. size_px: height and width."""
    from anomseg_ros.core.labels import CITYSCAPES, palette
    from anomseg_ros.scenes.sequence import SyntheticConfig, SyntheticSequence

    names = {**_DRAWN, "truck": "truck", "bus": "truck"}
    painted = [info for info in CITYSCAPES if info.name in names]
    colors = palette([type(info)(info.name, DRIVE_COLORS[names[info.name]], info.train_id) for info in painted])
    drive = SyntheticSequence(DRIVE_SEED, SyntheticConfig(anomaly_probability=1.0))
    for number in range(frames):
        frame = drive.frame(30 * number)
        labels = np.where(
            frame.anomaly[:, :, None] == 1, np.array(DRIVE_COLORS["debris"], np.uint8), colors[frame.labels]
        )
        for folder, pixels, how in (
            ("JPEGImages", frame.image, cv2.INTER_AREA),
            ("SegmentationClass", labels, cv2.INTER_NEAREST),
        ):
            height, width = size_px or pixels.shape[:2]
            write(root / folder / f"drive_{number:04d}.png", cv2.resize(pixels, (width, height), interpolation=how))
    rows = [f"{name}:{','.join(map(str, color))}::" for name, color in DRIVE_COLORS.items()]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *rows]) + "\n")
    return root
