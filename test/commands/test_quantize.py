"""`anomseg quantize`."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from small_bundles import small_bundle, street_frames

from anomseg_ros.backends import open_detector
from anomseg_ros.cli import main
from anomseg_ros.core.bundle import GRAPH_FILE, load_bundle, sha256_of
from anomseg_ros.export import ExportConfig, export_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, and frames of a street."""
    folder = tmp_path_factory.mktemp("quantize")
    small_bundle("mide_net", folder)
    (folder / "frames").mkdir()
    for index, frame in enumerate(street_frames(12)):
        cv2.imwrite(str(folder / "frames" / f"{index}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return folder


def arguments(place: Path, output: Path, *more: str) -> list[str]:
    return ["quantize", str(place / "mide_net"), "--frames", str(place / "frames"), "--output", str(output), *more]


LENIENT = ("--keep-float", "none", "--label-agreement", "0.5", "--rank-correlation", "0.5")


@pytest.mark.slow
def test_bundle_is_quantized_and_source_unchanged(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sha256_of(place / "mide_net" / GRAPH_FILE), sha256_of(place / "mide_net" / "bundle.yaml")
    assert main(arguments(place, tmp_path / "small", *LENIENT)) == 0
    assert "label agreement" in capsys.readouterr().out
    assert before == (sha256_of(place / "mide_net" / GRAPH_FILE), sha256_of(place / "mide_net" / "bundle.yaml"))
    bundle = load_bundle(tmp_path / "small")
    parent = load_bundle(place / "mide_net")
    assert bundle.contract.precision == "int8" and bundle.contract.outputs == parent.contract.outputs
    drift = bundle.contract.compression["drift"]
    assert drift["frames"] + drift["calibration_frames"] == 12 and drift["accepted"] is True
    assert 0.5 < drift["label_agreement"] < 1
    assert (tmp_path / "small" / GRAPH_FILE).stat().st_size < 0.7 * parent.graph_path.stat().st_size
    # The backend cuts unused scores off the file, which needs its nodes in order.
    detector = open_detector(bundle)
    assert set(detector.detect(street_frames(1)[0], ["void"]).scores) == {"void"}
    assert main(["quantize", str(tmp_path / "small"), *arguments(place, tmp_path / "again")[2:]]) == 1
    assert "int8 already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--percentile", "3"), "`percentile` 3"),
        (("--label-agreement", "97"), "--label-agreement 97"),
        (("--label-agreement", "nan"), "--label-agreement nan"),
        (("--max-auprc", "nan"), "--max-auprc nan"),
        (("--max-fpr95", "inf"), "--max-fpr95 inf"),
        (("--max-miou", "-1"), "--max-miou -1"),
        (("--frames", "synthetic=3:20", "--dataset", "synthetic=3:20"), "frames to calibrate on"),
        (("--calibration-frames", "0"), "at least 1"),
        (("--keep-float", "conv_9"), "no layer 'conv_9'"),
        (("--weight-bits", "8", "--backend", "torch"), "--weight-bits"),
        (("--calibration-frames", "4"), "--allow-few"),
        (("--frames", "nowhere"), "nowhere"),
        (("--dataset", "nothing"), "NAME=PATH"),
    ],
)
def test_wrong_values_are_errors(
    more: tuple[str, ...], words: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(place, tmp_path / "small", *more)) == 1
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "small").exists()


def test_source_as_output_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(place, place / "mide_net", "--overwrite")) == 1
    assert "never changed" in capsys.readouterr().err


