from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import OWN_CLASSES, image, own_folder, values, write

from anomseg_ros.cli import main
from anomseg_ros.core.labels import CAMVID
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.check import check
from anomseg_ros.datasets.dataset import Dataset, notes_of
from anomseg_ros.datasets.folder_splits import drive_of
from anomseg_ros.errors import DatasetError


def ids(dataset: Dataset) -> list[str]:
    return [dataset.frame_id(index) for index in range(len(dataset))]


def numbered(drive: str, count: int) -> list[str]:
    return [f"{drive}{number}" for number in range(1, count + 1)]


def test_values_get_their_roles(tmp_path: Path) -> None:
    dataset = open_named(f"folder={own_folder(tmp_path / 'mine', ['a', 'b'])}:all")
    frame = pickle.loads(pickle.dumps(dataset)).load(0)
    # 0 dog, 1 road, 7 unlabelled, 8 ignored, 9 outlier, 255
    assert np.array_equal(frame.labels, values(1, 0, 255, 252, 255, 255))
    assert np.array_equal(frame.anomaly, values(0, 0, 255, 255, 1, 255))
    assert np.array_equal(frame.image, image(0))
    assert dataset.classes is not None and [info.name for info in dataset.classes] == ["road", "dog"]
    assert (dataset.label_set, dataset.has_anomalies, dataset.published_count) == ("mine", True, None)


def test_without_outliers_there_is_no_anomaly_mask(tmp_path: Path) -> None:
    own_folder(tmp_path, ["a", "b"], classes=OWN_CLASSES.replace("role: outlier", "role: ignored"))
    dataset = open_named(f"folder={tmp_path}:all")
    assert not dataset.has_anomalies and dataset.load(0).anomaly is None


def test_label_set_is_the_published_one_of_equal_classes(tmp_path: Path) -> None:
    rows = "".join(f"- {{name: {info.name}, id: {10 + info.train_id}}}\n" for info in CAMVID)
    names = {"same": f"classes:\n{rows}", "cityscapes": OWN_CLASSES, "named": f"{OWN_CLASSES}name: ours\n"}
    found = {}
    for name, text in names.items():
        own_folder(tmp_path / name, ["a"], classes=text)
        found[name] = open_named(f"folder={tmp_path / name}:all").label_set
    assert found == {"same": "camvid", "cityscapes": "own cityscapes", "named": "ours"}


@pytest.mark.parametrize(
    ("frame", "drive"),
    [
        ("night/0001", "night"),
        ("a/b/7", "a/b"),
        ("0016E5_00390", "0016E5"),
        ("frame12", "frame"),
        ("aachen_000005_000003_leftImg8bit", "aachen_000005"),
        ("clip-0012.left", "clip"),
        ("0016E5_00390_L", "0016E5"),
        ("000123", ""),
        ("x", "x"),
    ],
)
def test_drive_is_the_folder_or_the_name_up_to_its_number(frame: str, drive: str) -> None:
    assert drive_of(frame) == drive


def test_last_fifth_of_each_drive_is_held_out(tmp_path: Path) -> None:
    own_folder(tmp_path, [*numbered("a/", 10), *numbered("b/", 5)])
    train, val = (open_named(f"folder={tmp_path}:{split}") for split in ("train", "val"))
    assert ids(val) == ["a/9", "a/10", "b/5"]
    assert not set(ids(train)) & set(ids(val)) and len(train) + len(val) == 15
    assert open_named(f"folder={tmp_path}").split == "val"
    text = "states no splits: the last fifth of each of 2 drives is 'val' (3 frames), the rest 'train' (12)"
    assert text in " ".join(check(val).lines())


@pytest.mark.parametrize(("names", "held"), [(["x", "y", "z"], ["z"]), (numbered("a/", 2), ["a/2"])])
def test_single_pictures_are_held_out_together(names: list[str], held: list[str], tmp_path: Path) -> None:
    own_folder(tmp_path, names)
    assert ids(open_named(f"folder={tmp_path}:val")) == held


def test_frames_of_a_clip_stay_together_whatever_follows_their_number(tmp_path: Path) -> None:
    names = [f"{town}_000005_{number:06d}_leftImg8bit" for town in ("aachen", "bonn") for number in range(6)]
    val = open_named(f"folder={own_folder(tmp_path, names)}:val")
    assert ids(val) == [names[5], names[11]]
    assert "the last fifth of each of 2 drives is 'val' (2 frames)" in " ".join(notes_of(val))


