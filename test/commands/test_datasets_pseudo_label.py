from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_trees import camvid, write

from anomseg_ros import cli
from anomseg_ros.datasets import open_dataset
from anomseg_ros.datasets.pseudo_label_dataset import read_manifest
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint


def run(*words: object) -> int:
    return cli.main(["datasets", "pseudo-label", *map(str, words)])


@pytest.fixture()
def place(tmp_path: Path) -> Path:
    """Pictures, CamVid frames, and a checkpoint of a tiny network."""
    rng = np.random.default_rng(0)
    for number in range(4):
        write(tmp_path / "pictures" / f"p{number}.png", rng.integers(0, 256, (30, 44, 3), dtype=np.uint8))
    camvid(tmp_path / "camvid")
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "mide.safetensors", build_network("mide_net", 19).eval(), {})
    return tmp_path


def frames_of(place: Path) -> list[object]:
    return ["--frames", f"folder={place / 'pictures'}", f"camvid={place / 'camvid'}"]


def test_writes_dataset_readable_by_other_commands(
    place: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "out"
    teachers = ["--teacher", f"mide_net={place / 'mide.safetensors'}", tiny_bundle]
    options = ["--flip", "--scales", "0.5,1", "--size", "24x32", "--confidence", 0.05, "--known", "folder"]
    words = [*frames_of(place), *teachers, *options, "--output", out, "--validation-share", 0.25]
    assert run(*words) == 0
    captured = capsys.readouterr()
    assert "folder: 4 of 4 frames, 1 held out, mean confidence 0." in captured.out
    assert "6 frames in" in captured.out and "0 failed" in captured.out and "preview.jpg" in captured.out
    assert "6/6" in captured.err
    made_of = read_manifest(out).made_of
    assert (made_of.labels.flip, made_of.labels.scales, made_of.labels.size_px) == (True, (0.5, 1.0), (24, 32))
    assert made_of.labels.confidence == 0.05 and [source.known for source in made_of.sources] == [True, False]
    assert [teacher.name for teacher in made_of.teachers] == ["mide_net", "tiny"]
    assert open_dataset("pseudo_label", out).load(1).labels.shape == (24, 32)
    assert cli.main(["datasets", "check", f"pseudo_label={out}:train"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert run(*words) == 0
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_failing_frame_is_named_and_others_are_labelled(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "pictures" / "p1.png").write_bytes(b"no picture")
    teacher = ["--teacher", f"mide_net={place / 'mide.safetensors'}"]
    assert run(*frames_of(place), *teacher, "--output", place / "out") == 1
    captured = capsys.readouterr()
    assert "failed: folder-p1: unreadable:" in captured.err and "folder: 3 of 4 frames" in captured.out
    assert "5 frames in" in captured.out and "1 failed" in captured.out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--teacher", "mide_net=nowhere.pth"], "no checkpoint file at nowhere.pth"),
        (["--teacher", "nowhere"], "'nowhere' is neither a bundle directory nor a shipped bundle"),
        (["--teacher", "midenet=PLACE/mide.safetensors"], "unknown network 'midenet'"),
        (["--teacher", "enet=PLACE/mide.safetensors"], "holds network 'mide_net', not 'enet'"),
        (["--frames", "fodler=PLACE/pictures"], "unknown kind of frames 'fodler'; known: folder"),
        (["--known", "video"], "unknown source 'video'; known: folder"),
        (["--size", "24"], "--size is '24'; expected HEIGHTxWIDTH"),
        (["--scales", "one"], "--scales has 'one'"),
        (["--scales", "0"], "scales are (0.0,)"),
        (["--confidence", "7"], "confidence is 7.0"),
        (["--video-step", "0"], "--video-step is 0"),
        (["--validation", "p9*"], "validation pattern 'p9*' matches no frame"),
        (["--output", "PLACE/pictures"], "holds other files"),
    ],
)
def test_wrong_arguments_give_one_line_error(
    words: list[str], text: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "--frames": f"folder={place / 'pictures'}",
        "--teacher": f"mide_net={place / 'mide.safetensors'}",
        "--output": str(place / "out"),
        words[0]: words[1].replace("PLACE", str(place)),
    }
    assert run(*(word for pair in given.items() for word in pair)) == 1
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error
