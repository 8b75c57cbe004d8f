from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_trees import INSIDE, OFFICIAL, flat, image, values, write

from anomseg_ros.cli import main
from anomseg_ros.core.problems import REMEDIES
from anomseg_ros.datasets import open_dataset, open_named
from anomseg_ros.datasets.check import CheckReport, check
from anomseg_ros.errors import DatasetError


@pytest.fixture()
def tree(tmp_path: Path) -> Path:
    """All 10 frames of a flat RoadAnomaly21."""
    for number in range(10):
        write(tmp_path / "images" / f"{number}.png", image(number))
        write(tmp_path / "labels_masks" / f"{number}.png", values(0, 1, 255))
    return tmp_path


def report_of(tree: Path, name: str = "road_anomaly_21") -> CheckReport:
    return check(open_dataset(name, tree))


def only_error(report: CheckReport, kind: str) -> str:
    """Return the single error, which must be of this kind, come with its remedy and make the dataset unusable."""
    assert not report.ok(allow_partial=True)
    errors = report.errors(allow_partial=True)
    assert len(errors) == 1 and kind in errors[0] and REMEDIES[kind] in errors[0]
    with pytest.raises(DatasetError, match=kind):
        report.require(allow_partial=True)
    return errors[0]


def test_complete_dataset_is_ok(tree: Path) -> None:
    report = report_of(tree)
    assert report.ok() and report.complete
    assert (report.frames, report.readable, report.published, report.anomaly_frames) == (10, 10, 10, 10)
    assert report.warnings == ()
    report.require()


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_counts_every_frame_in_order(tree: Path, threads: int) -> None:
    seen: list[tuple[int, int]] = []
    check(open_dataset("road_anomaly_21", tree), threads, lambda _, done, total: seen.append((done, total)))
    assert seen == [(done, 10) for done in range(1, 11)]


def test_fewer_frames_than_published_need_allow_partial(tree: Path) -> None:
    for folder in ("images", "labels_masks"):
        (tree / folder / "3.png").unlink()
    report = report_of(tree)
    assert not report.ok() and report.ok(allow_partial=True)
    assert "9 frames found, 10 published" in report.errors()[0]
    with pytest.raises(DatasetError, match="9 frames found, 10 published"):
        report.require()
    report.require(allow_partial=True)


def test_more_frames_than_published_are_an_error(tree: Path) -> None:
    write(tree / "images" / "extra.png", image(1))
    write(tree / "labels_masks" / "extra.png", values(0))
    assert "11 frames found, 10 published: look for frames of another split" in report_of(tree).errors()[0]


def test_image_without_labels_is_an_error(tree: Path) -> None:
    (tree / "labels_masks" / "3.png").unlink()
    assert str(tree / "images" / "3.png") in only_error(report_of(tree), "image without labels")


def test_labels_without_an_image_are_an_error(tree: Path) -> None:
    (tree / "images" / "3.png").unlink()
    assert str(tree / "labels_masks" / "3.png") in only_error(report_of(tree), "labels without an image")


def test_two_images_of_one_stem_are_an_error(tree: Path) -> None:
    write(tree / "images" / "3.jpg", image(1))
    assert "3." in only_error(report_of(tree), "same name twice")


def test_labels_of_another_size_are_an_error(tree: Path) -> None:
    write(tree / "labels_masks" / "3.png", values(0, 1)[:, :5])
    assert "5x6, its image 3.png 8x6" in only_error(report_of(tree), "labels of another size")


def test_unknown_label_values_are_an_error(tree: Path) -> None:
    write(tree / "labels_masks" / "3.png", values(0, 1, 7, 9))
    text = only_error(report_of(tree), "unknown label values")
    assert "(7 (12 px), 9 (12 px); expected 0 known, 1 anomaly, 255 void)" in text


def test_colour_labels_are_an_error(tree: Path) -> None:
    write(tree / "labels_masks" / "3.png", image(4))
    assert "a colour image" in only_error(report_of(tree), "unknown label values")


