"""ONNX Runtime with a fault that tests can enable: a run that hangs until it is released."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends import BACKENDS
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.onnxruntime import OnnxRuntimeBackend
from anomseg_ros.core.bundle import Bundle

TABLE_ENTRY = "faulty_backend:FaultyBackend"


class FaultyBackend:
    """A backend for the table. released: runs wait for this event. hangs_after: number of runs before one hangs."""

    released = threading.Event()
    released.set()
    hangs_after: int | None = None

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self._real = OnnxRuntimeBackend(bundle, options)
        self._runs = 0

    @property
    def requested(self) -> str:
        return self._real.requested

    @property
    def actual(self) -> str:
        return self._real.actual

    def run(self, tensor: npt.NDArray[np.uint8], outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        if self._runs == self.hangs_after:
            self.released.clear()
        self._runs += 1
        self.released.wait()
        return self._real.run(tensor, outputs)

    def close(self) -> None:
        self._real.close()


if __name__ == "__main__":  # like `anomseg node`, but inference hangs on the first frame or earlier
    from anomseg_ros.node.main import main

    BACKENDS["onnxruntime"] = TABLE_ENTRY
    sys.modules["faulty_backend"] = sys.modules["__main__"]
    FaultyBackend.hangs_after = int(os.environ.get("GOOD_RUNS", "1"))  # the warm-up
    sys.exit(main())
