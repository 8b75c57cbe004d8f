"""From an export of a labelling tool to a detector of one's own classes: import, check, train, evaluate, run."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import once_per_run
import pytest
from dataset_trees import write
from label_exports import DRIVE_COLORS, cvat_drive

torch = pytest.importorskip("torch")

from anomseg_ros import Detector  # noqa: E402
from anomseg_ros.cli import main  # noqa: E402
from anomseg_ros.compression.reexport import export_config_of  # noqa: E402
from anomseg_ros.core.bundle import Contract, load_bundle  # noqa: E402
from anomseg_ros.core.class_table import find_label_set  # noqa: E402
from anomseg_ros.datasets import open_named  # noqa: E402

pytestmark = pytest.mark.slow

FRAMES, SIZE_PX = 6, (64, 128)
NAMES = ["drivable", "path", "green", "sky", "vehicle"]
SETTINGS = [
    "name=mine",
    "network.name=mide_net",
    "network.initial=null",
    "optimizer.rates={}",
    *(f"data.{key}" for key in ("height_px=64", "width_px=128", "workers=0", "cache=memory")),
    *("augment.crop_height_px=64", "augment.crop_width_px=128"),
    *(
        "loss.auxiliary_weight=0",
        "run.epochs=12",
        "run.ema_decay=null",
        "optimizer.learning_rate=0.005",
        "run.batch_size=2",
        "run.precision=32-true",
        "run.accelerator=cpu",
    ),
    "run.threads=1",
]


def make(folder: Path) -> None:
    """Import a drive and train on it."""
    cvat_drive(folder / "export", FRAMES, SIZE_PX)
    words = ["datasets", "import", "cvat", str(folder / "export"), "--output", str(folder / "my_road"), "--copy"]
    assert main([*words, "--map", "car=vehicle", "truck=vehicle", "--outliers", "debris"]) == 0
    changes = [word for change in SETTINGS for word in ("--set", change)]
    run = ["train", "folder-bisenet_lite", "--data", str(folder / "my_road"), "--output", str(folder / "run"), *changes]
    assert main(run) == 0


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once_per_run.copy_of("own-classes", make, tmp_path_factory.mktemp("own") / "place")


@pytest.fixture(scope="module")
def contract(road: Path) -> Contract:
    return load_bundle(road / "run" / "bundle").contract


def test_imported_drive_passes_the_check(road: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "check", f"folder={road / 'my_road'}:train", f"folder={road / 'my_road'}"]) == 0
    assert "5 frames, 5 readable" in capsys.readouterr().out
    dataset = open_named(f"folder={road / 'my_road'}:all")
    assert dataset.classes is not None and [info.name for info in dataset.classes] == NAMES


def test_bundle_has_the_own_classes_colours_and_doubts(contract: Contract) -> None:
    assert [info.name for info in contract.classes] == [*NAMES, "void"] and contract.void_class == 5
    assert [info.color for info in contract.classes[:4]] == [DRIVE_COLORS[name] for name in NAMES[:4]]
    assert [info.train_id for info in contract.classes] == [0, 1, 2, 3, 4, 255]
    assert set(contract.quality["folder val"]["iou"]) <= set(NAMES)
    provenance, licence = contract.provenance, str(contract.provenance.licence)
    assert "are too few to trust" in str(provenance.training_data)
    assert "bisenet_lite-world" in licence and "frames: unknown: state the terms" in licence


def test_evaluation_measures_the_own_classes(road: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(road / "run" / "bundle"), "--dataset", f"folder={road / 'my_road'}:all", "--require-miou"]
    pages = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"), "--score", "void"]
    assert main([*words, *pages]) == 0
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert set(result["iou"]) == set(NAMES) and result["miou"] > 0.2
    assert all(name in (tmp_path / "r.html").read_text() for name in NAMES)


def test_outputs_are_in_the_own_classes(road: Path, contract: Contract) -> None:
    detector = Detector.load(road / "run" / "bundle")
    image = cv2.imread(str(next((road / "my_road" / "images").rglob("*.png"))))[:, :, ::-1].copy()
    found = detector.detect(image)
    assert set(np.unique(found.labels)) <= {0, 1, 2, 3, 4, 255}
    assert contract.void_class == len(NAMES)


def test_label_info_and_overlay_have_the_own_names_and_colours(contract: Contract) -> None:
    from anomseg_ros.core.labels import palette

    assert tuple(palette(contract.classes)[0]) == DRIVE_COLORS["drivable"]
    pytest.importorskip("vision_msgs.msg", reason="vision_msgs is optional")
    from std_msgs.msg import Header

    from anomseg_ros.node.vision import label_info_message

    message = label_info_message(contract.classes, Header(), 0.5)
    assert [entry.class_name for entry in message.class_map] == [*NAMES, "void"]


def test_checkpoint_is_exported_again_with_the_classes_of_the_folder(road: Path, tmp_path: Path) -> None:
    checkpoint = next((road / "run").glob("best.safetensors"))
    words = [
        "export",
        "--network",
        "mide_net",
        "--checkpoint",
        str(checkpoint),
        "--num-classes",
        "6",
        "--void-class",
        "5",
    ]
    words += ["--height", "64", "--width", "128", "--scores", "void", "--output", str(tmp_path / "again")]
    assert main([*words, "--label-set", str(road / "my_road" / "classes.yaml")]) == 0
    again = load_bundle(tmp_path / "again").contract
    assert again.classes == load_bundle(road / "run" / "bundle").contract.classes
    config = export_config_of(again)
    assert config.classes() == again.classes
    assert main([*words, "--overwrite", "--label-set", "camvid"]) == 1


def test_a_folder_of_three_classes_is_not_taken_for_camvid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The licence of the recipe is CamVid's, and its network is not ready to deploy."""
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            pixels = np.random.default_rng([number, count]).integers(0, 256, (64, 128, 3), dtype=np.uint8)
            write(tmp_path / "mine" / split / f"{number}.png", pixels)
            write(tmp_path / "mine" / f"{split}annot" / f"{number}.png", (pixels[:, :, 0] % 3).astype(np.uint8))
    changes = [*SETTINGS[:1], *SETTINGS[4:], "data.allow_partial=true", "run.epochs=1", "deploy.calibrate=false"]
    words = [word for change in changes if "auxiliary" not in change for word in ("--set", change)]
    run = ["train", "mide_net-camvid", "--data", str(tmp_path / "mine"), "--output", str(tmp_path / "run"), *words]
    assert main(run) == 0
    printed = capsys.readouterr().out
    assert "written, not ready to deploy (4 training frames, 367 are published of camvid train; only 3 of" in printed
    provenance = load_bundle(tmp_path / "run" / "bundle").contract.provenance
    assert provenance.licence == "unknown: the frames do not look like those of camvid; state their terms"
    assert "are these frames of camvid?" in str(provenance.training_data)


def test_label_set_of_a_folder_has_its_name_and_classes(road: Path) -> None:
    name, classes = find_label_set(str(road / "my_road"))
    assert name == "my_road" and [info.name for info in classes] == NAMES
