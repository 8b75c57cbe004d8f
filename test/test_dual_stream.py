"""The whole way of dual-stream adapters: frozen encoder, stage of outliers, figures, int8, fp16, run without torch."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_imports import ROS, TORCH, run_without
from test_mask_transformer import command
from tiny_runs import write_config, write_frames

from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint

pytest.importorskip("scipy", reason="the extra `heavy` is not installed")

SMALL = {"decoder_layers": 1, "pixel_layers": 1, "queries": 8, "grid": [2, 3]}
SCORES = "mask_msp,rba"
PASTED = {"cut_paste": {"probability": 1.0, "paste": {"min_area_px": 20, "scale": [0.05, 0.3]}}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train both stages on a random encoder and export the result."""
    root = tmp_path_factory.mktemp("streams")
    data = write_frames(root / "data")
    torch.manual_seed(0)
    save_checkpoint(root / "base.safetensors", build_network("dual_stream_adapter", 11, **{**SMALL, "streams": 0}), {})
    before, part = root / "base.safetensors", "encoder"
    for name, frozen, loss, frames in (
        ("first", ["encoder"], {}, {}),
        ("second", ["encoder", "adapter"], {"stream_weight": 0.0, "contrastive_weight": 1.0}, PASTED),
    ):
        initial = {"checkpoint": str(before), "part": part}
        config = write_config(
            root / f"{name}.yaml",
            data,
            objective="dual_stream",
            network={"name": "dual_stream_adapter", "options": SMALL, "frozen": frozen, "initial": initial},
            data=frames,
            loss={"points": 64, **loss},
            run={"epochs": 2},
        )
        command("train", config, "--output", root / name, "--no-bundle")
        before, part = root / name / "last.safetensors", "all"
    words = ["--label-set", "camvid", "--num-classes", 11, "--height", 32, "--width", 48, "--scores", SCORES]
    words += ["--checkpoint", before, "--output", root / "fp32"]
    command("export", "--network", "dual_stream_adapter", *words)
    return root


@pytest.mark.slow
def test_bundle_runs_without_torch(place: Path) -> None:
    assert load_bundle(place / "fp32").contract.score_names == tuple(SCORES.split(","))
    image = place / "data" / "val" / "000.png"
    done = run_without(TORCH | ROS, ["run", str(place / "fp32"), str(image), "--output", str(place / "ran")])
    assert done.returncode == 0, done.stderr
    assert (place / "ran" / "000_labels.png").is_file()


@pytest.mark.slow
def test_figures_are_measured(place: Path) -> None:
    for number in range(2):
        frame = cv2.imread(str(place / "data" / "val" / f"{number:03d}.png"))
        mask = np.zeros(frame.shape[:2], np.uint8)
        mask[20:28, 10:20] = 1
        for folder, content in (("images", frame), ("labels_masks", mask)):
            (place / "flat" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place / "flat" / folder / f"{number}.png"), content)
    dataset = ["--dataset", f"fs_static={place / 'flat'}", "--allow-partial"]
    command("evaluate", place / "fp32", *dataset, "--protocol", "seeds", "--json", place / "figures.json")
    results = json.loads((place / "figures.json").read_text())["results"]
    assert {one["score"] for one in results} >= set(SCORES.split(","))


@pytest.mark.slow
def test_smaller_forms_are_made(place: Path) -> None:
    frames = ["--frames", place / "data" / "train", "--accept-drift", "--held-out-frames", 2, "--threads", 1]
    command("quantize", place / "fp32", *frames, "--calibration-frames", 3, "--allow-few", "--output", place / "int8")
    command("convert", place / "fp32", *frames, "--precision", "fp16", "--output", place / "fp16")
    int8, half = (load_bundle(place / name).contract for name in ("int8", "fp16"))
    assert "layers in float" in str(int8.compression) and half.precision == "fp16"
