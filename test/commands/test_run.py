from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from anomseg_ros.backends import open_detector
from anomseg_ros.cli import main
from anomseg_ros.core.image_files import read_image


@pytest.fixture()
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        cv2.imwrite(str(folder / name), generator.integers(0, 256, (90, 160, 3), dtype=np.uint8))
    return folder


def test_files_are_what_the_detector_says(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["run", str(tiny_bundle), str(images), "--output", str(out), "--scores", "void,msp"]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}_{kind}" for name in "ab" for kind in ("labels.png", "void.npy", "msp.npy", "overlay.png")
    )
    outputs = open_detector(tiny_bundle).detect(read_image(images / "a.png"))
    assert (cv2.imread(str(out / "a_labels.png"), cv2.IMREAD_UNCHANGED) == outputs.labels).all()
    saved = np.load(out / "a_void.npy")
    assert saved.dtype == np.float32 and (saved == outputs.scores["void"]).all()
    assert cv2.imread(str(out / "a_overlay.png")).shape == (90, 160, 3)


def test_source_size_and_no_overlay(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--output", str(out), "--source-size", "--no-overlay", "--scores", "msp"]
    assert main(["run", str(tiny_bundle), str(images / "a.png"), *arguments]) == 0
    assert np.load(out / "a_msp.npy").shape == (90, 160)
    assert not (out / "a_overlay.png").exists()


def test_a_bad_image_is_named_and_the_others_are_done(
    tiny_bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "a0.png").write_bytes(b"\x89PNG broken")
    assert main(["run", str(tiny_bundle), str(images), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "a0.png" in error and "2 frames written" in error and "1 failed" in error
    assert (tmp_path / "out" / "a_labels.png").is_file() and (tmp_path / "out" / "b_labels.png").is_file()


def test_unknown_score(tiny_bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tiny_bundle), str(images), "--output", str(tmp_path / "out"), "--scores", "entropy"]) == 1
    assert "unknown score 'entropy'; known: max_entropy" in capsys.readouterr().err
