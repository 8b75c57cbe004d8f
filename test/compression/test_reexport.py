"""Exporting the checkpoint of a bundle again: at another size, or with another temperature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.compression.reexport import export_again, export_at_size, export_config_of, load_float_network
from anomseg_ros.core.bundle import GRAPH_FILE, TORCH_FILE, Bundle, change_bundle, load_bundle
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_program_of_torch_is_written_again_with_the_graph(exported: tuple[Bundle, Path], tmp_path: Path) -> None:
    checkpoint, config = exported[1], replace(export_config_of(exported[0].contract), torch_program=True)
    bundle, _ = export_checkpoint("mide_net", checkpoint, config, tmp_path / "both")
    network = load_float_network(bundle, checkpoint, "temperature")
    warmer = replace(export_config_of(bundle.contract), temperature=3.0)
    made = export_again(bundle, network, warmer, lambda contract: replace(contract, temperature=3.0), None)
    assert set(made.contract.files) == {GRAPH_FILE, TORCH_FILE}
    assert all(made.contract.files[name] != digest for name, digest in bundle.contract.files.items())
    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    one, two = (open_detector(made, *how).detect(frame) for how in ((), ("torch", BackendOptions(provider="eager"))))
    assert (one.labels == two.labels).mean() > 0.999
    for name, score in one.scores.items():
        np.testing.assert_allclose(two.scores[name], score, atol=1e-4)
    assert np.abs(one.scores["msp"] - open_detector(exported[0]).detect(frame).scores["msp"]).max() > 1e-3
    assert set(change_bundle(made, replace, tmp_path / "copy").contract.files) == {GRAPH_FILE, TORCH_FILE}


@pytest.mark.slow
def test_checkpoint_of_another_bundle_is_refused(exported: tuple[Bundle, Path], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.safetensors", build_network("mide_net", 20).eval(), {})
    with pytest.raises(CheckpointError, match="is not what bundle 'small' was exported from"):
        export_at_size(exported[0], tmp_path / "other.safetensors", 32, 64, tmp_path / "half")
    with pytest.raises(CheckpointError, match="does not exist"):
        export_at_size(exported[0], tmp_path / "none.safetensors", 32, 64, tmp_path / "half")
    assert not (tmp_path / "half").exists()
