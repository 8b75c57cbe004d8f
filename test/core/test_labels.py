from __future__ import annotations

from anomseg_ros.core.labels import CAMVID, CITYSCAPES, ClassInfo, class_map, same_classes

OWN = (ClassInfo("road", (1, 2, 3), 0), ClassInfo("dog", (4, 5, 6), 1), ClassInfo("cat", (7, 8, 9), 2))


def test_label_sets_are_the_same_by_names_and_train_ids() -> None:
    recoloured = tuple(ClassInfo(info.name, (0, 0, info.train_id), info.train_id) for info in OWN)
    assert same_classes(OWN, recoloured) and same_classes(CAMVID, CAMVID)
    assert not same_classes(OWN, OWN[:2]) and not same_classes(CITYSCAPES, CAMVID)
    assert not same_classes(None, None) and not same_classes(OWN, None)
    renumbered = (*OWN[:1], ClassInfo("dog", (4, 5, 6), 2), ClassInfo("cat", (7, 8, 9), 1))
    assert not same_classes(OWN, renumbered)


def test_classes_of_the_same_names_are_mapped_by_name() -> None:
    turned = tuple(ClassInfo(info.name, info.color, 2 - info.train_id) for info in OWN)
    table = class_map(OWN, turned)
    assert table is not None and table[:4] == (2, 1, 0, 255) and table[255] == 255
    assert class_map(OWN, OWN[:2]) is None and class_map(CAMVID, CITYSCAPES) is None
