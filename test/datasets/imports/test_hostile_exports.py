"""Exports that lead out of their folder, ask for memory, or contradict themselves."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_trees import image, write
from label_exports import bitmap, brush, written

from anomseg_ros.datasets.imports import read_export
from anomseg_ros.datasets.imports.exported import plain_name
from anomseg_ros.datasets.imports.label_studio import unpack_runs
from anomseg_ros.datasets.imports.write import Roles, write_folder
from anomseg_ros.errors import AnomsegError, DatasetError

Change = Callable[[str], str]


def refused(case: str, root: Path, file: str, change: Change) -> str:
    """Return the error of an export with a changed file."""
    name, export = written(case, root / "export")
    path = export / file
    text = path.read_text()
    changed = change(text)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(AnomsegError) as error:
        write_folder(read_export(name, export), root / "out", Roles())
    assert "\n" not in str(error.value) and not (root / "out").exists()
    return str(error.value)


def replaced(old: str, new: str) -> Change:
    return lambda text: text.replace(old, new)


CVAT: dict[str, tuple[Change, str]] = {
    "escape": (replaced('name="a.png"', 'name="../a.png"'), "the file name '../a.png' leads out of the folder"),
    "absolute": (replaced('name="a.png"', 'name="/etc/passwd"'), "the file name '/etc/passwd' leads out"),
    "entities": (replaced("<annotations>", '<!DOCTYPE a [<!ENTITY x "y">]><annotations>'), "defines entities"),
    "unlisted": (replaced('polygon label="road"', 'polygon label="raod"'), "the class 'raod', which it does not list"),
    "runs": (replaced('rle="0, 9"', 'rle="0, 900000000000"'), "does not fit its 900000000000 pixels"),
    "negative": (replaced('rle="0, 9"', 'rle="-1, 10"'), "does not fit"),
    "outside": (replaced('left="2"', 'left="6"'), "a mask of 'car', 3x3 at 6, 2"),
    "huge": (replaced('width="8" height="6"', 'width="99999" height="99999"'), "99999x99999, the picture is 8x6"),
    "text": (replaced('points="0.0', 'points="zero'), "is not an export of CVAT"),
    "video": (replaced("</annotations>", "<track/></annotations>"), "is of a video; export the task as"),
    "shape": (replaced("<polygon", "<blob"), "has shapes 'blob'; expected polygon"),
}


@pytest.mark.parametrize("change", CVAT)
def test_cvat(change: str, tmp_path: Path) -> None:
    assert CVAT[change][1] in refused("cvat xml", tmp_path, "annotations.xml", CVAT[change][0])


def test_cvat_turned_boxes_and_ellipses_are_painted(tmp_path: Path) -> None:
    name, root = written("cvat xml", tmp_path / "export")
    path = root / "annotations.xml"
    ellipse = '<ellipse label="debris" cx="4" cy="3" rx="4" ry="1" rotation="90" z_order="5"/><points label="x"/>'
    path.write_text(path.read_text().replace('height="6"></image>', f'height="6">{ellipse}</image>'))
    (root / "images" / "unlabelled.png").write_bytes((root / "images" / "a.png").read_bytes())
    labels = read_export(name, root).frames[2].labels((6, 8))
    assert (labels == 2).any(axis=0).tolist() == [False] * 3 + [True] * 2 + [False] * 3
    assert (labels == 2).any(axis=1).all()


def first_task(change: Callable[[dict[str, Any]], None]) -> Change:
    def changed(text: str) -> str:
        data = json.loads(text)
        change(data[0]["annotations"][1]["result"][1]["value"])
        return json.dumps(data)

    return changed


LABEL_STUDIO: dict[str, tuple[Change, str]] = {
    "count": (first_task(lambda value: value["rle"].__setitem__(0, 255)), "values of 8 bits, expected 192"),
    "short": (first_task(lambda value: value.update(rle=value["rle"][:9])), "a brush stroke ends early"),
    "empty": (first_task(lambda value: value.update(rle=[])), "a brush stroke ends early"),
    "bytes": (first_task(lambda value: value.update(rle=[300])), "is not an export of Label Studio"),
    "form": (first_task(lambda value: value.update(format="png")), "expected 'rle'"),
    "min": (replaced('"annotations"', '"choice"'), "in its format JSON (KeyError: 'annotations')"),
    "picture": (replaced("0123abcd-a.png", "0123abcd-c.png"), "the picture '0123abcd-c.png'"),
    "none": (replaced("a.png", "a.wav"), "has no picture; export a project of pictures"),
}


@pytest.mark.parametrize("change", LABEL_STUDIO)
def test_label_studio(change: str, tmp_path: Path) -> None:
    assert LABEL_STUDIO[change][1] in refused("label-studio", tmp_path, "project.json", LABEL_STUDIO[change][0])


def test_label_studio_runs_that_exceed_their_count_are_refused() -> None:
    packed = bytes(brush("car"))
    assert unpack_runs(packed, 192).reshape(6, 8, 4)[:, :, 3].max() == 255
    bits = f"{4:032b}{7:05b}{3:04b}{3:04b}{3:04b}{3:04b}" + "1" + "00" + "1111" + "00000001"
    data = int(bits.ljust(72, "0"), 2).to_bytes(9, "big")
    with pytest.raises(DatasetError, match="holds more than the 4 values it states"):
        unpack_runs(data, 4)


def test_label_studio_needs_one_json_file(tmp_path: Path) -> None:
    _, root = written("label-studio", tmp_path)
    (root / "second.json").write_text("[]")
    with pytest.raises(DatasetError, match="has 2 JSON files"):
        read_export("label-studio", root)


def bomb() -> str:
    return base64.b64encode(zlib.compress(bytes(2_000_000))).decode()


def car_bitmap(text: str, origin: tuple[int, int] = (2, 2)) -> Change:
    def changed(annotation: str) -> str:
        data = json.loads(annotation)
        data["objects"][1]["bitmap"] = {"origin": origin, "data": text}
        return json.dumps(data)

    return changed


SUPERVISELY: dict[str, tuple[Change, str]] = {
    "bomb": (car_bitmap(bomb()), "a bitmap is no PNG of at most 8x6"),
    "large": (car_bitmap(bitmap(np.ones((9, 9), np.uint8))), "a bitmap is no PNG of at most 8x6"),
    "outside": (car_bitmap(bitmap(np.ones((3, 3), np.uint8)), (6, 2)), "leaves the picture of 8x6"),
    "negative": (car_bitmap(bitmap(np.ones((3, 3), np.uint8)), (-1, 2)), "leaves the picture of 8x6"),
    "base64": (car_bitmap("%%%"), "a bitmap cannot be unpacked"),
    "deflate": (car_bitmap(base64.b64encode(b"abc").decode()), "a bitmap cannot be unpacked"),
    "unlisted": (replaced('"car"', '"cart"'), "the class 'cart', which it does not list"),
    "size": (replaced('"size"', '"sizes"'), "is not an annotation of Supervisely (KeyError: 'size')"),
    "points": (replaced("[[0, 3]", "[[0, 3, 4]"), "is not an annotation of Supervisely"),
}


@pytest.mark.parametrize("change", SUPERVISELY)
def test_supervisely(change: str, tmp_path: Path) -> None:
    assert SUPERVISELY[change][1] in refused("supervisely", tmp_path, "ds0/ann/a.png.json", SUPERVISELY[change][0])


def test_supervisely_polygons_have_holes(tmp_path: Path) -> None:
    name, root = written("supervisely", tmp_path)
    path = root / "ds0/ann/b.png.json"
    path.write_text(path.read_text().replace('"interior": []', '"interior": [[[2, 4], [3, 4], [3, 4]]]'))
    labels = read_export(name, root).frames[1].labels((6, 8))
    assert np.argwhere((labels == 255)[3:]).tolist() == [[1, 2], [1, 3]]


COCO: dict[str, tuple[str, str, Change, str]] = {
    "escape": ("coco", "instances_default", replaced('"a.png"', '"../a.png"'), "leads out of the folder"),
    "panoptic escape": ("coco-panoptic", "panoptic_val", replaced('"a.png"', '"../a.png"'), "leads out of the folder"),
    "runs": ("coco", "instances_default", replaced('"counts": [', '"counts": [9, '), "run lengths add up to 57"),
    "segment": (
        "coco-panoptic",
        "panoptic_val",
        replaced('"id": 70300', '"id": 70301'),
        "has segments [70300]",
    ),
    "category": ("coco-panoptic", "panoptic_val", replaced('"category_id": 11', '"category_id": 99'), "(KeyError: 99)"),
}


@pytest.mark.parametrize("change", COCO)
def test_coco(change: str, tmp_path: Path) -> None:
    case, file, edit, message = COCO[change]
    assert message in refused(case, tmp_path, f"annotations/{file}.json", edit)


def test_panoptic_parts_of_different_categories_are_refused(tmp_path: Path) -> None:
    name, root = written("coco-panoptic", tmp_path)
    text = (root / "annotations" / "panoptic_val.json").read_text()
    (root / "annotations" / "panoptic_train.json").write_text(text.replace('"car"', '"cart"'))
    (root / "annotations" / "panoptic_train").symlink_to("panoptic_val")
    (root / "train").symlink_to("val")
    with pytest.raises(DatasetError, match="have different categories"):
        read_export(name, root)


COLORS: dict[str, tuple[Change, str]] = {
    "line": (replaced("car:0,0,142::", "car 0 0 142"), "line 3 of"),
    "range": (replaced("car:0,0,142::", "car:0,0,999::"), "gives no class with red, green and blue"),
    "doubled": (replaced("car:0,0,142::", "car:128,64,128::"), "gives the color (128, 64, 128) to several classes"),
    "unlisted": (replaced("car:0,0,142::", "car:0,0,143::"), "1 colours of"),
}


@pytest.mark.parametrize("change", COLORS)
def test_color_masks(change: str, tmp_path: Path) -> None:
    text = refused("cvat masks", tmp_path, "labelmap.txt", COLORS[change][0])
    assert COLORS[change][1] in text
    assert change != "unlisted" or "not in labelmap.txt: (0, 0, 142) (9 px); add them to the table" in text


def test_masks_without_a_picture_or_with_loss_are_refused(tmp_path: Path) -> None:
    name, root = written("colors", tmp_path)
    write(root / "masks" / "c_L.png", image(1))
    with pytest.raises(DatasetError, match=r"labels without an image: .*c_L\.png"):
        read_export(name, root)
    (root / "masks" / "c_L.png").unlink()
    (root / "masks" / "a_L.png").unlink()
    write(root / "masks" / "a_L.jpg", image(1))
    with pytest.raises(DatasetError, match="not a PNG file; colours of other formats are not exact"):
        read_export(name, root).frames[0].labels((6, 8))


def test_mapillary_labels_above_the_config_are_refused(tmp_path: Path) -> None:
    name, root = written("mapillary", tmp_path)
    write(root / "training/v2.0/labels/a.png", np.full((6, 8), 4, np.uint8))
    with pytest.raises(DatasetError, match="has labels up to 4, the config lists 4"):
        read_export(name, root).frames[0].labels((6, 8))
    (root / "training/v2.0/labels/a.png").unlink()
    with pytest.raises(DatasetError, match="image without labels"):
        read_export(name, root)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a/../../b.png", "..\\a.png", "", "a\0.png"])
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(DatasetError, match="leads out of the folder"):
        plain_name(name)


def test_more_classes_than_labels_have_values_are_refused(tmp_path: Path) -> None:
    many = "\n".join(f"c{number}:{number % 256},{number // 256},9::" for number in range(300))
    assert "lists 300 classes; expected 1 to 255" in refused("cvat masks", tmp_path, "labelmap.txt", lambda _: many)