def test_16_bit_labels_are_read_if_values_are_small(tree: Path) -> None:
    write(tree / "labels_masks" / "3.png", values(0, 1).astype(np.uint16))
    assert report_of(tree).ok()
    write(tree / "labels_masks" / "3.png", values(0, 1).astype(np.uint16) * 300)
    assert "16-bit values up to 300" in only_error(report_of(tree), "unknown label values")


@pytest.mark.parametrize("folder", ["images", "labels_masks"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped bit"])
def test_damaged_files_are_unreadable(tree: Path, folder: str, damage: str) -> None:
    path = tree / folder / "3.png"
    data = path.read_bytes()
    position = data.index(b"IDAT") + 8
    flipped = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
    path.write_bytes({"truncated": data[:-20], "empty": b"", "text": b"hello", "flipped bit": flipped}[damage])
    report = report_of(tree)
    assert str(path) in only_error(report, "unreadable")
    assert report.readable == 9


def test_truncated_jpeg_is_unreadable(tree: Path) -> None:
    (tree / "images" / "3.png").unlink()
    path = tree / "images" / "3.jpg"
    write(path, image(3))
    assert report_of(tree).ok()
    path.write_bytes(path.read_bytes()[:-30])
    assert str(path) in only_error(report_of(tree), "unreadable")


def test_error_counts_all_files_and_lists_the_first(tree: Path) -> None:
    for number in range(8):
        (tree / "labels_masks" / f"{number}.png").unlink()
    text = only_error(report_of(tree), "image without labels")
    assert text.startswith("8 × image without labels") and "… (3 more)" in text and "4.png" in text
    assert "5.png" not in text


def test_problem_can_be_pickled(tree: Path) -> None:
    (tree / "images" / "3.png").write_bytes(b"")
    problem = report_of(tree).problems[0]
    again = pickle.loads(pickle.dumps(problem))
    assert (str(again), again.kind, again.file) == (str(problem), problem.kind, problem.file)


def test_labels_without_any_anomaly_are_a_warning(tree: Path) -> None:
    for path in (tree / "labels_masks").iterdir():
        write(path, values(0))
    report = report_of(tree)
    assert report.ok() and report.anomaly_frames == 0
    assert "no frame holds an anomaly pixel" in report.warnings[0]


def test_frames_without_an_anomaly_are_a_warning(tree: Path) -> None:
    write(tree / "labels_masks" / "3.png", values(0, 255))
    report = report_of(tree)
    assert report.anomaly_frames == 9
    assert report.warnings[0].startswith("1 of 10 frames hold no anomaly: 3;")


def test_frames_of_only_void_are_a_warning(tree: Path) -> None:
    write(tree / "labels_masks" / "3.png", values(255))
    assert report_of(tree).warnings[0].startswith("1 of 10 frames hold only void pixels and are not counted: 3")


def test_semantic_dataset_needs_no_anomalies(tmp_path: Path) -> None:
    OFFICIAL["camvid"](tmp_path)
    report = report_of(tmp_path, "camvid")
    assert report.anomaly_frames is None and "only 2 of the 11 classes of camvid occur" in report.warnings[0]


def test_missing_frame_of_the_frame_list_is_an_error(tmp_path: Path) -> None:
    OFFICIAL["road_anomaly"](tmp_path)
    (tmp_path / "RoadAnomaly_jpg/frames/animals2.png").unlink()
    text = "\n".join(report_of(tmp_path, "road_anomaly").errors(allow_partial=True))
    assert "named in frame_list.json, but not there" in text and "labels without an image" in text


@pytest.mark.parametrize("name", ["fs_lost_found", "fs_static"])
def test_fishyscapes_without_a_base_image_is_an_error(name: str, tmp_path: Path) -> None:
    OFFICIAL[name](tmp_path)
    sorted(tmp_path.rglob("*_leftImg8bit.png"))[0].unlink()
    assert "1 × " in only_error(report_of(tmp_path / INSIDE[name], name), "no base image")


@pytest.mark.parametrize("damage", ["truncated", "other key", "pickle", "other size"])
def test_damaged_overlays_are_unreadable(tmp_path: Path, damage: str) -> None:
    OFFICIAL["fs_static"](tmp_path)
    path = sorted((tmp_path / "fs").glob("*.npz"))[0]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "other key":
        np.savez(path, bgr=np.zeros((6, 8, 3), np.int16))
    elif damage == "pickle":
        np.savez(path, rgb=np.array([{}], dtype=object))
    else:
        np.savez(path, rgb=np.zeros((6, 9, 3), np.int16))
    assert path.name in only_error(report_of(tmp_path / "fs", "fs_static"), "unreadable")


def test_check_command_prints_reports_and_status(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["datasets", "check", f"road_anomaly_21={tree}"]) == 0
    out = capsys.readouterr().out
    assert "10 frames of 10 published, 10 readable, 10 with anomalies: ok" in out
    assert main(["datasets", "check", f"ade_ood={tree}", f"road_anomaly_21={tree}"]) == 1
    out = capsys.readouterr().out
    assert "NOT USABLE" in out and "10 frames found, 111 published" in out and ": ok" in out
    assert main(["datasets", "check", "--allow-partial", f"ade_ood={tree}"]) == 0
    assert main(["datasets", "check", "nothing"]) == 1
    assert "is not of the form NAME=PATH" in capsys.readouterr().out


def test_list_command_prints_splits_and_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "list"]) == 0
    out = capsys.readouterr().out
    assert "street_hazards   train 5125, val 1031, test 1500 (default)" in out and "SEED:FRAMES" in out


