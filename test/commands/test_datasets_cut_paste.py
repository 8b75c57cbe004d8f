from __future__ import annotations

from pathlib import Path

import pytest
from coco_tree import coco

from anomseg_ros import cli
from anomseg_ros.datasets import open_dataset
from anomseg_ros.datasets.cut_paste import read_manifest
from anomseg_ros.outliers.files import part_of


def run(*words: object) -> int:
    return cli.main(["datasets", "cut-paste", *map(str, words)])


@pytest.mark.slow
def test_writes_dataset_readable_by_other_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pasted"
    assert run("synthetic=5:2", "--output", out, "--copies", 2, "--seed", 9, "--kinds", "box,ring", "cart") == 0
    captured = capsys.readouterr()
    assert "4 frames of synthetic with objects (procedural)" in captured.out and "preview.jpg" in captured.out
    assert "4/4" in captured.err
    made_of = read_manifest(out).made_of
    assert (made_of.seed, made_of.copies, made_of.objects.kinds) == (9, 2, ("box", "ring", "cart"))
    assert cli.main(["datasets", "check", f"cut_paste={out}"]) == 0
    assert "4 frames of 4 published, 4 readable, 4 with anomalies: ok" in capsys.readouterr().out


def test_paste_options_are_written_to_manifest(tmp_path: Path) -> None:
    numbers = ["--count", 2, 2, "--scale", 0.7, 1.1, "--max-share", 0.2, "--feather-radius-px", 2, "--min-area-px", 300]
    sizes = ["--low-share", 0.5, "--tone-match", 0, "--object-size-px", 30, 60, "--limit", 1, "--workers", 1]
    assert run("synthetic=5:2", "--output", tmp_path / "out", *numbers, *sizes) == 0
    made_of = read_manifest(tmp_path / "out").made_of
    paste = made_of.paste
    assert (paste.objects, paste.scale, paste.max_share) == ((2, 2), (0.7, 1.1), 0.2)
    assert (paste.feather_radius_px, paste.min_area_px, paste.low_share, paste.tone_match) == (2.0, 300, 0.5, 0.0)
    assert made_of.objects.size_px == (30, 60) and made_of.frames == 1


def test_world_options_are_written_to_manifest(tmp_path: Path) -> None:
    given = {
        "placement": "road",
        "horizon": (0.3, 0.6),
        "camera_height_m": (1.0, 2.0),
        "size_m": (0.3, 1.5),
        "free_share": 0.4,
        "max_upscale": 3.0,
        "cut_share": 0.1,
        "cut_objects": "border",
        "feather_range_px": (0.5, 2.0),
        "color_match": (0.1, 0.5),
        "blur_match": (0.2, 0.6),
        "noise_match": (0.3, 0.7),
        "lighting": 0.2,
        "jpeg_share": 0.3,
        "shadow": 0.5,
        "distractor_share": 1.0,
        "distractors": (2, 2),
    }
    words = ["--min-area-px", 60]
    for name, value in given.items():
        words += ["--" + name.replace("_", "-"), *(value if isinstance(value, tuple) else (value,))]
    assert run("synthetic=5:1", "--output", tmp_path / "out", *words) == 0
    paste = read_manifest(tmp_path / "out").made_of.paste
    assert {name: getattr(paste, name) for name in given} == given
    assert (tmp_path / "out" / "preview.jpg").is_file()


def test_several_object_sources_and_part_are_used(tmp_path: Path) -> None:
    coco(tmp_path / "coco")
    one = f"{{source: {tmp_path / 'coco'}, weight: 2, erode_share: 0.02}}"
    out, part = tmp_path / "out", part_of("a")
    assert run("synthetic=5:1", "--output", out, "--part", part, "--objects", one, "procedural") == 0
    folder, drawn = read_manifest(out).made_of.objects.sources
    assert (folder.name, folder.weight, folder.part, folder.erode_share) == ("coco", 2.0, part, 0.02)
    assert folder.count is not None and 1 <= folder.count <= 2
    assert (drawn.name, drawn.weight, drawn.part) == ("procedural", 1.0, "all")


def test_objects_of_folder_without_excluded_classes(tmp_path: Path) -> None:
    coco(tmp_path / "coco")
    out = tmp_path / "out"
    assert run("synthetic=5:1", "--output", out, "--objects", tmp_path / "coco", "--exclude", "car,chair") == 0
    assert read_manifest(out).made_of.objects.kinds == ("dog",)
    assert len(open_dataset("cut_paste", out)) == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--objects", "COCO", "--exclude", "dgo"], "exclude names 'dgo'"),
        (["--objects", "COCO", "--kinds", "box"], "--kinds is for drawn objects"),
        (["--objects", "COCO", "--object-size-px", "9", "20"], "--object-size-px is for drawn objects"),
        (["--objects", "nowhere"], "'nowhere' is not a folder"),
        (["--exclude", "dog"], "--exclude is for folders of objects"),
        (["--part", "val"], "--part is for folders of objects"),
        (["--objects", "{source: x, weigth: 2}"], "unknown key 'weigth'; did you mean 'weight'"),
        (["--objects", "{source: ["], "is not YAML"),
        (["--objects", "{source: procedural, part: val}"], "part, erode_share, trim_plain and exclude are for folders"),
        (["--placement", "road", "--size-m", "2", "1"], "size_m is (2.0, 1.0)"),
        (["--kinds", "boxx"], "unknown kind of object 'boxx'; known: box"),
        (["--max-share", "2"], "max_share is 2.0"),
        (["--limit", "0"], "limit is 0"),
        (["--min-area-px", "99999999"], "has no room for 1 object(s)"),
    ],
)
def test_wrong_arguments_give_one_line_error(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco(tmp_path / "coco")
    given = [str(tmp_path / "coco") if word == "COCO" else word for word in words]
    assert run("synthetic=5:1", "--output", tmp_path / "out", *given) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("anomseg: error: ") and text in error


@pytest.mark.slow
def test_changed_configuration_needs_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("synthetic=5:1", "--output", out) == 0
    assert run("synthetic=5:1", "--output", out, "--seed", 1) == 1
    assert "seed: 0 there, 1 here" in capsys.readouterr().err
    assert run("synthetic=5:1", "--output", out, "--seed", 1, "--overwrite") == 0
    assert read_manifest(out).made_of.seed == 1
