"""Label sets: class names, colours and train ids of the datasets that road-scene networks are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomseg_ros.core import ade20k
from anomseg_ros.errors import ConfigError, unknown_name

UNLABELLED = 255
"""Train id of pixels that belong to no known class: ignored in training, `void` in a prediction."""

KNOWN_UNCERTAIN = 252
"""Label of pixels that belong to a known class, but which one is not stated. Metrics leave them out; training teaches
only that they are not void."""

UNLABELLED_COLOR = (0, 0, 0)


@dataclass(frozen=True)
class ClassInfo:
    """One class: its name, its RGB colour and the train id it has in label images (255 for void)."""

    name: str
    color: tuple[int, int, int]
    train_id: int


def _label_set(*rows: tuple[str, tuple[int, int, int]]) -> tuple[ClassInfo, ...]:
    return tuple(ClassInfo(name, color, train_id) for train_id, (name, color) in enumerate(rows))


# Names, order and colours of cityscapesScripts' labels.py (Cordts et al., CVPR 2016), the 19 evaluated classes.
CITYSCAPES = _label_set(
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)

# CamVid's 11-class subset, in the order of SegNet's tutorial labels (Badrinarayanan et al., 2017).
CAMVID = _label_set(
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

ADE20K = _label_set(*zip(ade20k.NAMES, ade20k.colours(), strict=True))

# Class name of a label set -> the Cityscapes classes that it covers. CamVid's classes are coarser: "sign symbol"
# includes traffic lights, "car" every motor vehicle on four wheels, "bicyclist" both the cycle and the rider.
CITYSCAPES_CLASSES_OF: dict[str, dict[str, tuple[str, ...]]] = {
    "cityscapes": {info.name: (info.name,) for info in CITYSCAPES},
    "camvid": {
        "sky": ("sky",),
        "building": ("building", "wall"),
        "pole": ("pole",),
        "road": ("road",),
        "pavement": ("sidewalk",),
        "tree": ("vegetation", "terrain"),
        "sign symbol": ("traffic light", "traffic sign"),
        "fence": ("fence", "wall"),
        "car": ("car", "truck", "bus", "train"),
        "pedestrian": ("person",),
        "bicyclist": ("rider", "motorcycle", "bicycle"),
    },
}

LABEL_SETS: dict[str, tuple[ClassInfo, ...]] = {"cityscapes": CITYSCAPES, "camvid": CAMVID, "ade20k": ADE20K}

VOID = ClassInfo("void", UNLABELLED_COLOR, UNLABELLED)


def label_set(name: str) -> tuple[ClassInfo, ...]:
    """Return the known classes of a label set, in train-id order."""
    if name not in LABEL_SETS:
        raise ConfigError(unknown_name("label set", name, LABEL_SETS))
    return LABEL_SETS[name]


def known_classes(classes: Sequence[ClassInfo], void_class: int | None) -> tuple[ClassInfo, ...]:
    """Return a bundle's classes without the void class, given by its index."""
    return tuple(info for index, info in enumerate(classes) if index != void_class)


def same_classes(ours: Sequence[ClassInfo] | None, theirs: Sequence[ClassInfo] | None) -> bool:
    """Return whether two label sets have the same names and train ids; colours do not matter."""
    return ours is not None and theirs is not None and _train_ids(ours) == _train_ids(theirs)


def class_map(known: Sequence[ClassInfo], wanted: Sequence[ClassInfo]) -> tuple[int, ...] | None:
    """Return 256 train ids of `wanted`, one for each label value of a prediction in the classes `known`.

    Each Cityscapes class is mapped to the first class of a coarser label set that covers it, so a wall is a building in
    CamVid. Values without a class become 255. Label sets are recognised by the names and train ids of their classes.
    Classes of the same names in another order are mapped by name; the result is None for any others.
    """
    ours, theirs = _train_ids(known), _train_ids(wanted)
    if ours.keys() == theirs.keys():
        by_id = {train_id: theirs[name] for name, train_id in ours.items()}
        return tuple(by_id.get(value, UNLABELLED) for value in range(256))
    for name, choices in CITYSCAPES_CLASSES_OF.items():
        if (ours, theirs) == (_train_ids(CITYSCAPES), _train_ids(LABEL_SETS[name])):
            table = [UNLABELLED] * 256
            for coarse, fine in reversed(choices.items()):
                for choice in fine:
                    table[ours[choice]] = theirs[coarse]
            return tuple(table)
    return None


def _train_ids(classes: Sequence[ClassInfo]) -> dict[str, int]:
    return {info.name: info.train_id for info in classes}


def cityscapes_choices(name: str) -> npt.NDArray[np.bool_]:
    """Return bool (256, 19): for each train id of a label set, the Cityscapes classes that it covers.

    KNOWN_UNCERTAIN covers all of them, other values without a class none. Raises ConfigError for a label set without
    such a table.
    """
    if name not in CITYSCAPES_CLASSES_OF:
        raise ConfigError(unknown_name("label set with Cityscapes' classes", name, CITYSCAPES_CLASSES_OF))
    train_ids = _train_ids(CITYSCAPES)
    table = np.zeros((256, len(CITYSCAPES)), np.bool_)
    for info in label_set(name):
        for choice in CITYSCAPES_CLASSES_OF[name][info.name]:
            table[info.train_id, train_ids[choice]] = True
    table[KNOWN_UNCERTAIN] = True
    return table


def counted_labels(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return ground-truth labels with 252 replaced by 255: metrics count only pixels whose class is stated."""
    uncertain = labels == KNOWN_UNCERTAIN
    return np.where(uncertain, np.uint8(UNLABELLED), labels) if uncertain.any() else labels


def palette(classes: Sequence[ClassInfo]) -> npt.NDArray[np.uint8]:
    """Return the (256, 3) uint8 RGB table from label value to colour; values without a class are black."""
    table = np.zeros((256, 3), np.uint8)
    for info in classes:
        table[info.train_id] = info.color
    return table
