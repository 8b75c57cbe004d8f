"""What a user may choose about a backend, the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackendOptions:
    """threads: processor threads for one frame, 0 = one per core. provider: what the engine runs on: cpu; cuda,
    tensorrt, openvino (onnxruntime); gpu (openvino); eager (torch). arena: keep freed memory for the next frame
    (faster; more resident memory). spin: let idle worker threads spin (lower latency; burns a core between frames)."""

    threads: int = 0
    provider: str = "cpu"
    arena: bool = True
    spin: bool = False
