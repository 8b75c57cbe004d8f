from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from coco_tree import coco
from dataset_trees import write

from anomseg_ros.core.labels import CAMVID, CITYSCAPES
from anomseg_ros.datasets import open_dataset, open_named
from anomseg_ros.datasets.check import check
from anomseg_ros.datasets.cut_paste import read_manifest
from anomseg_ros.datasets.cut_paste_write import WriteConfig, write_cut_paste
from anomseg_ros.datasets.written_folder import PREVIEW
from anomseg_ros.errors import ConfigError, DatasetError, OutputError
from anomseg_ros.outliers.cut_paste import OUTLIER, PasteConfig
from anomseg_ros.outliers.objects import FolderObjects, ProceduralObjects

MANIFEST, STARTED = "cut_paste.yaml", "cut_paste.started.yaml"

FRAMES, HEIGHT, WIDTH = 5, 90, 120
SMALL = WriteConfig(paste=PasteConfig(min_area_px=100, feather_radius_px=1.5))


@pytest.fixture()
def source_folder(tmp_path: Path) -> Path:
    """A folder like CamVid's with a few frames."""
    rng = np.random.default_rng(0)
    for number in range(FRAMES):
        pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (WIDTH, HEIGHT))
        labels = cv2.resize(rng.integers(0, 12, (6, 8), dtype=np.uint8), (WIDTH, HEIGHT), interpolation=0)
        write(tmp_path / "source" / "train" / f"f{number}.png", np.asarray(pixels))
        write(tmp_path / "source" / "trainannot" / f"f{number}.png", np.asarray(labels))
    return tmp_path / "source"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_dataset(source: Path, folder: Path, config: WriteConfig = SMALL, **options: Any) -> object:
    return write_cut_paste(open_named(f"camvid={source}:train"), ProceduralObjects(), folder, config, **options)  # type: ignore[arg-type]


def test_written_dataset_reads_back(source_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = write_dataset(
        source_folder, tmp_path / "out", progress=lambda _, done, total: seen.append((done, total))
    )
    assert seen == [(number, FRAMES) for number in range(1, FRAMES + 1)]
    original = open_named(f"camvid={source_folder}:train")
    dataset = pickle.loads(pickle.dumps(open_dataset("cut_paste", tmp_path / "out")))
    assert (len(dataset), dataset.published_count, dataset.label_set) == (FRAMES, FRAMES, "camvid")
    assert dataset.classes == CAMVID and dataset.has_anomalies
    for index in range(FRAMES):
        before, after = original.load(index), dataset.load(index)
        raw = cv2.imread(str(tmp_path / "out" / "labels" / f"{after.id}.png"), cv2.IMREAD_UNCHANGED)
        pasted = raw == OUTLIER
        assert pasted.sum() >= 100
        assert (after.anomaly == 1).tolist() == pasted.tolist()
        assert (after.labels[pasted] == 255).all()
        assert np.array_equal(after.labels[~pasted], before.labels[~pasted])
        assert ((after.anomaly == 255) == ((before.labels == 255) & ~pasted)).all()
        assert before.id == after.id and not np.array_equal(before.image, after.image)
    assert check(dataset).ok()
    assert read_manifest(tmp_path / "out") == manifest
    assert not (tmp_path / "out" / STARTED).exists()
    preview = cv2.imread(str(tmp_path / "out" / PREVIEW))
    assert preview.shape == (2 * 360, 3 * 480, 3)
    assert str(tmp_path) not in (tmp_path / "out" / MANIFEST).read_text()


def test_same_seed_gives_same_bytes_with_any_number_of_threads(source_folder: Path, tmp_path: Path) -> None:
    write_dataset(source_folder, tmp_path / "one")
    moved = shutil.copytree(source_folder, tmp_path / "moved")
    write_dataset(moved, tmp_path / "two", threads=3)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    write_dataset(source_folder, tmp_path / "other", replace(SMALL, seed=1))
    first, other = files_of(tmp_path / "one"), files_of(tmp_path / "other")
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_copies_differ_and_limit_does_not_change_frames(source_folder: Path, tmp_path: Path) -> None:
    write_dataset(source_folder, tmp_path / "all")
    write_dataset(source_folder, tmp_path / "two", replace(SMALL, copies=2, limit=2))
    every, two = files_of(tmp_path / "all" / "images"), files_of(tmp_path / "two" / "images")
    assert set(two) == {"f0-0.png", "f1-0.png", "f0-1.png", "f1-1.png"}
    assert two["f1-0.png"] == every["f1.png"] != two["f1-1.png"]


class SlowObjects(ProceduralObjects):
    """Objects that are drawn slowly, so that a process can be killed while it writes."""

    def draw(self, rng, frames):  # type: ignore[no-untyped-def]
        time.sleep(0.05)
        return super().draw(rng, frames)


def write_slowly(source: Path, folder: Path) -> None:
    write_cut_paste(open_named(f"camvid={source}:train"), SlowObjects(), folder, SMALL)


def test_killed_run_resumes_to_the_same_bytes(source_folder: Path, tmp_path: Path) -> None:
    write_dataset(source_folder, tmp_path / "whole")
    process = multiprocessing.get_context("fork").Process(target=write_slowly, args=(source_folder, tmp_path / "out"))
    process.start()
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "out").glob("labels/*.png"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "labels").glob("*.png")}
    assert 2 <= len(there) < FRAMES and not (tmp_path / "out" / MANIFEST).exists()
    with pytest.raises(DatasetError, match="is unfinished; run the same"):
        open_dataset("cut_paste", tmp_path / "out")
    (tmp_path / "out" / "images" / "f4.png.77.part").write_bytes(b"half")
    write_dataset(source_folder, tmp_path / "out")
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "out")
    assert all((tmp_path / "out" / "labels" / name).stat().st_mtime_ns == then for name, then in there.items())


