"""Writing and reading a dataset with labels from teachers."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from brightness_teacher import ROAD, SKY, ByBrightness
from dataset_trees import write

from anomseg_ros.core.labels import CITYSCAPES, KNOWN_UNCERTAIN
from anomseg_ros.datasets import open_dataset, open_named
from anomseg_ros.datasets.check import check
from anomseg_ros.datasets.cut_paste_write import WriteConfig as PasteWriteConfig
from anomseg_ros.datasets.cut_paste_write import write_cut_paste
from anomseg_ros.datasets.pseudo_label import LabelConfig
from anomseg_ros.datasets.pseudo_label_dataset import Manifest, read_manifest
from anomseg_ros.datasets.pseudo_label_sources import open_sources
from anomseg_ros.datasets.pseudo_label_write import WriteConfig, write_pseudo_labels
from anomseg_ros.datasets.written_folder import PREVIEW
from anomseg_ros.errors import ConfigError, DatasetError, OutputError
from anomseg_ros.outliers.cut_paste import OUTLIER, PasteConfig
from anomseg_ros.outliers.objects import ProceduralObjects

FRAMES, HEIGHT, WIDTH = 6, 24, 40
BUILDING, PERSON, CAR = 2, 11, 13


@pytest.fixture()
def source(tmp_path: Path) -> Path:
    """Pictures with a ramp from dark to bright, and frames with labels of CamVid."""
    ramp = np.repeat(np.linspace(0, 255, WIDTH)[np.newaxis], HEIGHT, axis=0)
    for number in range(FRAMES):
        picture = np.repeat(np.clip(ramp + number, 0, 255).astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
        write(tmp_path / "pictures" / f"f{number}.png", picture)
    labels = np.full((HEIGHT, WIDTH), 8, np.uint8)
    labels[: HEIGHT // 2], labels[-1] = 9, 11
    write(tmp_path / "camvid" / "train" / "c0.png", np.full((HEIGHT, WIDTH, 3), 20, np.uint8))
    write(tmp_path / "camvid" / "trainannot" / "c0.png", labels)
    return tmp_path


def write_dataset(source: Path, folder: Path, config: WriteConfig | None = None, **options: object) -> Manifest:
    sources = open_sources([f"folder={source / 'pictures'}", f"camvid={source / 'camvid'}:train"])
    teachers = options.pop("teachers", [ByBrightness()])
    config = config or WriteConfig(LabelConfig(confidence=0.75))
    return write_pseudo_labels(sources, teachers, folder, config, **options)  # type: ignore[arg-type]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_written_dataset_reads_back(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = write_dataset(source, tmp_path / "out", progress=lambda _, done, total: seen.append((done, total)))
    assert seen == [(number, FRAMES + 1) for number in range(1, FRAMES + 2)]
    dataset = pickle.loads(pickle.dumps(open_dataset("pseudo_label", tmp_path / "out")))
    assert (len(dataset), dataset.published_count, dataset.label_set) == (FRAMES + 1, FRAMES + 1, "cityscapes")
    assert dataset.classes == CITYSCAPES and not dataset.has_anomalies and check(dataset).ok()
    assert [dataset.frame_id(index) for index in (0, 1)] == ["camvid-c0", "folder-f0"]
    ramp = dataset.load(1)
    original = cv2.imread(str(source / "pictures" / "f0.png"))
    assert np.array_equal(ramp.image, original) and ramp.anomaly is None
    bright = original[:, :, 0] / 255
    expected = np.where(bright >= 0.75, SKY, np.where(bright <= 0.25, ROAD, 255))
    assert np.array_equal(ramp.labels, expected)
    confidence = cv2.imread(str(tmp_path / "out" / "confidence" / "folder-f0.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(confidence, np.maximum(original[:, :, 0], 255 - original[:, :, 0]))
    assert read_manifest(tmp_path / "out") == manifest
    assert not (tmp_path / "out" / "pseudo_label.started.yaml").exists()
    assert str(tmp_path) not in (tmp_path / "out" / "pseudo_label.yaml").read_text()
    assert cv2.imread(str(tmp_path / "out" / PREVIEW)).shape == (4 * 252, 2 * 3 * 420, 3)


def test_own_labels_restrict_the_teacher_to_their_classes(source: Path, tmp_path: Path) -> None:
    write_dataset(source, tmp_path / "out")
    labels = open_dataset("pseudo_label", tmp_path / "out").load(0).labels
    # CamVid's pedestrian is Cityscapes' person. The teacher knows no class of "car". Void stays void.
    assert (labels[: HEIGHT // 2] == PERSON).all() and (labels[-1] == 255).all()
    assert (labels[HEIGHT // 2 : -1] == KNOWN_UNCERTAIN).all()


def test_manifest_counts_frames_and_class_shares(source: Path, tmp_path: Path) -> None:
    manifest = write_dataset(source, tmp_path / "out", WriteConfig(LabelConfig(confidence=0.75), ("camvid-*",), 0.34))
    pictures, frames = manifest.sources["folder"], manifest.sources["camvid"]
    assert (pictures.stated, pictures.written, pictures.validation) == (FRAMES, FRAMES, 2)
    assert (frames.stated, frames.written, frames.validation) == (1, 1, 1)
    assert manifest.made_of.validation == ("folder-f4", "folder-f5", "camvid-c0")
    assert pictures.agreement == 1 and pictures.confidence == pytest.approx(0.75, abs=0.02)
    values = [open_dataset("pseudo_label", tmp_path / "out", split) for split in ("train", "val")]
    pixels = np.concatenate([one.load(i).labels.reshape(-1) for one in values for i in range(len(one))])
    assert sum(manifest.shares.values()) == pytest.approx(1, abs=1e-4)
    assert manifest.shares["sky"] == pytest.approx((pixels == SKY).mean(), abs=1e-5)
    assert manifest.shares["known, class uncertain"] == pytest.approx((pixels == KNOWN_UNCERTAIN).mean(), abs=1e-5)


def test_pixels_of_excluded_classes_count_in_the_means(source: Path, tmp_path: Path) -> None:
    # Bright pixels are sky. Dark pixels are road, which scenery excludes, so their confidence is nearly 0.
    sources = open_sources([f"scenery={source / 'pictures'}"])
    manifest = write_pseudo_labels(sources, [ByBrightness()], tmp_path / "out", WriteConfig())
    assert manifest.sources["scenery"].agreement == 1
    assert manifest.sources["scenery"].confidence == pytest.approx(0.5, abs=0.02)


def test_splits_are_disjoint_and_an_empty_split_is_refused(source: Path, tmp_path: Path) -> None:
    write_dataset(source, tmp_path / "out", WriteConfig(validation=("folder-f[12]",), share=0.0))
    train, held_out = (open_named(f"pseudo_label={tmp_path / 'out'}:{split}") for split in ("train", "val"))
    assert [held_out.frame_id(index) for index in range(len(held_out))] == ["folder-f1", "folder-f2"]
    assert (len(train), train.published_count, held_out.published_count) == (5, 5, 2)
    write_dataset(source, tmp_path / "all")
    with pytest.raises(DatasetError, match="no frame in its split 'val'; write it again and give --validation"):
        open_dataset("pseudo_label", tmp_path / "all", "val")


def write_slowly(source: Path, folder: Path) -> None:
    write_dataset(source, folder, teachers=[ByBrightness(seconds=0.1)])


def test_killed_run_resumes_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    write_dataset(source, tmp_path / "whole")
    process = multiprocessing.get_context("fork").Process(target=write_slowly, args=(source, tmp_path / "out"))
    process.start()
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "out").glob("labels/*.png"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "labels").glob("*.png")}
    assert 2 <= len(there) < FRAMES
    with pytest.raises(DatasetError, match="is unfinished; run the same `anomseg datasets pseudo-label` again"):
        open_dataset("pseudo_label", tmp_path / "out")
    write_dataset(source, tmp_path / "out")
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "out")
    assert all((tmp_path / "out" / "labels" / name).stat().st_mtime_ns == then for name, then in there.items())


def test_folder_of_other_options_is_refused_without_overwrite(source: Path, tmp_path: Path) -> None:
    write_dataset(source, tmp_path / "out")
    flipped = WriteConfig(LabelConfig(confidence=0.6, flip=True))
    with pytest.raises(
        ConfigError, match=r"of another specification \(labels.confidence: 0.75 there, 0.6 here; labels.flip"
    ):
        write_dataset(source, tmp_path / "out", flipped)
    with pytest.raises(ConfigError, match="teachers: "):
        write_dataset(source, tmp_path / "out", teachers=[ByBrightness(version="2")])
    write(source / "pictures" / "f0.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(ConfigError, match="sources: "):
        write_dataset(source, tmp_path / "out")
    write_dataset(source, tmp_path / "out", flipped, overwrite=True)
    assert read_manifest(tmp_path / "out").made_of.labels.flip
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="full' holds other files"):
        write_dataset(source, tmp_path / "full", overwrite=True)


def test_failed_frame_is_listed_and_retried(source: Path, tmp_path: Path) -> None:
    whole = (source / "pictures" / "f2.png").read_bytes()
    (source / "pictures" / "f2.png").write_bytes(whole[:60])
    manifest = write_dataset(source, tmp_path / "out")
    assert len(manifest.failures) == 1 and manifest.failures[0].startswith("folder-f2: unreadable:")
    assert (manifest.count, manifest.sources["folder"].written, manifest.sources["folder"].stated) == (6, 5, 6)
    assert len(open_dataset("pseudo_label", tmp_path / "out")) == 6
    (source / "pictures" / "f2.png").write_bytes(whole)
    assert write_dataset(source, tmp_path / "out").failures == ()
    write_dataset(source, tmp_path / "never_failed")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "never_failed")


def test_file_in_place_of_the_folder_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match=r"cannot write .*file': File exists; .*give another path"):
        write_dataset(source, tmp_path / "file")


def test_no_readable_frame_or_no_teacher_is_refused(source: Path, tmp_path: Path) -> None:
    for file in (source / "pictures").glob("*.png"):
        file.write_bytes(b"no picture")
    sources = open_sources([f"folder={source / 'pictures'}"])
    with pytest.raises(DatasetError, match="no frame could be labelled; the first: folder-f0: unreadable"):
        write_pseudo_labels(sources, [ByBrightness()], tmp_path / "out", WriteConfig())
    with pytest.raises(ConfigError, match="no teacher; give at least one"):
        write_pseudo_labels(sources, [], tmp_path / "out", WriteConfig())


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"validation": ("camvid-d*",)},
            r"pattern 'camvid-d\*' matches no frame; frames are called camvid-c0",
        ),
        ({"share": 1.0}, "validation share is 1.0"),
    ],
)
def test_invalid_validation_options_are_refused(
    config: dict[str, object], text: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        write_dataset(source, tmp_path / "out", WriteConfig(**config))  # type: ignore[arg-type]


def test_reading_other_folders_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere' is not a folder"):
        open_dataset("pseudo_label", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no pseudo_label.yaml in"):
        open_dataset("pseudo_label", source)
    write_dataset(source, tmp_path / "out")
    with pytest.raises(DatasetError, match="has no split 'test'"):
        open_dataset("pseudo_label", tmp_path / "out", "test")
    path = tmp_path / "out" / "pseudo_label.yaml"
    data = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**data, "made_of": {**data["made_of"], "format": 9}}))
    with pytest.raises(DatasetError, match="its format is 9, this version reads 1"):
        open_dataset("pseudo_label", tmp_path / "out")
    path.write_text("made_of: [")
    with pytest.raises(DatasetError, match="cannot be used"):
        open_dataset("pseudo_label", tmp_path / "out")


def test_uncertain_pixels_stay_known_after_pasting_and_relabelling(source: Path, tmp_path: Path) -> None:
    write_dataset(source, tmp_path / "out")
    dataset = open_dataset("pseudo_label", tmp_path / "out")
    paste = PasteConfig(min_area_px=30, feather_radius_px=0.5)
    write_cut_paste(dataset, ProceduralObjects(), tmp_path / "pasted", PasteWriteConfig(paste=paste))
    frame = open_dataset("cut_paste", tmp_path / "pasted").load(0)
    raw = cv2.imread(str(tmp_path / "pasted" / "labels" / "camvid-c0.png"), cv2.IMREAD_UNCHANGED)
    uncertain = raw == KNOWN_UNCERTAIN
    assert uncertain.any() and (raw == OUTLIER).any()
    assert (frame.labels[uncertain] == KNOWN_UNCERTAIN).all() and (frame.anomaly[uncertain] == 0).all()
    sources = open_sources([f"pseudo_label={tmp_path / 'out'}"])
    write_pseudo_labels(sources, [ByBrightness()], tmp_path / "again", WriteConfig(LabelConfig(confidence=0.75)))
    again = open_dataset("pseudo_label", tmp_path / "again").load(0)
    # Every known class is possible there, and the teacher labels dark pixels as road.
    assert (again.labels[dataset.load(0).labels == KNOWN_UNCERTAIN] == ROAD).all()
