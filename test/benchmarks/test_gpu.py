"""benchmarks/gpu.py on the processor: the whole script at a tiny size, its budget, and the parts that a GPU needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu
import gpu_device
import gpu_graphs
import gpu_table
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anomseg_ros.compression.drift import rank_correlation
from anomseg_ros.export import DetectorGraph
from anomseg_ros.networks import build_network

SIZE = (64, 128)
TINY = ["--device", "cpu", "--size", "64x128", "--runs", "2", "--warm-up", "1", "--compile-backend", "eager"]


class FakeGpu(gpu_device.Device):
    """Its graphs run on the processor and write their outputs in place, as captured ones do."""

    has_graphs = True

    def capture(self, call: gpu_device.Call) -> gpu_device.Call:
        outputs = call()

        def replay() -> tuple[torch.Tensor, ...]:
            for old, new in zip(outputs, call(), strict=True):
                old.copy_(new)
            return outputs

        return replay

    def device_ms(self, marks: Sequence[Any]) -> dict[str, float] | str:
        return dict.fromkeys(("p50", "p99"), 0.25)


def run(output: Path, *words: str) -> dict[str, Any]:
    gpu.main([*TINY, "--output", str(output), *words])
    return json.loads(output.read_text())


def forms_of(result: dict[str, Any]) -> list[tuple[str, str, bool]]:
    return [(row["precision"], row["form"], row["copies"]) for row in result["runs"]]


def test_eager_run_has_exact_float32_and_names_what_a_processor_lacks(tmp_path: Path) -> None:
    words = ["--networks", "mide_net", "--precisions", "fp32", "bf16", "--kinds", "ceilings", "eager"]
    found = run(tmp_path / "gpu.json", *words)
    assert forms_of(found) == [(kind, "eager", copies) for kind in ("fp32", "bf16") for copies in (False, True)]
    assert found["failed"] == [] and found["left_out"] == [] and found["targets"] == []
    assert "CUDA graphs" in found["not_on_this_device"] and found["machine"]["cores"] >= 1
    assert set(found["ceilings"]["matmul_tflops"]) == {"fp32", "bf16"} and found["ceilings"]["copy_gb_per_s"] > 0
    assert set(found["times_as_fast_as_eager_fp32"]["mide_net 64x128"]) == {"fp32 eager", "bf16 eager"}
    for row in found["runs"]:
        assert row["runs"] == 2 and 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
        assert row["device_ms"] == row["peak_mib"] == "not on this device"
        assert row["frames_per_second"] > 0 and row["share_of_ceiling"] > 0 and row["weights"]
        parity = row["parity"]
        if row["precision"] == "fp32":
            assert parity["label_agreement"] == 1 and parity["max_difference"] == 0
            assert parity["rank_correlation"] == pytest.approx(1)
        else:
            assert 0.8 < parity["label_agreement"] < 1 and 0.98 < parity["rank_correlation"] < 1


@pytest.mark.slow
def test_compiled_forms_and_graphs_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "open_device", lambda name: FakeGpu())
    found = run(tmp_path / "gpu.json", "--networks", "mide_net", "--precisions", "fp32")
    kinds = ("eager", "compile")
    forms = [
        (kind + more, copies) for kind in kinds for more, copies in (("", False), ("+graph", False), ("+graph", True))
    ]
    assert forms_of(found) == [("fp32", form, copies) for form, copies in forms]
    assert all(row["parity"]["max_difference"] == 0 for row in found["runs"])
    assert all(row["compile_s"] > 0 for row in found["runs"] if row["form"].startswith("compile"))
    assert found["not_on_this_device"] == [] and {target["met"] for target in found["targets"]} == {None}
    assert set(found["argmax"]["64x128"]) == {
        f"{labels} {kind}{more}" for labels in ("argmax", "comparisons") for kind in kinds for more in ("", "+graph")
    }


def test_without_time_everything_is_named_as_left_out(tmp_path: Path) -> None:
    found = run(tmp_path / "gpu.json", "--seconds", "0")
    assert found["runs"] == [] and found["ceilings"] == {} and len(found["left_out"]) == 1 + 15 + 1 + 15
    assert found["left_out"][:3] == ["ceilings", "erfnet 64x128 fp32 eager", "enet 64x128 fp32 eager"]
    assert found["left_out"][16:18] == ["64x128 argmax", "erfnet 64x128 fp32 compile"]


def test_a_gpu_compiles_float16_first_after_everything_was_eager() -> None:
    titles = [step.title for step in gpu.plan(gpu.parse(TINY), on_gpu=True)]
    assert titles[1] == "erfnet 64x128 fp32 eager" and titles[6] == "erfnet 64x128 fp16 eager"
    assert titles[16:18] == ["64x128 argmax", "erfnet 64x128 fp16 compile"]


class Minutes(gpu.Benchmark):
    """Each step takes 50 seconds of a clock that stands still otherwise; BiSeNet v1 fails."""

    now_s = 0.0

    def _measure_network(self, step: gpu.Step) -> None:
        Minutes.now_s += 50
        if step.network == "bisenet_v1":
            raise RuntimeError("out of memory")


def test_budget_keeps_what_fits_and_a_failed_step_does_not_stop_the_others(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    words = [*TINY, "--seconds", "170", "--precisions", "fp16", "--kinds", "eager", "--output", str(output)]
    Minutes(gpu.parse(words), gpu_device.Device(), lambda: Minutes.now_s).run()
    found = json.loads(output.read_text())
    assert found["left_out"] == [f"{name} 64x128 fp16 eager" for name in ("bisenet_v2", "mide_net")]
    assert found["failed"] == [{"step": "bisenet_v1 64x128 fp16 eager", "error": "RuntimeError: out of memory"}]
    assert found["elapsed_s"] == 150


def test_half_precision_is_folded_and_the_network_stays_where_it_is() -> None:
    network = gpu_graphs.settled(build_network("enet", gpu_graphs.NUM_CLASSES))
    config = gpu_graphs.config_of("enet", SIZE)
    image = torch.randint(0, 256, (1, *SIZE, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = DetectorGraph(network, config).eval()(image)
        folded = DetectorGraph(gpu_graphs.folded(network), config).eval()(image)
    assert torch.allclose(expected[1], folded[1], atol=1e-4)
    for dtype in gpu_graphs.PRECISIONS.values():
        graph = gpu_graphs.TypedGraph(network, config, dtype)
        norms = [module for module in graph.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert (len(norms) == 1) == (dtype != torch.float32)
        assert next(graph.network.parameters()).dtype == dtype and norms[0].weight.dtype == torch.float32
        graph.to("meta")
        assert next(network.parameters()).device.type == "cpu"


class HostTensors(TorchDispatchMode):
    """Notes the operators that read or write a tensor on the processor."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        if any(isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" for leaf in leaves):
            self.operators.append(str(func))
        return result


