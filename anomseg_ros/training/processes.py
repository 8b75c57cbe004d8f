"""The processes of a run: starting them, and finding the first."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from lightning_fabric import Fabric

from anomseg_ros.errors import ConfigError
from anomseg_ros.training.allocator import keep_freed_memory
from anomseg_ros.training.config import RunConfig

BFLOAT16, SINGLE = "bf16-mixed", "32-true"
NO_BFLOAT16 = (
    f"this processor takes 3 to 8 times as long in bfloat16 as in float32, so the run has precision {SINGLE} in place "
    f"of {BFLOAT16}; a processor with AVX-512 or AMX, or a GPU, computes in bfloat16"
)

_log = logging.getLogger(__name__)


def start_processes(run: RunConfig) -> Fabric:
    """Return Fabric with its processes started. Raises ConfigError if the machine has no such devices.

    Where a processor only emulates bfloat16, a run in it gets 32-true and a warning: the recipes that ship ask for it.

    Under torchrun, its --nproc_per_node and --nnodes count, not run.devices and run.nodes: on processors Fabric would
    otherwise treat each process as a separate run.
    """
    keep_freed_memory()
    if run.threads:
        torch.set_num_threads(run.threads)
    devices, nodes = int(run.devices) if run.devices.isdigit() else run.devices, run.nodes
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    try:
        fabric = _fabric(run, devices, nodes, run.precision)
        if fabric.device.type == "cpu" and run.precision == BFLOAT16 and not has_bfloat16():
            _log.warning(NO_BFLOAT16)
            fabric = _fabric(run, devices, nodes, SINGLE)
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        raise ConfigError(
            f"run.accelerator={run.accelerator} with run.devices={run.devices} does not work here: {error}"
        ) from error
    fabric.launch()
    return fabric


def has_bfloat16() -> bool:
    """Return whether the processor computes in bfloat16: AVX-512, AMX, or Arm's BF16."""
    # Builds without oneDNN, which has the kernels, lack the operator.
    return hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _fabric(run: RunConfig, devices: int | str, nodes: int, precision: Any) -> Fabric:
    return Fabric(accelerator=run.accelerator, devices=devices, num_nodes=nodes, precision=precision)


def end_processes() -> None:
    """Leave the group of the run's processes. Its threads would otherwise be running at exit, which may abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_first_process() -> bool:
    """Return whether this is the only or the first process of a run, by its launcher's variables."""
    if "RANK" in os.environ:  # torchrun
        return os.environ["RANK"] == "0"
    return os.environ.get("NODE_RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"
