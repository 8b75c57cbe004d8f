"""A bundle with a torch program of the network in tiny_bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_tensorrt_runtime import FakeRuntime, install

from anomseg_ros.core.bundle import TORCH_FILE, Bundle, load_bundle, save_bundle


@pytest.fixture(scope="session")
def torch_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The network of the tiny bundle as a float torch program, without a graph."""
    from fitted_networks import float_program

    from anomseg_ros.compression.reexport import export_config_of

    contract, folder = load_bundle(tiny_bundle).contract, tmp_path_factory.mktemp("torch")
    path = float_program(export_config_of(contract), folder / TORCH_FILE)
    return save_bundle(contract, {TORCH_FILE: path}, folder / "bundle")


@pytest.fixture()
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture()
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache of engines that is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "anomseg_ros" / "tensorrt"


@pytest.fixture()
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """TensorRT and CUDA with one GPU."""
    return install(monkeypatch)
