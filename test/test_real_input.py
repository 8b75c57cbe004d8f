"""Real road frames from bags through the real node: all frames are counted, and outputs equal `anomseg run`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ros_harness import Client

from anomseg_ros.bags.read import open_bag, read_images
from anomseg_ros.cli import main
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.image_files import image_files
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.replay.process import NodeProcess, free_domain_id, local_environment

CHECKPOINTS = {"enet": "enet_560_epochs_finetuned.pth", "erfnet": "erfnet_void20_dequantized.safetensors"}
TOPIC = "/front/image"
STORAGE = {"enet": "mcap", "erfnet": "sqlite3"}
FRAMES = 15
RATE_HZ = 5
RELIABLE = [
    f"qos_overrides.{TOPIC}.subscription.reliability:=reliable",
    f"qos_overrides.{TOPIC}.subscription.depth:=30",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def frames(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for path in image_files(shared_data / "RoadObstacle21" / "images")[::2]:
        (folder / path.name).symlink_to(path)
    assert len(list(folder.iterdir())) == FRAMES
    return folder


@pytest.fixture(scope="module")
def bag(bundle: Path, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output, storage = tmp_path_factory.mktemp("bags") / "drive", STORAGE[load_bundle(bundle).contract.network]
    words = ["--images", str(frames), "--output", str(output), "--fps", str(RATE_HZ), "--storage", storage]
    assert main(["bag", "write", *words, "--image-topic", TOPIC, "--frame-id", "front_camera"]) == 0
    return output


@pytest.fixture(scope="module", params=CHECKPOINTS)
def bundle(request: pytest.FixtureRequest, shared_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = str(request.param)
    config = ExportConfig(f"{network}-void", 20, 19, height_px=256, width_px=512, scores=("void", "max_logit"))
    output = tmp_path_factory.mktemp("bundles") / config.name
    return export_checkpoint(network, shared_weights / CHECKPOINTS[network], config, output)[0].directory


@pytest.fixture(scope="module")
def expected(bundle: Path, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    assert main(["run", str(bundle), str(frames), "--output", str(output), "--score", "void"]) == 0
    return output


def test_real_frames_are_all_counted_and_equal_anomseg_run(
    bundle: Path, bag: Path, frames: Path, expected: Path, tmp_path: Path
) -> None:
    domain = free_domain_id()
    words = [word for setting in RELIABLE for word in ("-p", setting)]
    arguments = ["--bundle", str(bundle), "--image-topic", TOPIC, "--use-sim-time", "--ros-args", *words]
    with NodeProcess(domain, tmp_path / "node.log", arguments) as node:
        client = Client(domain)
        try:
            client.wait_for_node()
            play = [sys.executable, "-m", "anomseg_ros.cli", "bag", "play", str(bag), "--clock", "--wait", "30"]
            player = subprocess.Popen(play, env=local_environment(domain), stderr=subprocess.PIPE, text=True)
            assert client.spin_until(lambda: player.poll() is not None, 120)
            assert player.returncode == 0, player.stderr.read() if player.stderr else ""
            client.spin_until(lambda: client.counts()["received"] == FRAMES and _settled(client), 20)
            counts = client.counts()
        finally:
            client.close()
    assert counts["received"] == FRAMES and counts["bad"] == 0, node.log
    assert counts["published"] + counts["dropped"] == FRAMES
    assert f"waiting for images on {TOPIC} (raw, reliable)" in node.log
    labels, scores = client.messages["labels"], client.messages["anomaly/score"]
    assert counts["published"] == len(labels) == len(scores) >= 5
    _check_bits(bag, frames, expected, labels, scores)


def _settled(client: Client) -> bool:
    counts = client.counts()
    return counts["published"] + counts["dropped"] == FRAMES


def _check_bits(bag: Path, frames: Path, expected: Path, labels: list[Any], scores: list[Any]) -> None:
    with open_bag(bag) as opened:
        records = list(read_images(opened, TOPIC))
    names = dict(zip([record.stamp_ns for record in records], [path.stem for path in image_files(frames)], strict=True))
    for label, score in zip(labels, scores, strict=True):
        stamp_ns = label.header.stamp.sec * 1_000_000_000 + label.header.stamp.nanosec
        assert label.header == score.header and label.header.frame_id == "front_camera"
        name = names[stamp_ns]
        saved = cv2.imread(str(expected / f"{name}_labels.png"), cv2.IMREAD_UNCHANGED)
        assert (np.frombuffer(label.data, np.uint8).reshape(saved.shape) == saved).all(), name
        assert (
            np.frombuffer(score.data, np.float32).reshape(saved.shape) == np.load(expected / f"{name}_void.npy")
        ).all(), name
