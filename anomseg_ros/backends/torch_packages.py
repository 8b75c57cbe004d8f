"""Programs of torch that are compiled ahead of time (AOTInductor): engines of the same cache as TensorRT's.

A package is machine code for one kind of processor or GPU and one version of torch. So it never belongs to a bundle,
and is read from the cache only where nobody but this user could have written it.
"""

from __future__ import annotations

import io
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch._inductor

from anomseg_ros.backends.built_engines import Built
from anomseg_ros.backends.engine_cache import EngineKey, default_root, private_folder
from anomseg_ros.backends.noise_check import check_on_noise
from anomseg_ros.backends.torch_device import Cpu, Place, Prepared
from anomseg_ros.backends.torch_graph import cut, freezes, input_shape, load_graph, one_line
from anomseg_ros.core.bundle import TORCH_FILE, Bundle
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError

CODE_VERSION = 2
"""Raise it where packages are compiled or run in another way, so that older ones are compiled anew."""
FOLDER = "torch"
"""Of the cache, beside TensorRT's."""
_INDUCTOR_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class Runner:
    """A program and the outputs that it computes. It is a Backend, whose errors are torch's."""

    names: tuple[str, ...]
    call: Prepared
    requested: str = "torch:aot"
    actual: str = "torch:aot"

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """See Backend.run."""
        with torch.no_grad():
            values = dict(zip(self.names, self.call(tensor), strict=True))
        return [values[name].numpy() for name in outputs]

    def close(self) -> None:
        """Do nothing: torch releases what nobody refers to."""


class PackageMaker:
    """See built_engines.Maker."""

    def __init__(self, bundle: Bundle, place: Place, progress: Progress = no_progress) -> None:
        self._bundle, self._place, self._progress = bundle, place, progress

    def key(self, outputs: tuple[str, ...]) -> EngineKey:
        """Return the key of the package; its `gpu_name` is the processor's where that runs it."""
        cuda = f", CUDA {torch.version.cuda}" if self._place.device.type == "cuda" else ""
        return EngineKey(
            program_sha256=self._bundle.contract.files[TORCH_FILE],
            outputs=tuple(sorted(outputs)),
            library="torch",
            version=f"{torch.__version__}{cuda}",
            gpu_name=self._place.name,
            compute_capability=self._place.compute_capability,
            multiprocessors=self._place.multiprocessors,
            integrated=self._place.integrated,
            architecture=platform.machine(),
            backend_version=CODE_VERSION,
        )

    def build(self, outputs: tuple[str, ...], timings: bytes) -> Built:
        """Compile the program, cut to these outputs. torch keeps no timing cache."""
        self._progress("compiling the program", 0, 1)
        started = time.monotonic()
        graph = _cut_to(self._bundle, self._place, outputs)
        image = torch.zeros(input_shape(self._bundle), dtype=torch.uint8, device=self._place.device)
        try:
            with torch.no_grad(), self._place.entered(), _own_inductor_folder():
                plan, constant = _compiled(graph, image, freezes(self._bundle, self._place.device))
        except BackendError:  # of the cache's folder
            raise
        except Exception as error:  # the compiler raises errors of many classes
            raise BackendError(
                f"torch {torch.__version__} cannot compile {self._bundle.directory / TORCH_FILE}: {one_line(error)}. "
                "It needs a C++ compiler (apt install g++), and on a GPU Triton; the providers eager and cuda do "
                "without"
            ) from error
        self._progress("compiling the program", 1, 1)
        facts = {
            "bundle": self._bundle.contract.name,
            "precision": self._bundle.contract.precision,
            "build_s": round(time.monotonic() - started, 2),
            "plan_bytes": len(plan),
            "constant_weights": constant,
        }
        return Built(plan, facts)

    def check(self, outputs: tuple[str, ...], built: Built) -> Mapping[str, Any]:
        """Compare the package with the program that is not compiled, on the processor."""
        engine = self.load(outputs, built.plan)
        place = Cpu()
        graph = _cut_to(self._bundle, place, outputs)
        reference = Runner(outputs, place.prepared(graph, input_shape(self._bundle)))
        return check_on_noise(self._bundle, outputs, engine.run, reference.run)

    def load(self, outputs: tuple[str, ...], plan: bytes) -> Runner:
        """Return what runs a package."""
        on_gpu = self._place.device.type == "cuda"
        index = self._place.device.index if on_gpu else -1
        try:
            with torch.no_grad():
                # Its own locks would be in the way of capturing; the backend runs one frame at a time.
                package = torch._inductor.aoti_load_package(io.BytesIO(plan), on_gpu, index)
                return Runner(outputs, self._place.prepared(package, input_shape(self._bundle)))
        except Exception as error:
            raise BackendError(
                f"the compiled program of bundle {self._bundle.contract.name!r} cannot be loaded by torch "
                f"{torch.__version__}: {one_line(error)}; remove its folder from the cache and build it again"
            ) from error


def _cut_to(bundle: Bundle, place: Place, outputs: Sequence[str]) -> torch.fx.GraphModule:
    names = [output.name for output in bundle.contract.outputs]
    return cut(load_graph(bundle, place.device), [names.index(name) for name in outputs])


def _compiled(graph: torch.fx.GraphModule, image: torch.Tensor, frozen: bool) -> tuple[bytes, bool]:
    """Return the package, and whether its weights are constants, which some programs do not allow.

    frozen: whether they may be.
    """
    program = torch.export.export(graph, (image,))
    for constant in (True, False) if frozen else (False,):
        # The number of threads is that of the process that runs it.
        settings = {"freezing": constant, "cpp.dynamic_threads": True}
        with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
            path = str(Path(folder, "program.pt2"))
            try:
                made = torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=settings)
            except Exception:
                if not constant:
                    raise
            else:
                return Path(made).read_bytes(), constant
    raise AssertionError("the last attempt raises")


@contextmanager
def _own_inductor_folder() -> Iterator[None]:
    """Have the compiler keep its parts where only this user can write; its own choice is a folder of /tmp."""
    before = os.environ.get(_INDUCTOR_FOLDER)
    if before is None:
        os.environ[_INDUCTOR_FOLDER] = str(private_folder(default_root(FOLDER).parent / "inductor"))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_INDUCTOR_FOLDER, None)
