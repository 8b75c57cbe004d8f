"""Where torch runs programs. There is no GPU here: errors, the copies around a run, and what is moved to a device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from painted_frames import street
from painted_program import write_painted_program

from anomseg_ros.backends import open_backend, torch_device
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.torch_device import Cpu, Gpu
from anomseg_ros.backends.torch_graph import cut, load_graph
from anomseg_ros.core.bundle import TORCH_FILE, Bundle, Provenance, save_bundle
from anomseg_ros.errors import BackendError
from anomseg_ros.export import ExportConfig, contract_of, write_program
from anomseg_ros.networks import build_network

FRAME = street()[0][np.newaxis]


@pytest.fixture(scope="module")
def bundle(painted: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_painted_program(painted, tmp_path_factory.mktemp("program") / "painted")


def without_cuda(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.version, "cuda", None)


def without_driver(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.version, "cuda", "13.0")
    patch.setattr(torch.cuda, "is_available", lambda: False)


def with_one_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.version, "cuda", "13.0")
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.parametrize("provider", ["cuda", "cuda-aot"])
@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (without_cuda, r"torch .* was built without CUDA: install the build .*or use the provider cpu"),
        (without_driver, r"finds no GPU: there is no driver for CUDA 13\.0, or it is too old; install the driver"),
        (with_one_gpu, r"there is no GPU 3; expected a device of 0 to 0"),
    ],
)
def test_missing_gpu_error_says_what_to_do(
    provider: str,
    machine: Callable[[pytest.MonkeyPatch], None],
    message: str,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch)
    with pytest.raises(BackendError, match=message):
        open_backend("torch", bundle, BackendOptions(provider=provider, device=3))


def test_fallback_takes_over_without_a_gpu(painted: Bundle, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    without_driver(monkeypatch)
    options = BackendOptions(provider="cuda", fallback_backend="onnxruntime")
    files = {name: one.directory / name for one in (painted, bundle) for name in one.contract.files}
    both = save_bundle(painted.contract, files, bundle.directory.with_name("both"))
    backend = open_backend("torch", both, options)
    assert (backend.requested, backend.actual) == ("torch:cuda", "onnxruntime:cpu")


def gpu_of_the_processor(patch: pytest.MonkeyPatch, captures: bool) -> Gpu:
    """Return a Gpu whose memory is the processor's."""
    gpu = Gpu.__new__(Gpu)
    gpu.device, gpu.name, gpu.compute_capability, gpu.multiprocessors = torch.device("cpu"), "Fake", "9.0", 132
    patch.setattr(gpu, "entered", nullcontext)

    def captured(call: Callable[[], Any]) -> Callable[[], Any]:
        if not captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = call()

        def replay() -> Any:  # into the same memory, as a CUDA graph does
            for target, source in zip(outputs, call(), strict=True):
                target.copy_(source)
            return outputs

        return replay

    patch.setattr(torch_device, "captured", captured)
    return gpu


@pytest.mark.parametrize(("captures", "fact"), [(True, "yes"), (False, "no: operation not permitted when stream")])
def test_frames_are_copied_around_a_run(
    captures: bool, fact: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = gpu_of_the_processor(monkeypatch, captures)
    program = cut(load_graph(bundle, torch.device("cpu")), [0, 1])
    run, expected = (place.prepared(program, FRAME.shape) for place in (gpu, Cpu()))
    with torch.no_grad():
        first = run(FRAME)
        for one, two in zip(first, expected(FRAME), strict=True):
            assert torch.equal(one, two)
        kept = [output.clone() for output in first]
        assert not torch.equal(run(255 - FRAME)[0], kept[0])
    assert all(map(torch.equal, first, kept))  # the next frame does not overwrite them
    assert gpu.facts()["cuda_graph"].startswith(fact)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "void_class"), [("mide_net", 19), ("mide_net", 7)])
def test_moved_program_leaves_nothing_on_the_processor(name: str, void_class: int, tmp_path: Path) -> None:
    """torch's device without memory stands for a GPU: operators refuse tensors of two devices."""
    config = ExportConfig(name, 20, void_class, height_px=32, width_px=64, scores=("void", "msp"), target="gpu")
    path = write_program(build_network(name, 20).eval(), config, tmp_path)
    bundle = save_bundle(contract_of(name, config, Provenance()), {TORCH_FILE: path}, tmp_path / "bundle")
    graph = cut(load_graph(bundle, torch.device("meta")), [0, 1, 2])
    tensors = [
        *graph.parameters(),
        *graph.buffers(),
        *graph(torch.zeros((1, 32, 64, 3), dtype=torch.uint8, device="meta")),
    ]
    assert len(tensors) > 3 and all(tensor.is_meta for tensor in tensors)


def test_processor_is_named() -> None:
    assert Cpu().facts()["processor"].endswith(f"({torch.backends.cpu.get_cpu_capability()})")