def test_missing_frame_of_a_finished_dataset_is_written_again(source_folder: Path, tmp_path: Path) -> None:
    write_dataset(source_folder, tmp_path / "out")
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / "images" / "f3.png").unlink()
    write_dataset(source_folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def test_other_configuration_is_refused_without_overwrite(source_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_dataset(source_folder, out)
    changed = replace(SMALL, seed=4, paste=replace(SMALL.paste, max_share=0.3))
    with pytest.raises(ConfigError, match=r"paste.max_share: 0.4 there, 0.3 here; seed: 0 there, 4 here.*--overwrite"):
        write_dataset(source_folder, out, changed)
    before = files_of(out)
    write_dataset(source_folder, out, changed, overwrite=True)
    assert files_of(out).keys() == before.keys() and files_of(out) != before
    write_dataset(source_folder, tmp_path / "fresh", changed)
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_changed_source_data_are_refused(source_folder: Path, tmp_path: Path) -> None:
    write_dataset(source_folder, tmp_path / "out")
    (source_folder / "train" / "f4.png").rename(source_folder / "train" / "g4.png")
    (source_folder / "trainannot" / "f4.png").rename(source_folder / "trainannot" / "g4.png")
    with pytest.raises(ConfigError, match=r"source_sha256: .* there"):
        write_dataset(source_folder, tmp_path / "out")


def test_foreign_folder_is_refused_and_kept(source_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "mine.png").write_bytes(b"x")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds other files"):
            write_dataset(source_folder, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / "images" / "mine.png").read_bytes() == b"x"
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / STARTED).write_text("seed: [")
    with pytest.raises(ConfigError, match=r"cut_paste.started.yaml' is damaged"):
        write_dataset(source_folder, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is write-protected for root")
def test_write_protected_folder_error_names_it(source_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match=r"cannot write .*locked/out': Permission denied"):
        write_dataset(source_folder, tmp_path / "locked" / "out")


def test_file_in_place_of_the_folder_error_names_it(source_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file.*: Not a directory; .*give another path"):
        write_dataset(source_folder, tmp_path / "file" / "out")


def test_full_disk_leaves_no_partial_frame(
    source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith(".f2.png"):
            write_bytes(path, content[:10])
            raise OSError(28, "No space left on device", str(path))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"f2\.png': No space left on device; make room"):
        write_dataset(source_folder, tmp_path / "out")
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / "out" / "images" / "f2.png").exists()
    write_dataset(source_folder, tmp_path / "out")
    write_dataset(source_folder, tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_datasets_unsuitable_for_pasting_are_refused(source_folder: Path, tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "flat" / "images" / f"{number}.png", np.zeros((9, 9, 3), np.uint8))
        write(tmp_path / "flat" / "labels_masks" / f"{number}.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(DatasetError, match="road_anomaly_21 has no semantic labels to paste into"):
        write_cut_paste(
            open_dataset("road_anomaly_21", tmp_path / "flat"), ProceduralObjects(), tmp_path / "out", SMALL
        )
    with pytest.raises(ConfigError, match="9x9 has no room for 1 object"):
        write_cut_paste(open_dataset("camvid", tmp_path / "flat"), ProceduralObjects(), tmp_path / "out", SMALL)
    write(source_folder / "trainannot" / "f2.png", np.full((HEIGHT, WIDTH), 40, np.uint8))
    with pytest.raises(DatasetError, match=r"unknown label values: .*f2.png"):
        write_dataset(source_folder, tmp_path / "out2")


def test_labels_outside_the_classes_are_refused(source_folder: Path, tmp_path: Path) -> None:
    dataset = open_named(f"camvid={source_folder}:train")
    dataset.classes = CAMVID[:3]
    with pytest.raises(DatasetError, match=r"labels of frame 'f0' hold \[3, 4.*train ids of its 3 classes"):
        write_cut_paste(dataset, ProceduralObjects(), tmp_path / "out", SMALL)


def test_invalid_write_options_are_refused() -> None:
    wrong: dict[str, dict[str, Any]] = {
        "seed is -1": {"seed": -1},
        "copies is 0": {"copies": 0},
        "limit is 0": {"limit": 0},
    }
    for text, change in wrong.items():
        with pytest.raises(ConfigError, match=text):
            WriteConfig(**change)


def test_reading_other_folders_is_refused(source_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        open_dataset("cut_paste", tmp_path / "none")
    with pytest.raises(DatasetError, match=r"no cut_paste.yaml in"):
        open_dataset("cut_paste", source_folder)
    write_dataset(source_folder, tmp_path / "out")
    with pytest.raises(DatasetError, match="cut_paste has no splits, 'val' was given"):
        open_dataset("cut_paste", tmp_path / "out", "val")
    path = tmp_path / "out" / MANIFEST
    whole = yaml.safe_load(path.read_text())
    for change, text in (
        ({"made_of": {**whole["made_of"], "format": 9}}, "its format is 9, this version reads 1"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"count": "five"}, "count: expected int"),
    ):
        path.write_text(yaml.safe_dump({**whole, **change}))
        with pytest.raises(DatasetError, match=text):
            open_dataset("cut_paste", tmp_path / "out")
    path.write_text("made_of: [")
    with pytest.raises(DatasetError, match="write the dataset again"):
        open_dataset("cut_paste", tmp_path / "out")


def test_check_reports_missing_frames_and_unknown_labels(source_folder: Path, tmp_path: Path) -> None:
    write_dataset(source_folder, tmp_path / "out")
    (tmp_path / "out" / "images" / "f0.png").unlink()
    write(tmp_path / "out" / "labels" / "f1.png", np.full((HEIGHT, WIDTH), 11, np.uint8))
    report = check(open_dataset("cut_paste", tmp_path / "out"))
    assert not report.ok()
    assert {problem.kind for problem in report.problems} == {"labels without an image", "unknown label values"}


def test_object_folder_is_in_the_manifest_and_a_change_is_refused(source_folder: Path, tmp_path: Path) -> None:
    coco(tmp_path / "coco")
    objects = FolderObjects(tmp_path / "coco")
    manifest = write_cut_paste(open_named(f"camvid={source_folder}:train"), objects, tmp_path / "out", SMALL)
    assert manifest.made_of.objects.kinds == ("chair", "dog") and manifest.made_of.objects.count == 2
    text = (tmp_path / "coco" / "annotations" / "instances_train2017.json").read_text()
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").write_text(text + "\n")
    with pytest.raises(ConfigError, match=r"objects.sha256"):
        other = FolderObjects(tmp_path / "coco")
        write_cut_paste(open_named(f"camvid={source_folder}:train"), other, tmp_path / "out", SMALL)


@pytest.mark.slow
def test_objects_are_pasted_into_generated_scenes(tmp_path: Path) -> None:
    write_cut_paste(open_named("synthetic=3:1"), ProceduralObjects(), tmp_path / "out", WriteConfig())
    dataset = open_dataset("cut_paste", tmp_path / "out")
    assert dataset.classes == CITYSCAPES and (dataset.load(0).anomaly == 1).sum() >= 1000


def test_real_frames_pass_the_check(shared_data: Path, tmp_path: Path) -> None:
    dataset = open_named(f"camvid={shared_data / 'CamVid'}:train")
    manifest = write_cut_paste(dataset, ProceduralObjects(), tmp_path / "out", WriteConfig(limit=4))
    report = check(open_dataset("cut_paste", tmp_path / "out"))
    assert report.ok() and report.anomaly_frames == 4 == manifest.count
