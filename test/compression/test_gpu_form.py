"""Bundles whose graph has the form for CPUs become bundles for GPUs, from their own checkpoint or a given one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from half_requests import request_of
from small_bundles import small_network, street_frames

from anomseg_ros.backends import open_detector
from anomseg_ros.cli import main
from anomseg_ros.compression.drift import Guard
from anomseg_ros.compression.half_bundle import convert_bundle
from anomseg_ros.core.bundle import CHECKPOINT_FILE, GPU, Bundle, change_bundle, load_bundle
from anomseg_ros.core.resources import find_bundle, own_checkpoint
from anomseg_ros.core.thresholds import ThresholdTable
from anomseg_ros.errors import CheckpointError, CompressionError, ConfigError
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks.checkpoints import save_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a calibrated bundle in the form for CPUs and its checkpoint beside it."""
    folder = tmp_path_factory.mktemp("place")
    save_checkpoint(folder / "net.safetensors", small_network("mide_net"), {})
    config = ExportConfig("net", 20, 19, height_px=64, width_px=128, scores=("void", "max_logit"))
    bundle, _ = export_checkpoint("mide_net", folder / "net.safetensors", config, folder / "net")
    table = {"void": ThresholdTable("frames", {0.01: 0.5})}
    change_bundle(bundle, lambda contract: replace(contract, thresholds=table))
    (folder / "net" / "README.md").write_text("a card")
    return folder


@pytest.fixture()
def parent(place: Path) -> Bundle:
    return load_bundle(place / "net")


def same_outputs(one: Bundle, other: Bundle) -> bool:
    left, right = (open_detector(bundle).detect(street_frames(1)[0]) for bundle in (one, other))
    close = all(np.allclose(left.scores[name], right.scores[name], atol=1e-5) for name in left.scores)
    assert left.labels is not None and right.labels is not None
    return close and bool((left.labels == right.labels).mean() > 0.999)


def test_only_the_form_of_a_float32_bundle_changes(place: Path, parent: Bundle, tmp_path: Path) -> None:
    words = ["convert", str(place / "net"), "--precision", "fp32", "--checkpoint", str(place / "net.safetensors")]
    assert main([*words, "--output", str(tmp_path / "gpu")]) == 0
    made = load_bundle(tmp_path / "gpu")
    assert (parent.contract.target, made.contract.target) == ("cpu", GPU)
    assert made.contract.thresholds == parent.contract.thresholds and made.contract.compression == {}
    assert (tmp_path / "gpu" / "README.md").read_text() == "a card"
    assert made.graph_path.read_bytes() != parent.graph_path.read_bytes() and same_outputs(made, parent)


def test_half_precision_takes_the_checkpoint_inside_the_bundle(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "net", tmp_path / "net")
    shutil.copy(place / "net.safetensors", tmp_path / "net" / CHECKPOINT_FILE)
    whole = load_bundle(tmp_path / "net")
    assert own_checkpoint(whole) == tmp_path / "net" / CHECKPOINT_FILE
    made = convert_bundle(request_of(tmp_path / "net", tmp_path, guard=Guard(accept_drift=True)))
    assert (made.contract.target, made.contract.precision) == (GPU, "fp16")
    assert made.contract.compression["parent"]["sha256"] == whole.contract.program_sha256


def test_checkpoint_of_a_shipped_bundle_is_found_by_its_digest() -> None:
    small = load_bundle(find_bundle("bisenet_lite-world-small"))  # the same weights at another size, without the file
    assert own_checkpoint(small) == find_bundle("bisenet_lite-world") / CHECKPOINT_FILE


def test_what_has_no_form_for_gpus_is_refused(place: Path, parent: Bundle, tmp_path: Path) -> None:
    assert own_checkpoint(parent) is None
    with pytest.raises(CompressionError, match="'net' has no checkpoint to export in the form for GPUs; give the file"):
        convert_bundle(request_of(place / "net", tmp_path, precision="fp32"))
    save_checkpoint(tmp_path / "other.safetensors", small_network("mide_net"), {"note": "another file"})
    with pytest.raises(CheckpointError, match=r"other.safetensors is not what bundle 'net' was exported from"):
        convert_bundle(request_of(place / "net", tmp_path, precision="fp32", checkpoint=tmp_path / "other.safetensors"))
    with pytest.raises(ConfigError, match="give `frames` to measure on"):
        convert_bundle(request_of(place / "net", tmp_path, frames=()))
    given = {"precision": "fp32", "checkpoint": place / "net.safetensors"}
    made = convert_bundle(request_of(place / "net", tmp_path, output=tmp_path / "gpu", **given))
    with pytest.raises(CompressionError, match="is in float32 and has the form for GPUs already"):
        convert_bundle(request_of(made.directory, tmp_path, precision="fp32"))
    assert not (tmp_path / "half").exists()
