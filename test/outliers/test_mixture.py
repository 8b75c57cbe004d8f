from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomseg_ros.errors import ConfigError, DatasetError
from anomseg_ros.outliers.files import part_of
from anomseg_ros.outliers.masks import eroded, without_plain_rim
from anomseg_ros.outliers.mixture import MixedObjects, ObjectsConfig, open_objects
from anomseg_ros.outliers.objects import FolderObjects, ProceduralObjects
from anomseg_ros.outliers.yolo import CLASSES


def write_cut_outs(folder: Path, count: int = 1, value: int = 90) -> Path:
    folder.mkdir()
    picture = np.full((20, 30, 4), value, np.uint8)
    picture[:, :, 3] = 255
    for number in range(count):
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


def write_yolo(folder: Path, *lines: str, size_px: tuple[int, int] = (80, 100)) -> Path:
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / "a.png"), np.full((*size_px, 3), 70, np.uint8))
    cv2.imwrite(str(folder / "images" / "without.png"), np.zeros((9, 9, 3), np.uint8))
    (folder / "labels" / "a.txt").write_text("\n".join(lines))
    return folder


DOG = f"{CLASSES.index('dog')} 0.2 0.25 0.6 0.25 0.6 0.75 0.2 0.75"
CAR = f"{CLASSES.index('car')} 0.2 0.25 0.6 0.25 0.6 0.75 0.2 0.75"


def test_sources_are_sampled_by_weight(tmp_path: Path) -> None:
    dark, light = write_cut_outs(tmp_path / "dark", value=10), write_cut_outs(tmp_path / "light", value=250)
    source = open_objects([ObjectsConfig(str(dark), weight=3.0), ObjectsConfig(str(light)), ObjectsConfig()])
    source = pickle.loads(pickle.dumps(source))
    rng = np.random.default_rng(0)
    drawn = [source.draw(rng, ()) for _ in range(400)]
    shares = [np.mean([one.kind == "object" and one.image[0, 0, 0] == value for one in drawn]) for value in (10, 250)]
    assert shares[0] == pytest.approx(0.6, abs=0.07) and shares[1] == pytest.approx(0.2, abs=0.07)
    info = source.describe()
    assert info.name == "mixture" and [one.weight for one in info.sources] == [3.0, 1.0, 1.0]
    assert [one.name for one in info.sources] == ["cut-outs", "cut-outs", "procedural"]


def test_single_source_is_not_wrapped() -> None:
    assert isinstance(open_objects([ObjectsConfig()]), ProceduralObjects)
    assert isinstance(open_objects([ObjectsConfig(), ObjectsConfig()]), MixedObjects)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"source": "x", "weight": 0.0}, r"weight of 'x' is 0.0"),
        ({"source": "x", "weight": float("nan")}, r"weight of 'x' is nan"),
        ({"source": "x", "part": "test"}, r"unknown objects: part of 'x' 'test'"),
        ({"part": "val"}, r"part, erode_share, trim_plain and exclude are for folders"),
        ({"erode_share": 0.1}, r"are for folders"),
    ],
)
def test_invalid_sources_are_refused(given: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ObjectsConfig(**given)  # type: ignore[arg-type]


def test_no_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="objects is an empty list"):
        open_objects([])


# --- parts ---


def test_parts_are_disjoint_complete_and_stable(tmp_path: Path) -> None:
    folder = write_cut_outs(tmp_path / "objects", count=60)

    def names(part: str) -> set[str]:
        return {entry.picture for entry in FolderObjects(folder, part=part).files.objects}

    train, held_out = names("train"), names("val")
    assert not train & held_out and train | held_out == names("all") and len(names("all")) == 60
    assert 5 <= len(held_out) <= 20
    (folder / "0.png").rename(folder / "new.png")
    assert names("val") - {"new"} == held_out - {"0"}
    # The held-out part must never change, because comparisons depend on it.
    assert [number for number in range(12) if part_of(str(number)) == "val"] == [0, 7, 8, 9, 10]


def test_empty_and_unknown_parts_are_refused(tmp_path: Path) -> None:
    folder = write_cut_outs(tmp_path / "objects")
    part = "train" if part_of("0") == "val" else "val"
    with pytest.raises(DatasetError, match=rf"none of the 1 in .* is in the part '{part}'"):
        FolderObjects(folder, part=part)
    with pytest.raises(ConfigError, match="unknown part of the objects 'vall'; known: val"):
        FolderObjects(folder, part="vall")


# --- masks ---


def test_masks_are_eroded_by_a_share_of_their_size(tmp_path: Path) -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[10:50, 10:50] = 1
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((60, 60, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "labels" / "a.png"), mask)
    assert FolderObjects(tmp_path).read(0).mask.shape == (40, 40)
    assert FolderObjects(tmp_path, erode_share=0.1).read(0).mask.shape == (32, 32)
    thin = np.zeros_like(mask)
    thin[30, 5:55] = 1
    cv2.imwrite(str(tmp_path / "labels" / "a.png"), thin)
    assert FolderObjects(tmp_path, erode_share=0.3).read(0).mask.shape == (1, 50)  # erosion would remove it entirely
    with pytest.raises(ConfigError, match=r"erode_share is 0.5; expected 0 to 0.3"):
        FolderObjects(tmp_path, erode_share=0.5)


