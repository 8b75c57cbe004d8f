"""The torch backend: outputs and reported engine. test_torch_archive.py tests the files that it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitted_networks import fit_on_noise

from anomseg_ros.backends import open_backend, open_detector
from anomseg_ros.backends import torch as torch_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.torch_graph import cut
from anomseg_ros.compression.reexport import export_config_of
from anomseg_ros.core.bundle import CONTRACT_FILE, GRAPH_FILE, TORCH_FILE, Bundle, load_bundle, save_bundle, sha256_of
from anomseg_ros.errors import BackendError, BundleError
from anomseg_ros.networks import build_network
from anomseg_ros.networks.torch_program import save_program

pytestmark = pytest.mark.slow

EAGER = BackendOptions(provider="eager")


def test_program_equals_the_graph(tiny_bundle: Path, torch_bundle: Bundle) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    one, two = open_detector(tiny_bundle).detect(frame), open_detector(torch_bundle, "torch", EAGER).detect(frame)
    assert (one.labels == two.labels).mean() > 0.999
    for name, score in one.scores.items():
        np.testing.assert_allclose(two.scores[name], score, atol=1e-3)


def test_error_names_the_backend_that_can_run_the_bundle(tiny_bundle: Path, torch_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has no model\.onnx: run it with --backend torch"):
        open_backend("onnxruntime", torch_bundle)
    with pytest.raises(BundleError, match=r"has no model\.pt2: run it with --backend onnxruntime"):
        open_backend("torch", load_bundle(tiny_bundle))


def test_program_digest_identifies_the_bundle(tiny_bundle: Path, torch_bundle: Bundle) -> None:
    assert torch_bundle.contract.program_sha256 == sha256_of(torch_bundle.directory / TORCH_FILE)
    assert load_bundle(tiny_bundle).contract.program_sha256 == sha256_of(tiny_bundle / GRAPH_FILE)


def test_missing_compiler_falls_back_to_eager_and_is_reported(
    torch_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_backend, "compiler_works", lambda: False)
    detector = open_detector(torch_bundle, "torch")
    assert detector.backend.requested == "torch:inductor"
    assert detector.backend.actual == "torch:eager (no C++ compiler)"
    assert detector.detect(np.zeros((64, 128, 3), np.uint8)).labels is not None


def test_unknown_provider_is_refused(torch_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"unknown torch provider 'gpu'; known: .*eager"):
        open_backend("torch", torch_bundle, BackendOptions(provider="gpu"))


def test_program_of_another_size_is_refused(torch_bundle: Bundle, tmp_path: Path) -> None:
    wrong = replace(torch_bundle.contract, input=replace(torch_bundle.contract.input, height_px=65))
    bundle = save_bundle(wrong, {TORCH_FILE: torch_bundle.directory / TORCH_FILE}, tmp_path / "wrong")
    with pytest.raises(BackendError, match=r"model\.pt2 is not the program that bundle\.yaml describes"):
        open_backend("torch", bundle, EAGER)


def test_changed_or_missing_program_is_refused(torch_bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(torch_bundle.directory, tmp_path / "copy"))
    content = (copy / TORCH_FILE).read_bytes()
    (copy / TORCH_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=r"model\.pt2 does not match its digest"):
        load_bundle(copy)
    old = torch_bundle.contract.files[TORCH_FILE]
    text = (copy / CONTRACT_FILE).read_text().replace(old, sha256_of(copy / TORCH_FILE))
    (copy / CONTRACT_FILE).write_text(text)
    with pytest.raises(BackendError, match=r"model\.pt2 cannot be loaded: .*anomseg quantize --backend torch"):
        open_backend("torch", load_bundle(copy), EAGER)
    (copy / TORCH_FILE).unlink()
    with pytest.raises(BundleError, match=r"model\.pt2 is missing"):
        load_bundle(copy)


def test_only_requested_outputs_are_computed(torch_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = []

    def watched(*given: Any) -> torch.fx.GraphModule:
        programs.append(cut(*given))
        return programs[-1]

    monkeypatch.setattr(torch_backend, "cut", watched)
    backend = open_backend("torch", torch_bundle, EAGER)
    tensor = np.zeros((1, 64, 128, 3), np.uint8)
    for outputs in (["labels", "msp"], ["msp"], ["void"]):
        backend.run(tensor, outputs)
    with_labels = [any("argmax" in str(node.target) for node in program.graph.nodes) for program in programs]
    assert with_labels == [True, False]  # the second run takes the first program


@pytest.mark.slow
def test_compiled_int8_equals_eager_and_uses_int8_kernels(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from small_bundles import street_frames

    from anomseg_ros.compression.quantize_torch import TorchQuantizeConfig, quantize_torch

    if not torch_backend.compiler_works():
        pytest.skip("torch finds no C++ compiler here")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    contract = load_bundle(tiny_bundle).contract
    torch.manual_seed(0)
    network = build_network("mide_net", 20).eval()
    fit_on_noise(network, export_config_of(contract))
    frames = street_frames(3)
    tensors = [frame[np.newaxis] for frame in frames]
    config = TorchQuantizeConfig("fx")
    made = quantize_torch(network, export_config_of(contract), tensors[:2], config, lambda what, done, total: None)
    path = save_program(made.program, tmp_path / TORCH_FILE)
    bundle = save_bundle(contract, {TORCH_FILE: path}, tmp_path / "bundle")
    compiled = open_detector(bundle, "torch", BackendOptions(threads=1))
    assert compiled.backend.actual == compiled.backend.requested == "torch:inductor"
    one = compiled.detect(frames[2], ["void"])
    two = open_detector(bundle, "torch", BackendOptions(threads=1, provider="eager")).detect(frames[2], ["void"])
    assert (one.labels == two.labels).mean() > 0.99
    np.testing.assert_allclose(one.scores["void"], two.scores["void"], atol=1e-2)
    written = "".join(file.read_text() for file in (tmp_path / "cache").rglob("*.py"))
    assert "onednn.qconv" in written
