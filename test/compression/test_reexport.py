"""Exporting the checkpoint of a bundle again at another size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from anomseg_ros.backends import open_detector
from anomseg_ros.compression.reexport import export_at_size, export_config_of
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.errors import CheckpointError
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    folder = tmp_path_factory.mktemp("reexport")
    torch.manual_seed(3)
    save_checkpoint(folder / "c.safetensors", build_network("mide_net", 20).eval(), {})
    config = ExportConfig("small", 20, 19, height_px=64, width_px=96, temperature=1.5, resize="area")
    bundle, _ = export_checkpoint("mide_net", folder / "c.safetensors", config, folder / "small")
    return bundle, folder / "c.safetensors"


def test_export_configuration_is_read_from_the_contract(exported: tuple[Bundle, Path]) -> None:
    config = export_config_of(exported[0].contract)
    assert (config.height_px, config.width_px, config.temperature, config.resize) == (64, 96, 1.5, "area")
    assert config.score_names() == exported[0].contract.score_names


@pytest.mark.slow
def test_checkpoint_is_exported_at_another_size(exported: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, checkpoint = exported
    before = sorted(path.read_bytes() for path in bundle.directory.iterdir())
    made = export_at_size(bundle, checkpoint, 32, 64, tmp_path / "half")
    spec = load_bundle(tmp_path / "half").contract.input
    assert (spec.height_px, spec.width_px, spec.resize) == (32, 64, "area")
    assert made.contract.name == "small-32x64" and made.contract.temperature == 1.5
    assert open_detector(made).detect(np.zeros((64, 96, 3), np.uint8)).labels.shape == (32, 64)
    assert sorted(path.read_bytes() for path in bundle.directory.iterdir()) == before


def test_checkpoint_of_another_bundle_is_refused(exported: tuple[Bundle, Path], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.safetensors", build_network("mide_net", 20).eval(), {})
    with pytest.raises(CheckpointError, match="is not what bundle 'small' was exported from"):
        export_at_size(exported[0], tmp_path / "other.safetensors", 32, 64, tmp_path / "half")
    with pytest.raises(CheckpointError, match="does not exist"):
        export_at_size(exported[0], tmp_path / "none.safetensors", 32, 64, tmp_path / "half")
    assert not (tmp_path / "half").exists()
