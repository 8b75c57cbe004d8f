from __future__ import annotations

from pathlib import Path

import pytest

from anomseg_ros.core.class_table import (
    ClassTable,
    OwnClass,
    SplitRule,
    find_label_set,
    read_class_table,
    write_class_table,
)
from anomseg_ros.core.labels import CAMVID, ClassInfo
from anomseg_ros.errors import ConfigError


def table_of(folder: Path, text: str) -> ClassTable:
    (folder / "classes.yaml").write_text(text)
    return read_class_table(folder)


def test_written_table_reads_back_with_a_class_a_line(tmp_path: Path) -> None:
    table = ClassTable(
        (OwnClass("road", 3, (1, 2, 3)), OwnClass("Straße", 0), OwnClass("bonnet", 9, role="ignored")),
        name="mine",
        licence="ours",
        splits={"train": SplitRule(list="train.txt"), "val": SplitRule(drives=("a", "b"))},
    )
    write_class_table(table, tmp_path / "classes.yaml")
    assert read_class_table(tmp_path) == read_class_table(tmp_path / "classes.yaml") == table
    lines = (tmp_path / "classes.yaml").read_text().splitlines()
    assert "- {name: road, id: 3, color: [1, 2, 3], role: known}" in lines and "  val: {drives: [a, b]}" in lines


def test_train_ids_follow_the_order_of_known_classes(tmp_path: Path) -> None:
    table = table_of(
        tmp_path, "classes: [{name: b, id: 7, color: [9, 9, 9]}, {name: x, id: 1, role: outlier}, {name: a, id: 0}]"
    )
    first, second = table.known()
    assert first == ClassInfo("b", (9, 9, 9), 0) and (second.name, second.train_id) == ("a", 1)
    assert (table.values("known"), table.values("outlier")) == ((7, 0), (1,))


def test_255_is_unlabelled_unless_a_class_has_it() -> None:
    assert ClassTable((OwnClass("a", 0),)).values("unlabelled") == (255,)
    assert ClassTable((OwnClass("a", 0), OwnClass("n", 4, role="unlabelled"))).values("unlabelled") == (4, 255)
    assert ClassTable((OwnClass("a", 255),)).values("unlabelled") == ()


def test_missing_colours_differ_from_each_other_and_from_stated_ones() -> None:
    given = ClassTable(tuple(OwnClass(str(i), i) for i in range(60))).known()[0].color
    colors = [
        info.color
        for info in ClassTable((OwnClass("first", 99, given), *(OwnClass(str(i), i) for i in range(60)))).known()
    ]
    assert len(set(colors)) == 61


BAD = {
    "classes: []": "0 known classes; give 1 to 250",
    "classes: [{name: a, id: 0, role: outlier}]": "0 known classes",
    "classes: [{name: a, id: 0}, {name: a, id: 1}]": "name 'a' is given to 2 classes",
    "classes: [{name: a, id: 1}, {name: b, id: 1}]": "id 1 is given to 2 classes",
    "classes: [{name: a, id: 1, color: [1, 1, 1]}, {name: b, id: 2, color: [1, 1, 1]}]": r"color \[1, 1, 1\] is",
    "classes: [{name: ' ', id: 1}]": "has an empty name",
    "classes: [{name: a, id: 256}]": "class 'a' has id 256; label images have values 0 to 255",
    "classes: [{name: a, id: -1}]": "has id -1",
    "classes: [{name: a, id: 0, color: [0, 0, 300]}]": r"color \[0, 0, 300\]; give red, green and blue",
    "classes: [{name: a, id: 0, color: [0, 0]}]": "expected 3 values",
    "classes: [{name: a, id: 0, color: red}]": "expected a list",
    "classes: [{name: a, id: 0, role: ignore}]": "has role 'ignore'; expected ignored",
    "classes: [{name: a, id: yes}]": "expected int, got True",
    "classes: [{name: no, id: 0}]": "expected str, got False",
    "classes: [{name: a}]": r"missing key\(s\) 'id'",
    "classes: [{name: a, id: 0, colour: [1, 2, 3]}]": "unknown key 'colour'; did you mean 'color'",
    "class: [{name: a, id: 0}]": "unknown key 'class'; did you mean 'classes'",
    "name: camvid\nclasses: [{name: a, id: 0}]": "name 'camvid' is that of a published label set",
    "classes: [{name: a, id: 0}]\nsplits: {val: {}}": "split 'val' gives nothing; give one of list",
    "classes: [{name: a, id: 0}]\nsplits: {val: {list: x, pattern: y}}": "split 'val' gives list and pattern",
    "classes: [{name: a, id: 0}]\nclasses: []": "'classes' is given 2 times",
    "classes: !!python/object/apply:os.system [echo]": "is not YAML: could not determine a constructor",
    "classes: &a [*a]": "is not YAML: a value refers to itself",
    "[" * 3000: "is not YAML: it is nested too deeply",
    "just text": "expected a mapping",
    "": "expected a mapping",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_tables_are_refused_with_the_file_and_the_remedy(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=BAD[text]) as refused:
        table_of(tmp_path, text)
    assert "classes.yaml" in str(refused.value) and "\n" not in str(refused.value)


def test_unreadable_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*classes\.yaml'; write it \(docs/own_classes\.md\)"):
        read_class_table(tmp_path)
    (tmp_path / "classes.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        read_class_table(tmp_path)
    (tmp_path / "classes.yaml").write_text("#" * 1_000_001)
    with pytest.raises(ConfigError, match="has more than 1000000 bytes"):
        read_class_table(tmp_path)


def test_label_sets_are_found_by_name_file_and_folder(tmp_path: Path) -> None:
    assert find_label_set("camvid") == ("camvid", CAMVID)
    table_of(tmp_path, "classes: [{name: a, id: 7, color: [1, 2, 3]}, {name: x, id: 1, role: ignored}]\nname: mine")
    for given in (tmp_path, tmp_path / "classes.yaml"):
        assert find_label_set(str(given)) == ("mine", (ClassInfo("a", (1, 2, 3), 0),))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("kitti", "unknown label set 'kitti'; known: ade20k, camvid, cityscapes"),
        ("none.yaml", "label set 'none.yaml' does not exist; give a classes.yaml, or cityscapes or camvid"),
        ("FOLDER", "there is no .*classes.yaml"),
    ],
)
def test_unknown_label_sets_are_refused(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        find_label_set(given.replace("FOLDER", str(tmp_path)))


def test_bad_tables_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="id 0 is given to 2"):
        write_class_table(ClassTable((OwnClass("a", 0), OwnClass("b", 0))), tmp_path / "classes.yaml")
    assert not (tmp_path / "classes.yaml").exists()