def test_plain_rim_of_a_mask_is_removed() -> None:
    rng = np.random.default_rng(0)
    image = np.full((90, 90, 3), (200, 198, 190), np.uint8)
    mask, thing = np.zeros((90, 90), bool), np.zeros((90, 90), bool)
    thing[20:70, 20:60] = True
    mask[15:75, 15:80] = True
    shade = np.linspace(0.5, 1, 24)[None, :, None]  # a shadow to the right
    image[16:74, 58:82] = (image[16:74, 58:82] * shade).astype(np.uint8)
    image[thing] = np.kron(rng.integers(0, 2, (18, 18, 3)) * 160 + 20, np.ones((5, 5, 1)))[thing]
    found = without_plain_rim(image, mask)
    assert not (found & ~mask).any()
    # A rim as wide as the blur remains, which erosion removes.
    assert (found & thing).sum() > 0.95 * thing.sum() and (found & ~thing).sum() < 0.3 * (mask & ~thing).sum()
    assert (eroded(found, 0.06) & ~thing).sum() < 0.05 * (mask & ~thing).sum()
    # An object that looks like the ground, such as clear glass, is kept. So is a mask that fills its picture.
    assert np.array_equal(without_plain_rim(np.full_like(image, 190), mask), mask)
    assert without_plain_rim(image, np.ones_like(mask)).all()


@pytest.mark.parametrize(
    ("window", "sides"),
    [
        (np.s_[10:60, 20:40], {"bottom"}),
        (np.s_[0:30, 20:60], {"top", "right"}),
        (np.s_[20:40, 0:30], {"left"}),
        (np.s_[20:40, 20:40], set()),
    ],
)
def test_objects_cut_by_their_picture_are_marked(window: tuple[slice, slice], sides: set[str], tmp_path: Path) -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[window] = 1
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((60, 60, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), mask)
    assert FolderObjects(tmp_path).read(0).cut_sides == sides
    assert FolderObjects(tmp_path, erode_share=0.1).read(0).cut_sides == sides


def test_cut_outs_are_not_marked_as_cut(tmp_path: Path) -> None:
    assert FolderObjects(write_cut_outs(tmp_path / "objects")).read(0).cut_sides == frozenset()


# --- YOLO ---


def test_yolo_polygons_are_read(tmp_path: Path) -> None:
    source = FolderObjects(write_yolo(tmp_path, DOG, "", CAR))
    assert len(source) == 1 and source.describe().name == "yolo" and source.describe().kinds == ("dog",)
    drawn = source.read(0)
    assert drawn.kind == "dog" and drawn.mask.shape == (40, 40) and drawn.mask.all() and (drawn.image == 70).all()
    assert len(FolderObjects(tmp_path, exclude=())) == 2
    with pytest.raises(ConfigError, match="exclude names 'dgo'"):
        FolderObjects(tmp_path, exclude=("dgo",))
    with pytest.raises(DatasetError, match=r"none in .* is left of 2 polygons"):
        FolderObjects(tmp_path, exclude=("dog", "car"))


def test_small_polygons_are_omitted(tmp_path: Path) -> None:
    small = f"{CLASSES.index('dog')} 0.2 0.2 0.24 0.2 0.24 0.24 0.2 0.24"  # 491 px of 640x480
    assert len(FolderObjects(write_yolo(tmp_path, DOG, small))) == 1
    assert len(FolderObjects(tmp_path, min_area_px=400)) == 2


@pytest.mark.parametrize(
    "line",
    [
        "80 0.1 0.1 0.2 0.1 0.2 0.2",
        "-1 0.1 0.1 0.2 0.1 0.2 0.2",
        "dog 0.1 0.1 0.2 0.1 0.2 0.2",
        "16 0.5 0.5 0.2 0.3",
        "16 0.1 0.1 0.2 0.1 0.2",
        "16 0.1 0.1 20 0.1 0.2 0.2",
        "16 0.1 0.1 nan 0.1 0.2 0.2",
    ],
)
def test_invalid_polygon_error_names_the_line(line: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"line 2 of '.*a.txt' is '.*; expected a class of 0 to 79"):
        FolderObjects(write_yolo(tmp_path, DOG, line))


def test_yolo_has_the_80_coco_classes() -> None:
    assert len(CLASSES) == 80 == len(set(CLASSES))
    assert (CLASSES[0], CLASSES[11], CLASSES[16], CLASSES[79]) == ("person", "stop sign", "dog", "toothbrush")


@pytest.mark.parametrize(
    ("folder", "layout", "count"),
    [
        ("cutouts", "cut-outs", 171),
        ("debris", "images and masks", 440),
        pytest.param("coco128_seg", "yolo", 0, marks=pytest.mark.slow),
    ],
)
def test_real_object_folders_are_read(folder: str, layout: str, count: int, shared_data: Path) -> None:
    source = FolderObjects(shared_data / folder, erode_share=0.0 if folder == "cutouts" else 0.03)
    assert source.describe().name == layout and (len(source) == count or count == 0)
    for index in range(0, len(source), max(1, len(source) // 12)):
        drawn = source.read(index)
        assert drawn.mask.any() and drawn.image.shape == (*drawn.mask.shape, 3)