def test_existing_output_needs_overwrite(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    assert main(arguments(place, tmp_path / "there")) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.fixture(scope="module")
def with_checkpoint(place: Path) -> tuple[Path, Path]:
    """A bundle of a network, and its checkpoint."""
    import torch

    from anomseg_ros.core.bundle import Provenance
    from anomseg_ros.export import ExportConfig, export_network
    from anomseg_ros.networks import build_network
    from anomseg_ros.networks.checkpoints import save_checkpoint

    torch.manual_seed(0)
    network = build_network("mide_net", 20).eval()
    path = place / "weights.safetensors"
    save_checkpoint(path, network, {})
    config = ExportConfig("known", 20, 19, height_px=64, width_px=128, scores=("void", "max_logit"))
    export_network(network, "mide_net", config, place / "known", Provenance(path.name, sha256_of(path)))
    return place / "known", path


def of_checkpoint(place: Path, parent: Path, output: Path, *more: str) -> list[str]:
    return ["quantize", str(parent), *arguments(place, output, *more)[2:]]


@pytest.mark.slow
def test_checkpoint_is_fine_tuned_and_quantized_for_torch(
    place: Path, with_checkpoint: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, weights = with_checkpoint
    more: tuple[str, ...] = (
        "--backend",
        "torch",
        "--checkpoint",
        str(weights),
        "--calibration",
        "minmax",
        "--no-compile",
    )
    more += ("--fine-tune-steps", "2", "--accept-drift", "--threads", "1")
    assert main(of_checkpoint(place, parent, tmp_path / "new", *more)) == 0, capsys.readouterr().err
    bundle = load_bundle(tmp_path / "new")
    assert set(bundle.contract.files) == {"model.pt2", "checkpoint.safetensors"}
    assert bundle.contract.compression["settings"]["fine_tuning"]["steps"] == 2
    assert bundle.contract.provenance.source_sha256 == sha256_of(tmp_path / "new" / "checkpoint.safetensors")
    assert bundle.contract.compression["drift"]["label_agreement"] > 0.5
    frames, out = str(place / "frames"), str(tmp_path / "out")
    eager = ("--backend", "torch", "--provider", "eager")
    assert main(["run", str(tmp_path / "new"), frames, "--output", out, *eager]) == 0
    assert main(["run", str(tmp_path / "new"), frames, "--output", out]) == 1
    assert "--backend torch" in capsys.readouterr().err
    bench = ["bench", str(tmp_path / "new"), "--backend", "torch", "--provider", "eager", "--threads", "1"]
    assert main([*bench, "--rounds", "3", "--json", str(tmp_path / "b.json")]) == 0, capsys.readouterr().err
    assert '"parameters": null' in (tmp_path / "b.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--backend", "torch"), "give `checkpoint`"),
        (("--fine-tune-steps", "5"), "give `checkpoint`"),
        (("--fine-tune-steps", "-1", "--checkpoint", "WEIGHTS"), "--fine-tune-steps -1"),
        (("--backend", "torch", "--checkpoint", "nowhere.pth"), "nowhere.pth does not exist"),
        (("--backend", "torch", "--checkpoint", "WEIGHTS", "--no-equalize"), "--no-equalize"),
        (("--backend", "torch", "--checkpoint", "WEIGHTS", "--calibration", "entropy"), "--calibration entropy"),
        (("--torch-method", "fx"), "--backend torch"),
    ],
)
def test_wrong_values_with_checkpoint_are_errors(
    more: tuple[str, ...],
    words: str,
    place: Path,
    with_checkpoint: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parent, weights = with_checkpoint
    given = [word.replace("WEIGHTS", str(weights)) for word in more]
    assert main(of_checkpoint(place, parent, tmp_path / "new", *given)) == 1
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_checkpoint_of_other_bundle_is_refused(
    place: Path, with_checkpoint: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(with_checkpoint[1].read_bytes() + b" ")
    more: tuple[str, ...] = ("--backend", "torch", "--checkpoint", str(other))
    assert main(of_checkpoint(place, with_checkpoint[0], tmp_path / "new", *more)) == 1
    assert "is not what bundle" in capsys.readouterr().err


@pytest.mark.slow
def test_published_network_is_quantized_for_tensorrt_within_the_tolerance(
    shared_weights: Path, shared_data: Path, tmp_path: Path
) -> None:
    """MiDE-Net loses most of all networks: without float layers, every tenth label changes."""
    config = ExportConfig("mide", 20, 19, height_px=128, width_px=256, scores=("void", "max_logit"), target="gpu")
    export_checkpoint("mide_net", shared_weights / "midenet_distilled.pth", config, tmp_path / "mide")
    words = ["quantize", str(tmp_path / "mide"), "--target", "tensorrt", "--output", str(tmp_path / "int8")]
    frames = f"camvid={shared_data / 'CamVid'}:val"
    assert main([*words, "--frames", frames, "--allow-few", "--held-out-frames", "8"]) == 0
    record = load_bundle(tmp_path / "int8").contract.compression
    assert record["drift"]["label_agreement"] >= 0.97
    assert all(score["rank_correlation"] >= 0.98 for score in record["drift"]["scores"].values())
    assert record["settings"]["float_layers"]
