from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from drives import noise, write_unlabelled_bag

from anomseg_ros.backends import open_detector
from anomseg_ros.cli import main
from anomseg_ros.core.image_files import read_image

KINDS = ("labels.png", "mask.png", "void.npy", "msp.npy", "overlay.png", "score.png")


@pytest.fixture()
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        cv2.imwrite(str(folder / name), generator.integers(0, 256, (90, 160, 3), dtype=np.uint8))
    return folder


def test_written_files_equal_detector_outputs(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["run", str(tiny_bundle), str(images), "--output", str(out), "--score", "void,msp"]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{name}_{kind}" for name in "ab" for kind in KINDS)
    outputs = open_detector(tiny_bundle).detect(read_image(images / "a.png"))
    assert (cv2.imread(str(out / "a_labels.png"), cv2.IMREAD_UNCHANGED) == outputs.labels).all()
    saved = np.load(out / "a_void.npy")
    assert saved.dtype == np.float32 and (saved == outputs.scores["void"]).all()
    for kind in ("overlay", "score"):  # the frame with a legend below
        height, width, _ = cv2.imread(str(out / f"a_{kind}.png")).shape
        assert height > 90 and width == 160


def test_files_of_an_earlier_run_are_counted(
    tiny_bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output", str(tmp_path / "out"), "--score", "void", "--no-overlay"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main(["run", str(tiny_bundle), str(images), *words]) == 0
    assert "earlier run" not in capsys.readouterr().err
    assert main(["run", str(tiny_bundle), str(images / "a.png"), *words]) == 0
    files = len(list((tmp_path / "out").iterdir())) - 1
    error = capsys.readouterr().err
    assert (
        f"warning: {tmp_path / 'out'} had results of an earlier run: {files // 2} of its files were replaced" in error
    )
    assert f", {files // 2} are still there" in error


def test_mask_is_where_the_first_score_is_above_its_threshold(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scores = open_detector(tiny_bundle).detect(read_image(images / "a.png")).scores["msp"]
    middle = float(np.median(scores))
    words = ["--output", str(out), "--score", "msp,void", "--threshold", str(middle)]
    assert main(["run", str(tiny_bundle), str(images / "a.png"), *words]) == 0
    mask = cv2.imread(str(out / "a_mask.png"), cv2.IMREAD_UNCHANGED)
    assert ((mask == 255) == (scores > np.float32(middle))).all() and set(np.unique(mask)) == {0, 255}


def test_score_files_can_be_compressed_or_left_out(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    words = [
        "run",
        str(tiny_bundle),
        str(images / "a.png"),
        "--no-overlay",
        "--threshold",
        "0.5",
        "--score",
        "void,msp",
    ]
    for kind in ("npy", "npz", "none"):
        assert main([*words, "--output", str(tmp_path / kind), "--score-files", kind]) == 0
    plain, packed = (np.load(tmp_path / kind / f"a_msp.{kind}") for kind in ("npy", "npz"))
    assert (packed["msp"] == plain).all()
    assert sorted(path.name for path in (tmp_path / "none").iterdir()) == ["a_labels.png", "a_mask.png"]
    masks = [(tmp_path / kind / "a_mask.png").read_bytes() for kind in ("npy", "npz", "none")]
    assert masks[0] == masks[1] == masks[2]


def test_source_size_and_no_overlay_options(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--output", str(out), "--source-size", "--no-overlay", "--score", "msp"]
    assert main(["run", str(tiny_bundle), str(images / "a.png"), *arguments]) == 0
    assert np.load(out / "a_msp.npy").shape == (90, 160)
    assert not list(out.glob("a_overlay.png")) and not list(out.glob("a_score.png"))


def test_bad_image_is_named_and_others_are_written(
    tiny_bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "a0.png").write_bytes(b"\x89PNG broken")
    assert main(["run", str(tiny_bundle), str(images), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "a0.png" in error and "2 frames written" in error and "1 failed" in error
    assert (tmp_path / "out" / "a_labels.png").is_file() and (tmp_path / "out" / "b_labels.png").is_file()


def test_unknown_score_is_an_error(
    tiny_bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tiny_bundle), str(images), "--output", str(tmp_path / "out"), "--score", "entropy"]) == 1
    assert "unknown score 'entropy'; known: max_entropy" in capsys.readouterr().err


def test_unwritable_files_are_failures_without_partial_files(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    (images / "a.png").rename(images / f"{'f' * 248}.png")
    out = tmp_path / "out"
    code = """
import resource, signal, sys
from anomseg_ros.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if sys.argv[1] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(["run", *sys.argv[2:]]))
"""
    words = [str(tiny_bundle), str(images), "--output", str(out), "--score", "void"]
    done = subprocess.run([sys.executable, "-c", code, "0", *words], capture_output=True, text=True)
    assert done.returncode == 1 and "1 frames written" in done.stderr and "Traceback" not in done.stderr
    assert f"{'f' * 248}_labels.png': File name too long; choose a shorter name" in done.stderr
    assert {path.name[:2] for path in out.iterdir()} == {"b_"}

    done = subprocess.run([sys.executable, "-c", code, "20000", *words], capture_output=True, text=True)
    assert done.returncode == 1 and "0 frames written" in done.stderr and "Traceback" not in done.stderr
    assert "b_void.npy': File too large; choose a place" in done.stderr
    assert np.load(out / "b_void.npy").shape == (64, 128)  # of the run before, still whole
    assert not list(out.glob(".*"))


def test_non_utf8_names_work_and_broken_links_are_named(
    tiny_bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "a.png").rename(images / os.fsdecode(b"caf\xe9.png"))
    (images / "c.png").symlink_to("nowhere")
    out = tmp_path / "out"
    assert main(["run", str(tiny_bundle), str(images), "--output", str(out), "--score", "void"]) == 1
    error = capsys.readouterr().err
    assert "2 frames written" in error and "c.png' is a symbolic link to 'nowhere'" in error
    assert os.path.exists(os.fsencode(out) + b"/caf\xe9_labels.png")
    assert np.load(os.fsdecode(os.fsencode(out) + b"/caf\xe9_void.npy")).shape == (64, 128)


@pytest.mark.parametrize("threads", ["-3", "100000"])
def test_threads_out_of_range_are_refused(threads: str, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "enet-synthetic", str(images), "--output", str(images / "out"), "--threads", threads]
    assert main(words) == 1
    assert f"threads {threads}: expected 0 (one per core) to 256" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--threshold", "nan"], ["--target-fpr", "2"], ["--target-fpr", "-0.1"]])
def test_numbers_without_meaning_are_refused(words: list[str], images: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["run", "enet-synthetic", str(images), "--output", str(images / "out"), *words])
    assert raised.value.code == 2


def test_frames_of_bags_are_named_by_their_stamps(
    tiny_bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag, out = write_unlabelled_bag(tmp_path / "bag", 2), tmp_path / "out"
    words = ["run", str(tiny_bundle), str(images), str(bag), "--output", str(out), "--no-overlay", "--score", "void"]
    assert main(words) == 0
    labels = sorted(path.name for path in out.glob("*_labels.png"))
    assert labels == sorted(f"{name}_labels.png" for name in ("a", "b", "100.000000000", "100.100000000"))
    expected = open_detector(tiny_bundle).detect(noise(1)).scores["void"]
    assert (np.load(out / "100.100000000_void.npy") == expected).all()
    assert main([*words, "--image-topic", "/nowhere"]) == 1
    assert "/nowhere" in capsys.readouterr().err
    words.remove(str(bag))
    assert main([*words, "--image-topic", "/camera/image"]) == 1
    assert "--image-topic /camera/image is for bags, and none is given" in capsys.readouterr().err
