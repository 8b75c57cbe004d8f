"""The whole way of a mask transformer: LoRA with ArcFace, export of the adapter, figures, int8, fp16, bag, node.

One small EoMT goes through the commands as a user types them. Its figures are not good after two epochs, so the drift
guard reports without refusing.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_imports import ROS, TORCH, run_without
from tiny_runs import write_config, write_frames

from anomseg_ros import cli
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint

pytest.importorskip("peft", reason="the extra `heavy` is not installed")

SMALL = {"width": 64, "depth": 2, "query_blocks": 1, "queries": 12, "grid": [2, 3]}
SCORES = "mask_void,rba,mask_max_logit,max_logit"


def command(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0, words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with LoRA, ArcFace and pasted objects on a base; export the adapter on this base."""
    root = tmp_path_factory.mktemp("eomt")
    data = write_frames(root / "data")
    torch.manual_seed(0)
    save_checkpoint(root / "base.safetensors", build_network("eomt", 11, **SMALL), {})
    config = write_config(
        root / "tiny.yaml",
        data,
        objective="masks",
        network={
            "name": "eomt",
            "options": {**SMALL, "cosine_scale": 30.0},
            "initial": {"checkpoint": str(root / "base.safetensors"), "part": "features"},
        },
        data={
            "void": "outliers",
            "cut_paste": {"probability": 1.0, "paste": {"min_area_px": 20, "scale": [0.05, 0.3]}},
        },
        loss={"points": 64, "class_loss": "arcface", "lora": {"rank": 2}},
        run={"epochs": 2},
    )
    command("train", config, "--output", root / "run", "--no-bundle")
    words = ["--label-set", "camvid", "--num-classes", 12, "--void-class", 11, "--height", 32, "--width", 48]
    adapter = ["--adapter", root / "run" / "last.adapter.safetensors", "--scores", SCORES]
    command(
        *("export", "--network", "eomt", "--checkpoint", root / "base.safetensors"),
        *(*words, *adapter, "--output", root / "fp32"),
    )
    return root


@pytest.mark.slow
def test_adapter_becomes_a_bundle_that_runs_without_torch(place: Path) -> None:
    assert (place / "run" / "last.adapter.safetensors").stat().st_size < (place / "base.safetensors").stat().st_size
    assert load_bundle(place / "fp32").contract.score_names == tuple(SCORES.split(","))
    image = place / "data" / "val" / "000.png"
    done = run_without(TORCH | ROS, ["run", str(place / "fp32"), str(image), "--output", str(place / "ran")])
    assert done.returncode == 0, done.stderr
    assert (place / "ran" / "000_labels.png").is_file()


@pytest.mark.slow
def test_figures_and_thresholds_are_measured(place: Path) -> None:
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
    command("calibrate", "threshold", place / "fp32", *dataset)
    assert load_bundle(place / "fp32").contract.thresholds["mask_void"]


@pytest.mark.slow
def test_smaller_forms_are_made_and_timed(place: Path) -> None:
    frames = ["--frames", place / "data" / "train", "--accept-drift", "--held-out-frames", 2, "--threads", 1]
    command("quantize", place / "fp32", *frames, "--calibration-frames", 3, "--allow-few", "--output", place / "int8")
    command("convert", place / "fp32", *frames, "--precision", "fp16", "--output", place / "fp16")
    int8, half = (load_bundle(place / name).contract for name in ("int8", "fp16"))
    assert "layers in float" in str(int8.compression) and half.precision == "fp16"
    command("bench", place / "fp32", place / "int8", "--rounds", 3, "--threads", 1)
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        command("build", place / "fp16", "--check", "--outputs", "all")


@pytest.mark.slow
def test_bag_is_measured(place: Path) -> None:
    command("bag", "write", "--dataset", f"camvid={place / 'data'}", "--output", place / "bag")
    command("bag", "evaluate", place / "fp32", place / "bag", "--score", "mask_void", "--json", place / "bag.json")
    assert "mask_void" in (place / "bag.json").read_text()


@pytest.mark.slow
def test_node_publishes_its_outputs(place: Path) -> None:
    pytest.importorskip("rclpy", reason="ROS is not installed")
    from builtin_interfaces.msg import Time
    from std_msgs.msg import Header

    from anomseg_ros.backends import open_detector
    from anomseg_ros.node import pipeline
    from anomseg_ros.node.conversions import image_from_array
    from anomseg_ros.node.parameters import PARAMETERS, live_parameters

    detector = open_detector(place / "fp32")
    live = live_parameters({parameter.name: parameter.default for parameter in PARAMETERS})
    frames = pipeline.FramePipeline(detector, pipeline.resolve(live, detector.bundle), None)
    frame = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    message = image_from_array(frame, "rgb8", Header(stamp=Time(sec=1), frame_id="front"))
    published = frames.process(message, (pipeline.LABELS, pipeline.SCORE)).messages
    outputs = detector.detect(frame)
    score = np.frombuffer(published[pipeline.SCORE].data, np.float32).reshape(32, 48)
    assert (score == outputs.scores["mask_void"]).all()
    assert (np.frombuffer(published[pipeline.LABELS].data, np.uint8).reshape(32, 48) == outputs.labels).all()
