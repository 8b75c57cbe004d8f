"""What builds, loads and judges engines: TensorRT or torch's compiler, with the device of this computer."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.built_engines import Built
from anomseg_ros.backends.engine_cache import EngineKey, Hardware, default_root
from anomseg_ros.backends.tensorrt_build import BuildOptions, build_engine, engine_key
from anomseg_ros.backends.tensorrt_library import Library, load_library
from anomseg_ros.core.bundle import GRAPH_FILE, TORCH_FILE, Bundle, save_bundle
from anomseg_ros.core.detector import Backend
from anomseg_ros.core.progress import Progress
from anomseg_ros.errors import BackendError

Opens = Callable[[], Backend]
"""Opens a backend; the caller closes it."""


class Machine(Protocol):
    """A library that makes engines, and a device. Methods raise BackendError."""

    @property
    def title(self) -> str:
        """The library and its version."""
        ...

    @property
    def device_name(self) -> str: ...

    @property
    def folder(self) -> Path:
        """The folder of the library's engines, unless another is chosen."""
        ...

    def key(self, bundle: Bundle, outputs: Sequence[str], options: BuildOptions) -> EngineKey:
        """Return the key of an engine."""
        ...

    def build(
        self, bundle: Bundle, outputs: tuple[str, ...], options: BuildOptions, timings: bytes, progress: Progress
    ) -> Built:
        """Build an engine; see tensorrt_build.build_engine."""
        ...

    def open_plan(self, bundle: Bundle, plan: bytes, outputs: Sequence[str], options: BuildOptions) -> Backend:
        """Return a backend that runs an engine which is not in the cache."""
        ...

    def require_reference(self, bundle: Bundle) -> None:
        """Raise BackendError where packages are missing that the reference needs."""
        ...

    def reference(self, bundle: Bundle) -> AbstractContextManager[Opens]:
        """Yield what opens a backend that runs the bundle itself on the processor, to compare engines with."""
        ...


class TensorRtMachine:
    """A GPU with TensorRT. Subclasses open engines and know how to make the GPU the current one."""

    def __init__(self, library: Library, gpu: Hardware) -> None:
        self.library, self.gpu = library, gpu
        self.folder = default_root()

    @property
    def title(self) -> str:
        """See Machine."""
        return self.library.title

    @property
    def device_name(self) -> str:
        """See Machine."""
        return self.gpu.name

    def entered(self) -> AbstractContextManager[object]:
        """Make the GPU the current one of this thread."""
        raise NotImplementedError

    def key(self, bundle: Bundle, outputs: Sequence[str], options: BuildOptions) -> EngineKey:
        """See Machine."""
        return engine_key(bundle, outputs, self.library, self.gpu, options)

    def build(
        self, bundle: Bundle, outputs: tuple[str, ...], options: BuildOptions, timings: bytes, progress: Progress
    ) -> Built:
        """See Machine."""
        with self.entered():
            return build_engine(self.library, bundle, outputs, options, timings, progress)

    def require_reference(self, bundle: Bundle) -> None:
        """See Machine."""
        if bundle.contract.precision == "bf16" and any(find_spec(name) is None for name in ("onnx", "ml_dtypes")):
            raise BackendError(
                f"an engine of bundle {bundle.contract.name!r}, which is in bf16, is compared with the bundle in "
                "float32, and that needs the packages onnx and ml_dtypes: pip install 'anomseg_ros[offline]', or use a "
                "bundle in fp16 or fp32"
            )

    @contextmanager
    def reference(self, bundle: Bundle) -> Iterator[Opens]:
        """See Machine. It is ONNX Runtime."""
        with runnable_on_cpu(bundle) as runnable:
            yield lambda: open_backend("onnxruntime", runnable)


class ThisMachine(TensorRtMachine):
    """The installed TensorRT and one GPU of this computer."""

    def __init__(self, device: int) -> None:
        """device: number of the GPU, as CUDA counts. Raises BackendError."""
        library = load_library()
        self._cuda: Any = importlib.import_module("anomseg_ros.backends.cuda").open_cuda(device)
        super().__init__(library, self._cuda.device)

    def close(self) -> None:
        """Release the GPU."""
        self._cuda.close()

    def entered(self) -> AbstractContextManager[object]:
        """See TensorRtMachine."""
        entered: AbstractContextManager[object] = self._cuda.entered()
        return entered

    def open_plan(self, bundle: Bundle, plan: bytes, outputs: Sequence[str], options: BuildOptions) -> Backend:
        """See Machine."""
        backend: Backend = importlib.import_module("anomseg_ros.backends.tensorrt").open_plan(
            bundle, plan, outputs, self.library, self._cuda, options.dla_core
        )
        return backend


class TorchMachine:
    """The installed torch with its compiler, and the processor or one GPU of this computer."""

    def __init__(self, provider: str, device: int) -> None:
        """provider: of the backend torch, one that is compiled ahead of time. device: number of the GPU."""
        self._torch: Any = importlib.import_module("anomseg_ros.backends.torch")
        self._place = self._torch.open_place(provider, device)
        self.title = f"torch {self._torch.torch.__version__}"
        self.device_name: str = self._place.name
        self.folder = default_root(self._torch.FOLDER)

    def key(self, bundle: Bundle, outputs: Sequence[str], options: BuildOptions) -> EngineKey:
        """See Machine."""
        key: EngineKey = self._maker(bundle).key(tuple(outputs))
        return key

    def build(
        self, bundle: Bundle, outputs: tuple[str, ...], options: BuildOptions, timings: bytes, progress: Progress
    ) -> Built:
        """See Machine. The compiler takes no options."""
        built: Built = self._torch.PackageMaker(bundle, self._place, progress).build(outputs, timings)
        return built

    def open_plan(self, bundle: Bundle, plan: bytes, outputs: Sequence[str], options: BuildOptions) -> Backend:
        """See Machine."""
        runner: Backend = self._maker(bundle).load(tuple(outputs), plan)
        return runner

    def require_reference(self, bundle: Bundle) -> None:
        """See Machine. It needs torch alone."""

    @contextmanager
    def reference(self, bundle: Bundle) -> Iterator[Opens]:
        """See Machine. It is the program, not compiled."""
        yield lambda: open_backend("torch", bundle, BackendOptions(provider="eager"))

    def _maker(self, bundle: Bundle) -> Any:
        bundle.require_program(TORCH_FILE)
        return self._torch.PackageMaker(bundle, self._place)


@contextmanager
def runnable_on_cpu(bundle: Bundle) -> Iterator[Bundle]:
    """Yield the bundle, or one with its weights in float32: ONNX Runtime has no bfloat16 on a CPU."""
    if bundle.contract.precision != "bf16":
        yield bundle
        return
    import onnx  # of the offline half; only bundles of bfloat16 need it

    from anomseg_ros.compression.half import in_single_precision

    with tempfile.TemporaryDirectory(prefix="anomseg-") as folder:
        path = Path(folder, GRAPH_FILE)
        onnx.save(in_single_precision(onnx.load(bundle.graph_path)), path)
        yield save_bundle(bundle.contract, {GRAPH_FILE: path}, Path(folder, "float32"))
