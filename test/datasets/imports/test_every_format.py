"""Every format gives the same frames; what is wrong with an export is one error that names the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from label_exports import COLORS, NAMES, WRITERS, picture, truth, written

from anomseg_ros import cli
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.imports import FORMATS, read_export
from anomseg_ros.datasets.imports.write import Roles, write_folder
from anomseg_ros.errors import AnomsegError, DatasetError


def test_every_format_has_an_example() -> None:
    assert {name for name, _, _ in WRITERS.values()} == set(FORMATS)


@pytest.mark.parametrize("case", WRITERS)
def test_imported_frames_are_those_that_were_labelled(case: str, tmp_path: Path) -> None:
    name, root = written(case, tmp_path / "export")
    made = write_folder(read_export(name, root), tmp_path / "out", Roles())
    assert [own.name for own in made.table.classes] == list(NAMES) and made.count == 2
    if case not in ("label-studio", "coco"):  # whose files have no colours
        assert {info.name: info.color for info in made.table.known()} == COLORS
    dataset = open_named(f"folder={tmp_path / 'out'}:all")
    names = WRITERS[case][2]
    assert tuple(dataset.frame_id(index) for index in range(2)) == names and not dataset.problems
    for index, frame in enumerate("ab"):
        loaded = dataset.load(index)
        assert np.array_equal(loaded.image, picture(frame))
        assert np.array_equal(loaded.labels, truth(frame)), case
    assert made.frames == (2, 1, 1) and made.unlabelled_px == int((truth("a") == 255).sum() + (truth("b") == 255).sum())
    assert (tmp_path / "out" / "preview.jpg").stat().st_size > 100


@pytest.mark.parametrize("name", FORMATS)
def test_folders_of_something_else_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere' is not a folder with an export of .*; check the path"):
        read_export(name, tmp_path / "nowhere")
    (tmp_path / "export.zip").touch()
    with pytest.raises(DatasetError, match="unpack the archive and give its folder"):
        read_export(name, tmp_path / "export.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty"):
        read_export(name, tmp_path / "empty")


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="unknown format 'cvta'; known: cvat"):
        read_export("cvta", tmp_path)


def table_file(root: Path) -> Path:
    """Return the file that lists the annotations or classes."""
    names = ("annotations.xml", "labelmap.txt", "class_dict.csv", "project.json", "meta.json", "config_v2.0.json")
    found = [root / name for name in names] + sorted((root / "annotations").glob("*.json"))
    return next(path for path in found if path.is_file())


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "binary": lambda data: b"\xff\xfe\x00" + data,
    "list": lambda data: b"[1, 2]",
    "nested": lambda data: b"[" * 100_000,
    "text": lambda data: b"'hello'",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("case", WRITERS)
def test_damaged_tables_are_one_error_that_names_the_file(case: str, damage: str, tmp_path: Path) -> None:
    name, root = written(case, tmp_path / "export")
    path = table_file(root)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(AnomsegError) as refused:
        write_folder(read_export(name, root), tmp_path / "out", Roles())
    text = str(refused.value)
    assert "\n" not in text and (path.name in text or str(root) in text), text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", WRITERS)
def test_pictures_of_another_size_are_refused(case: str, tmp_path: Path) -> None:
    from dataset_trees import write

    name, root = written(case, tmp_path / "export")
    pictures = [path for path in root.rglob("a.png") if path.parent.name in ("images", "img", "JPEGImages", "val")]
    write(pictures[0], np.zeros((8, 6, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"8x6, the picture is 6x8|says 8x6|is 6x8"):
        write_folder(read_export(name, root), tmp_path / "out", Roles())
    assert not (tmp_path / "out").exists() and os.listdir(tmp_path) == ["export"]


@pytest.mark.parametrize("case", WRITERS)
def test_missing_pictures_are_named(case: str, tmp_path: Path) -> None:
    name, root = written(case, tmp_path / "export")
    for path in root.rglob("a.png"):
        if path.parent.name in ("images", "img", "JPEGImages", "val"):
            path.unlink()
    with pytest.raises(DatasetError, match=r"a\.png|/a_L\.png"):
        read_export(name, root)


def test_command_prints_the_classes_and_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, root = written("cvat xml", tmp_path / "export")
    words = ["datasets", "import", "cvat", str(root), "--output", str(tmp_path / "mine")]
    assert cli.main([*words, "--map", "car=vehicle", "--outliers", "debris"]) == 0
    printed = capsys.readouterr().out
    assert "vehicle" in printed and "outlier" in printed and "datasets check folder=" in printed
    assert cli.main(["datasets", "check", f"folder={tmp_path / 'mine'}:all"]) == 0
    assert "2 frames, 2 readable, 1 with anomalies: ok" in capsys.readouterr().out
    assert cli.main(words) == 1 and "exists; choose another folder" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite", "--map", "car"]) == 1
    assert "--map 'car' is not of the form OLD=NEW" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite", "--map", "car=a", "car=b"]) == 1
    assert "--map gives 'car' two names, 'a' and 'b'" in capsys.readouterr().err