@pytest.mark.parametrize("name", gpu.NETWORKS)
def test_no_tensor_is_on_the_host_so_that_a_cuda_graph_can_be_captured(name: str) -> None:
    network, config = build_network(name, gpu_graphs.NUM_CLASSES).eval(), gpu_graphs.config_of(name, SIZE)
    image = torch.empty((1, *SIZE, 3), dtype=torch.uint8, device="meta")
    for dtype in gpu_graphs.PRECISIONS.values():
        graph = gpu_graphs.TypedGraph(network, config, dtype).eval().to("meta")
        with torch.no_grad(), HostTensors() as found:
            labels, score = graph(image)
        assert found.operators == [] and (labels.dtype, score.dtype) == (torch.uint8, torch.float32)


def test_labels_by_comparisons_take_the_first_of_equal_logits() -> None:
    logits = torch.randint(0, 4, (1, 20, 16, 16)).float()
    assert torch.equal(gpu_graphs.labels_by_comparisons(logits)[0], gpu_graphs.labels_by_argmax(logits)[0])


def test_rank_correlation_is_that_of_the_drift() -> None:
    first, second = np.random.default_rng(0).integers(0, 50, (2, 1000)).astype(np.float32)
    assert gpu_graphs.rank_correlation(first, second) == rank_correlation(first, second)


def test_work_is_that_of_the_paper_and_floor_the_larger_bound() -> None:
    work = gpu_graphs.work_of(build_network("erfnet", 20).eval(), (512, 1024))
    assert work["multiply_adds"] / 1e9 == pytest.approx(26.61, abs=0.01)
    assert work["convolution_values"] / 1e6 == pytest.approx(248, abs=1)
    ceilings = {"matmul_tflops": {"fp16": 800.0}, "copy_gb_per_s": 3000.0}
    assert gpu_graphs.floor_ms(work, "fp16", ceilings) == pytest.approx(0.165, abs=0.001)


def row(precision: str, form: str, latency_ms: float, device_ms: float, copies: bool = False) -> dict[str, Any]:
    times = {"latency_ms": {"p50": latency_ms, "p99": latency_ms}, "device_ms": {"p50": device_ms, "p99": device_ms}}
    return {"network": "erfnet", "size": "512x1024", "precision": precision, "form": form, "copies": copies, **times}


def test_targets_take_the_fastest_form() -> None:
    rows = [
        row("fp32", "eager", 4.0, 3.9),
        row("fp32", "compile+graph", 2.0, 1.9),
        row("fp16", "eager+graph", 0.8, 0.7),
        row("fp16", "compile+graph", 0.5, 0.4),
        row("fp16", "compile+graph", 1.1, 0.6, copies=True),
    ]
    met = [(target["found"], target["met"]) for target in gpu_table.targets(rows, ["erfnet"])]
    assert met == [(0.4, True), (1.1, False), (1.0, True), (2.0, False), (8.0, True)]


def test_without_a_gpu_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="sees no CUDA device"):
        gpu_device.open_device("cuda")
    assert type(gpu_device.open_device("auto")) is gpu_device.Device


@pytest.mark.slow
def test_every_network_runs_in_every_precision(tmp_path: Path) -> None:
    found = run(tmp_path / "gpu.json", "--kinds", "eager")
    assert len(found["runs"]) == 5 * 3 * 2 and found["failed"] == []
    assert {row["network"] for row in found["runs"]} == set(gpu.NETWORKS)
