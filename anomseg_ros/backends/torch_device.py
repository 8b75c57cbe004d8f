"""Where torch runs a program: the processor, or an NVIDIA GPU, there as a CUDA graph between two copies."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from anomseg_ros.backends.engine_cache import Hardware
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError

Tensors = tuple[torch.Tensor, ...]
Program = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""From uint8 (1, H, W, 3) on the device to outputs (1, H, W) there."""
Prepared = Callable[[RgbImage], Tensors]
"""From a frame uint8 (1, H, W, 3) to outputs (1, H, W) on the processor that the next frame does not overwrite."""

_WARM_UPS = 3
"""Runs before a capture, in which libraries allocate and choose their kernels."""


class Place(Hardware, Protocol):
    """A processor or GPU."""

    @property
    def device(self) -> torch.device: ...

    def entered(self) -> AbstractContextManager[object]:
        """Make the device the current one of this thread, for compiling."""
        ...

    def prepared(self, program: Program, shape: Sequence[int]) -> Prepared:
        """Return a program ready for frames of a shape. What it raises is torch's."""
        ...

    def facts(self) -> dict[str, str]:
        """Return what is in use, in words."""
        ...


class Cpu:
    """The processor. Compiled programs take its instruction set, whatever its number of cores."""

    device = torch.device("cpu")
    multiprocessors = 0
    integrated = False

    def __init__(self) -> None:
        self.name = _processor_name()
        self.compute_capability = torch.backends.cpu.get_cpu_capability()

    def entered(self) -> AbstractContextManager[object]:
        """See Place."""
        return nullcontext()

    def prepared(self, program: Program, shape: Sequence[int]) -> Prepared:
        """See Place."""
        return lambda tensor: tuple(program(torch.from_numpy(np.array(tensor))))

    def facts(self) -> dict[str, str]:
        """See Place."""
        return {"torch": torch.__version__, "processor": f"{self.name} ({self.compute_capability})"}


class Gpu:
    """An NVIDIA GPU. Opening it turns TF32 off for the whole process: thresholds were calibrated without."""

    def __init__(self, index: int) -> None:
        """Raises BackendError with a remedy where there is no such GPU."""
        _require_gpu(index)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        found = torch.cuda.get_device_properties(index)
        self.device = torch.device("cuda", index)
        self.name = str(found.name)
        self.compute_capability = f"{found.major}.{found.minor}"
        self.multiprocessors = int(found.multi_processor_count)
        self.integrated = bool(found.is_integrated)
        self._cuda_graph = "no program has run yet"

    def entered(self) -> AbstractContextManager[object]:
        """See Place."""
        entered: AbstractContextManager[object] = torch.cuda.device(self.device)
        return entered

    def prepared(self, program: Program, shape: Sequence[int]) -> Prepared:
        """See Place. Where the run cannot be captured, its operators are enqueued one by one."""
        image = torch.zeros(shape, dtype=torch.uint8, device=self.device)

        def call() -> Tensors:
            return tuple(program(image))

        with self.entered():
            try:
                run, self._cuda_graph = captured(call), "yes"
            except RuntimeError as error:
                run, self._cuda_graph = call, f"no: {' '.join(str(error).split())[:200]}"
            copied = _Copied(image, run)

        def on_this_gpu(tensor: RgbImage) -> Tensors:
            with self.entered():
                return copied(tensor)

        return on_this_gpu

    def facts(self) -> dict[str, str]:
        """See Place."""
        return {
            "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
            "gpu": f"{self.name} (compute {self.compute_capability}, {self.multiprocessors} multiprocessors)",
            "tf32": "no",
            "cuda_graph": self._cuda_graph,
        }


def captured(call: Callable[[], Tensors]) -> Callable[[], Tensors]:
    """Return a call that replays `call` as one CUDA graph on the current device, with the same inputs and outputs.

    Outputs are overwritten by the next replay. Raises RuntimeError where an operator cannot be captured.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = call()

    def replay() -> Tensors:
        graph.replay()
        return outputs

    return replay


class _Copied:
    """A run on a GPU between the upload of a frame and the download of its outputs, through page-locked memory."""

    def __init__(self, image: torch.Tensor, run: Callable[[], Tensors]) -> None:
        """image: what `run` reads."""
        self._image, self._run = image, run
        self._uploaded = _host_memory(image)
        self._downloaded = tuple(map(_host_memory, run()))

    def __call__(self, tensor: RgbImage) -> Tensors:
        """See Prepared."""
        self._uploaded.copy_(torch.from_numpy(np.array(tensor)))
        self._image.copy_(self._uploaded, non_blocking=True)
        for target, source in zip(self._downloaded, self._run(), strict=True):
            target.copy_(source, non_blocking=True)
        if self._image.is_cuda:
            torch.cuda.current_stream().synchronize()
        return tuple(output.clone() for output in self._downloaded)


def _host_memory(like: torch.Tensor) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)


def _require_gpu(index: int) -> None:
    if torch.version.cuda is None:
        raise BackendError(
            f"torch {torch.__version__} was built without CUDA: install the build for the driver's CUDA "
            "(https://pytorch.org/get-started), or use the provider cpu"
        )
    if not torch.cuda.is_available():
        raise BackendError(
            f"torch {torch.__version__} finds no GPU: there is no driver for CUDA {torch.version.cuda}, or it is too "
            "old; install the driver; start a container with --runtime nvidia or --gpus all; look at "
            "CUDA_VISIBLE_DEVICES; or use the provider cpu"
        )
    if index >= torch.cuda.device_count():
        raise BackendError(f"there is no GPU {index}; expected a device of 0 to {torch.cuda.device_count() - 1}")


@functools.cache
def _processor_name() -> str:
    """Return the processor's model, empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() in ("model name", "CPU part")), "")
