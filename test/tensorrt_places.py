"""Places that the backend tensorrt is tested in: a card, a Jetson, and one with pycuda alone, all of them fakes."""

from __future__ import annotations

import sys
from typing import Any

import fake_pycuda
import numpy as np
import pytest
from fake_cudart import Gpu
from fake_tensorrt_runtime import install

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.tensorrt import TensorRtBackend
from anomseg_ros.core.bundle import Bundle

SHAPE = (1, 64, 128, 3)
DEFAULT = ("labels", "void")


def opened(bundle: Bundle, build_engine: str = "configure", **options: Any) -> TensorRtBackend:
    backend = open_backend("tensorrt", bundle, BackendOptions(build_engine=build_engine, **options))
    assert isinstance(backend, TensorRtBackend)
    return backend


def frame(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def on_a_card(patch: pytest.MonkeyPatch) -> None:
    install(patch)


def on_a_jetson(patch: pytest.MonkeyPatch) -> None:
    install(patch, Gpu(integrated=True))


def by_pycuda(patch: pytest.MonkeyPatch) -> None:
    cudart = install(patch).cudart
    for name in ("cuda", "cuda.bindings"):
        patch.setitem(sys.modules, name, None)
    patch.setattr("anomseg_ros.backends.cuda_ctypes.SONAMES", ())
    patch.setattr("anomseg_ros.backends.cuda_ctypes._places", lambda: iter(()))
    fake_pycuda.install(patch, fake_pycuda.FakeDriver(cudart))