def test_drives_of_one_frame_are_said_to_be_so(tmp_path: Path) -> None:
    val = open_named(f"folder={own_folder(tmp_path, [*'abcdefghijkl'])}:val")
    text = "the last fifth of all frames, which are of 12 drives with at most 1 each, is 'val' (2 frames)"
    assert text in " ".join(notes_of(val))


def test_one_frame_cannot_be_split(tmp_path: Path) -> None:
    own_folder(tmp_path, ["a"])
    assert len(open_named(f"folder={tmp_path}:train")) == 1
    with pytest.raises(DatasetError, match="has one frame, too few for 'train' and 'val'; label more"):
        open_named(f"folder={tmp_path}")


def test_splits_by_list_pattern_and_drive(tmp_path: Path) -> None:
    own_folder(
        tmp_path,
        [*numbered("day/", 3), *numbered("night/", 2), "fog_1", "rest"],
        "splits: {train: {list: lists/t.txt}, val: {pattern: ['night/*', 'r*t']}, test: {drives: [fog]}}",
    )
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "t.txt").write_text("# the first\nday/1\nimages/day/2.png\n\n")
    opened = {split: open_named(f"folder={tmp_path}:{split}") for split in ("train", "val", "test", "all")}
    assert ids(opened["train"]) == ["day/1", "day/2"]
    assert ids(opened["val"]) == ["night/1", "night/2", "rest"]
    assert ids(opened["test"]) == ["fog_1"] and len(opened["all"]) == 7
    assert "1 of 7 frames are in no split" in check(opened["val"]).lines()[1]


BAD_SPLITS = {
    "{train: {pattern: 'a*'}, val: {drives: [a]}}": "frame 'a/1' is in the splits 'train' and 'val'",
    "{val: {pattern: 'z*'}}": "the split 'val' of .* has no frame; change its rule",
    "{val: {drives: [c]}}": "there is no drive 'c'; known: a, b",
    "{val: {list: ../t.txt}}": "the list '../t.txt' leads out of",
    "{val: {list: /etc/passwd}}": "the list '/etc/passwd' leads out of",
    "{val: {list: none.txt}}": "cannot read the list .*none.txt': No such file",
    "{val: {list: wrong.txt}}": "2 of 3 names in 'wrong.txt' are no frames, the first 'a/11'",
    "{val: {list: link.txt}}": "the list 'link.txt' leads out of",
    "{train: {drives: [a]}, test: {drives: [b]}}": "has no split 'val'; known: all",
}


@pytest.mark.parametrize("rules", BAD_SPLITS)
def test_bad_splits_are_refused(rules: str, tmp_path: Path) -> None:
    root = own_folder(tmp_path / "mine", [*numbered("a/", 2), *numbered("b/", 2)], f"splits: {rules}")
    (root / "wrong.txt").write_text("a/1\na/11\nb/12.png\n")
    (tmp_path / "t.txt").write_text("a/1\n")
    (root / "link.txt").symlink_to(tmp_path / "t.txt")
    with pytest.raises(DatasetError, match=BAD_SPLITS[rules]):
        open_named(f"folder={root}:val")


def test_unlabelled_frames_and_unknown_values_are_errors_of_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_folder(tmp_path, numbered("a/", 5))
    write(tmp_path / "labels/a/5.png", values(0, 1, 4))
    (tmp_path / "labels/a/1.png").unlink()
    assert main(["datasets", "check", f"folder={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert "1 × image without labels" in printed and "a/1.png" in printed
    assert (
        "1 × unknown label values" in printed
        and "4 (16 px); expected the values in classes.yaml: 0 dog, 1 road" in printed
    )


def test_classes_that_no_frame_shows_are_a_warning(tmp_path: Path) -> None:
    own_folder(tmp_path, numbered("a/", 5), "- {name: cat, id: 3}\n")
    (text,) = check(open_named(f"folder={tmp_path}:all")).warnings
    assert "only 2 of the 3 classes" in text and "no frame shows cat" in text and "remove them from the classes" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [("images", "holds no frame; expected images/"), ("classes.yaml", "there is no .*classes.yaml")],
)
def test_missing_parts_are_named(name: str, message: str, tmp_path: Path) -> None:
    root = own_folder(tmp_path, ["a"])
    if name == "images":
        for folder in ("images", "labels"):
            (root / folder / "a.png").unlink()
    else:
        (root / name).unlink()
    with pytest.raises(DatasetError, match=message):
        open_named(f"folder={root}")
