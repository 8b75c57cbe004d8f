"""What benchmarks/gpu.py asks of the device: timing, CUDA graphs, page-locked copies, memory and measured ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anomseg_ros.backends.torch_device import captured
from anomseg_ros.bench.statistics import percentiles

NOT_HERE = "not on this device"
LEAST_RUNS = 10
"""Runs of a measurement that leaves little time, unless fewer are wanted."""

Call = Callable[[], tuple[Tensor, ...]]


class Device:
    """A processor. It has neither CUDA graphs nor events, and its copies are plain ones."""

    torch_name = "cpu"
    has_graphs = False
    warm_s = 0.0
    """Shortest time of a warm-up."""
    matmul_size, copy_bytes = 256, 2**24

    def description(self) -> dict[str, Any]:
        """Return facts for the result."""
        return {"device": "cpu", "threads": torch.get_num_threads()}

    def synchronize(self) -> None:
        """Wait for all calls."""

    def host_buffer(self, like: Tensor) -> Tensor:
        """Return memory of the host for uploads or downloads of a tensor."""
        return torch.empty(like.shape, dtype=like.dtype)

    def capture(self, call: Call) -> Call:
        """Return a call that replays `call` as one CUDA graph. Its outputs are overwritten by the next replay."""
        raise NotImplementedError(NOT_HERE)

    def reset_peak(self) -> None:
        """Begin to measure the peak memory."""

    def peak_mib(self) -> float | str:
        """Return the most device memory that tensors took since `reset_peak`."""
        return NOT_HERE

    def release(self) -> None:
        """Return freed memory to the system."""

    def enqueue_timed(self, call: Call) -> Any:
        """Call, and return what `device_ms` needs for this run."""
        call()

    def device_ms(self, marks: Sequence[Any]) -> dict[str, float] | str:
        """Return percentiles of the runs' times on the device."""
        return NOT_HERE

    def measure(self, call: Call, runs: int, warm_up: int, limit_s: float) -> dict[str, Any]:
        """Return latency (host clock, waiting for each run), time on the device, and throughput without waiting.

        Args:
            call: enqueues one run.
            runs: wanted number of timed runs.
            warm_up: wanted number of runs before them.
            limit_s: time for the runs; where they take longer, there are fewer, but at least LEAST_RUNS.
        """
        call()
        once_s = self._seconds(call, 1)
        runs = _fitting(runs, limit_s, once_s)
        warmed = self._seconds(call, _fitting(warm_up, limit_s / 4, once_s))
        while warmed < self.warm_s:
            warmed += self._seconds(call, LEAST_RUNS)
        latencies_ms, marks = [], []
        for _ in range(runs):
            started = time.perf_counter()
            marks.append(self.enqueue_timed(call))
            self.synchronize()
            latencies_ms.append((time.perf_counter() - started) * 1e3)
        return {
            "runs": runs,
            "latency_ms": percentiles(latencies_ms),
            "device_ms": self.device_ms(marks),
            "frames_per_second": runs / self._seconds(call, runs),
        }

    def _seconds(self, call: Call, runs: int) -> float:
        self.synchronize()
        started = time.perf_counter()
        for _ in range(runs):
            call()
        self.synchronize()
        return time.perf_counter() - started


class CudaDevice(Device):
    """The first visible GPU. TF32 is off for the whole process."""

    torch_name = "cuda"
    has_graphs = True
    warm_s = 0.3  # an idle GPU needs some of it to raise its clocks
    matmul_size, copy_bytes = 8192, 2**31

    def __init__(self) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True

    def description(self) -> dict[str, Any]:
        found = torch.cuda.get_device_properties(0)
        return {
            "device": found.name,
            "compute_capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_gib": round(found.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": False,
        }

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def host_buffer(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def capture(self, call: Call) -> Call:
        return captured(call)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak_mib(self) -> float | str:
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)

    def release(self) -> None:
        torch.cuda.empty_cache()

    def enqueue_timed(self, call: Call) -> Any:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        return start, end

    def device_ms(self, marks: Sequence[Any]) -> dict[str, float] | str:
        return percentiles([start.elapsed_time(end) for start, end in marks])


def open_device(name: str) -> Device:
    """Return the device "cuda" or "cpu", or for "auto" the GPU where there is one. Raises SystemExit without it."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return Device()
    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device; --device cpu runs the same on the processor")
    return CudaDevice()


def best_ms(measured: dict[str, Any], percentile: str = "p50") -> float:
    """Return the time on the device where it was measured, else the latency, milliseconds."""
    times = measured["device_ms"] if isinstance(measured["device_ms"], dict) else measured["latency_ms"]
    return float(times[percentile])


def measure_ceilings(device: Device, types: dict[str, torch.dtype], limit_s: float) -> dict[str, Any]:
    """Return TFLOP/s of a large square matrix product per type, and GB/s of a large copy (bytes read and written)."""
    size, generator = device.matmul_size, torch.Generator().manual_seed(0)
    values = torch.randn((size, size), generator=generator).to(device.torch_name)
    products = {}
    for name, dtype in types.items():
        left, right = values.to(dtype), values.t().contiguous().to(dtype)
        out = torch.empty_like(left)
        measured = device.measure(lambda a=left, b=right, c=out: (torch.mm(a, b, out=c),), 20, 5, limit_s)  # type: ignore[misc]
        products[name] = 2 * size**3 / best_ms(measured) / 1e9
    source = torch.zeros(device.copy_bytes, dtype=torch.uint8, device=device.torch_name)
    target = torch.empty_like(source)
    measured = device.measure(lambda: (target.copy_(source),), 20, 5, limit_s)
    return {"matmul_tflops": products, "copy_gb_per_s": 2 * device.copy_bytes / best_ms(measured) / 1e6}


def _fitting(wanted: int, limit_s: float, once_s: float) -> int:
    """Return how many of the wanted runs fit the time."""
    return min(wanted, max(LEAST_RUNS, int(limit_s / max(once_s, 1e-6))))
