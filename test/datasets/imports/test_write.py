from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_trees import image, write

from anomseg_ros.core.class_table import SplitRule, read_class_table
from anomseg_ros.core.types import LabelImage
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.imports.exported import Export, SourceClass, SourceFrame, require_size
from anomseg_ros.datasets.imports.write import Imported, Roles, write_folder
from anomseg_ros.errors import DatasetError, OutputError

SIZE = (6, 8)
CLASSES = ("Background", "road", "lane", "bonnet", "tyre", "car")


def rows(size_px: tuple[int, int]) -> LabelImage:
    """Every class in a row of its own."""
    require_size(SIZE, size_px, "the labels")
    return np.repeat(np.arange(6, dtype=np.uint8), 8).reshape(6, 8)


def export(folder: Path, names: tuple[str, ...] = ("d/1", "d/2"), classes: tuple[str, ...] = CLASSES) -> Export:
    frames = []
    for number, name in enumerate(names):
        path = folder / f"{number}.png"
        if not path.is_file():
            write(path, image(number))
        frames.append(SourceFrame(name, path, rows))
    colors = [(10, 10, 10), (1, 2, 3), (4, 5, 6), (7, 8, 9), (1, 1, 1), (1, 2, 3)]
    return Export(tuple(map(SourceClass, classes, colors)), tuple(frames))


def imported(folder: Path, roles: Roles | None = None, **options: Any) -> Imported:
    return write_folder(export(folder / "source"), folder / "out", roles or Roles(), **options)


def first_column(folder: Path) -> tuple[list[int], list[int] | None]:
    frame = open_named(f"folder={folder / 'out'}:all").load(0)
    assert frame.labels is not None
    return frame.labels[:, 0].tolist(), None if frame.anomaly is None else frame.anomaly[:, 0].tolist()


def test_roles_and_merged_names_decide_the_labels(tmp_path: Path) -> None:
    made = imported(tmp_path, Roles({"lane": "ground", "road": "ground"}, ("bonnet",), ("tyre",)))
    assert [(own.name, own.role) for own in made.table.classes] == [
        ("ground", "known"),
        ("bonnet", "ignored"),
        ("tyre", "outlier"),
        ("car", "known"),
    ]
    assert first_column(tmp_path) == ([255, 0, 0, 252, 255, 1], [255, 0, 0, 255, 1, 0])
    assert (made.pixels, made.frames, made.unlabelled_px) == ((32, 16, 16, 16), (2, 2, 2, 2), 16)
    colors = {info.name: info.color for info in made.table.known()}
    assert colors["ground"] == (1, 2, 3) != colors["car"]  # the export gives both one colour


def test_names_of_nothing_are_unlabelled_unless_they_are_given_a_role(tmp_path: Path) -> None:
    imported(tmp_path)
    assert first_column(tmp_path) == ([255, 0, 1, 2, 3, 4], None)
    imported(tmp_path, Roles(outliers=("Background",)), overwrite=True)
    assert first_column(tmp_path) == ([255, 0, 1, 2, 3, 4], [1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (Roles({"raod": "x"}), "--map names 'raod', which is no class here; the classes are road"),
        (Roles({}, ("lanes",)), "--ignore names 'lanes', which is no class here; the classes are lane"),
        (Roles({"car": "vehicle"}, (), ("car",)), "--outliers names 'car', which is no class here"),
    ],
)
def test_unknown_names_are_refused(roles: Roles, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        imported(tmp_path, roles)
    assert not (tmp_path / "out").exists()


def test_pictures_are_linked_or_copied(tmp_path: Path) -> None:
    imported(tmp_path)
    source, target = tmp_path / "source" / "0.png", tmp_path / "out" / "images" / "d" / "1.png"
    assert os.path.samefile(source, target)
    imported(tmp_path, overwrite=True, copy=True)
    assert not os.path.samefile(source, target) and source.read_bytes() == target.read_bytes()


@pytest.mark.parametrize("turn", [3, 6])
def test_pictures_that_viewers_turn_are_written_upright(turn: int, tmp_path: Path) -> None:
    """Tools show and label the upright picture; the readers of datasets ignore the orientation."""
    pil = pytest.importorskip("PIL.Image")
    upright = image(5)
    path = tmp_path / "turned.jpg"
    exif = pil.Exif()
    exif[0x0112] = turn
    stored = pil.fromarray(np.rot90(upright, {3: 2, 6: 1}[turn]))
    stored.save(path, exif=exif, quality=100, subsampling=0)
    frames = (SourceFrame("a", path, rows),)
    write_folder(Export(export(tmp_path).classes, frames), tmp_path / "out", Roles())
    frame = open_named(f"folder={tmp_path / 'out'}:all").load(0)
    assert frame.image.shape == (6, 8, 3)
    assert (
        np.abs(frame.image.astype(int) - upright).mean() < np.abs(frame.image.astype(int) - upright[::-1, ::-1]).mean()
    )


def test_labels_of_the_stored_picture_are_kept_with_it(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    exif = pil.Exif()
    exif[0x0112] = 6
    pil.fromarray(image(5)).save(tmp_path / "turned.jpg", exif=exif)
    frames = (SourceFrame("a", tmp_path / "turned.jpg", rows),)
    write_folder(Export(export(tmp_path).classes, frames), tmp_path / "out", Roles())
    assert os.path.samefile(tmp_path / "turned.jpg", tmp_path / "out" / "images" / "a.jpg")


def test_splits_and_origin_are_kept(tmp_path: Path) -> None:
    whole = export(tmp_path, ("training/1", "validation/1"))
    splits = {"train": SplitRule(drives=("training",)), "val": SplitRule(drives=("validation",))}
    write_folder(Export(whole.classes, whole.frames, splits), tmp_path / "out", Roles(), made_from="mapillary: vistas")
    table = read_class_table(tmp_path / "out")
    assert (table.splits, table.name, table.made_from) == (splits, "out", "mapillary: vistas")
    assert open_named(f"folder={tmp_path / 'out'}").frame_id(0) == "validation/1"


def test_doubled_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="1 names are given to several frames, the first 'a'"):
        write_folder(export(tmp_path, ("a", "a")), tmp_path / "out", Roles())


def test_pictures_that_are_none_are_refused(tmp_path: Path) -> None:
    whole = export(tmp_path)
    for name, message in (("text.png", "cannot be read"), ("film.mp4", "is no picture; expected files ending in .png")):
        (tmp_path / name).write_text("hello")
        with pytest.raises(DatasetError, match=message):
            write_folder(Export(whole.classes, (SourceFrame("a", tmp_path / name, rows),)), tmp_path / "out", Roles())
    assert not (tmp_path / "out").exists()


def test_only_imported_folders_are_replaced(tmp_path: Path) -> None:
    imported(tmp_path)
    with pytest.raises(OutputError, match="exists; choose another folder, or --overwrite"):
        imported(tmp_path)
    (tmp_path / "out" / "classes.yaml").unlink()
    with pytest.raises(OutputError, match="is no imported dataset; it is not overwritten"):
        imported(tmp_path, overwrite=True)


def test_failed_import_leaves_the_old_folder(tmp_path: Path) -> None:
    imported(tmp_path)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    whole = export(tmp_path / "source")

    def damaged(size_px: tuple[int, int]) -> LabelImage:
        raise DatasetError("damaged")

    frames = (whole.frames[0], SourceFrame("d/2", whole.frames[1].picture, partial(damaged)))
    with pytest.raises(DatasetError, match="damaged"):
        write_folder(Export(whole.classes, frames), tmp_path / "out", Roles(), overwrite=True)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