def test_flat_helper_writes_a_valid_dataset(tmp_path: Path) -> None:
    flat(tmp_path, 0, 1)
    assert check(open_named(f"ade_ood={tmp_path}")).anomaly_frames == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "frames", "with_anomaly", "size"),
    [
        ("road_anomaly_21", "RoadAnomaly21", 10, 10, (720, 1280)),
        ("road_obstacle_21", "RoadObstacle21", 30, 30, (1080, 1920)),
        ("fs_static", "fs_static", 30, 20, (1024, 2048)),
        ("camvid", "CamVid", 101, None, (360, 480)),
        ("camvid", "CamVid:train", 367, None, (360, 480)),
    ],
)
def test_real_datasets_pass_the_check(
    shared_data: Path, name: str, folder: str, frames: int, with_anomaly: int | None, size: tuple[int, int]
) -> None:
    dataset = open_named(f"{name}={shared_data / folder}")
    report = check(dataset)
    assert report.ok(), report.lines()
    assert (report.frames, report.anomaly_frames) == (frames, with_anomaly)
    frame = dataset.load(1)
    truth = frame.labels if with_anomaly is None else frame.anomaly
    assert truth is not None and frame.image.shape == (*size, 3)
    assert set(np.unique(truth)) <= ({*range(11), 255} if with_anomaly is None else {0, 1, 255})


def test_real_pictures_equal_those_of_pillow(shared_data: Path) -> None:
    pil = pytest.importorskip("PIL.Image", reason="Pillow is absent; it comes with the extra `dev`")
    cases = (("RoadAnomaly21", "images/3.png"), ("RoadObstacle21", "images/3.webp"), ("fs_static", "images/3.jpg"))
    for folder, picture in cases:
        name = {"RoadAnomaly21": "road_anomaly_21", "RoadObstacle21": "road_obstacle_21"}.get(folder, folder)
        frame = open_dataset(name, shared_data / folder).load(3)
        assert frame.id == "3"
        assert np.array_equal(frame.image, np.asarray(pil.open(shared_data / folder / picture).convert("RGB")))
        mask = np.asarray(pil.open(shared_data / folder / "labels_masks/3.png"))
        assert np.array_equal(frame.anomaly, mask)
