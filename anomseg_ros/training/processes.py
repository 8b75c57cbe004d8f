"""The processes of one run: how many, started by whom, and which of them is the first."""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric

from anomseg_ros.errors import ConfigError
from anomseg_ros.training.config import RunConfig
from anomseg_ros.training.memory import keep_freed_memory


def start_processes(run: RunConfig) -> Fabric:
    """Return Fabric with its processes up. Raises ConfigError where the machine has no such devices.

    Under torchrun its --nproc_per_node and --nnodes decide, and run.devices and run.nodes say nothing: on processors
    Fabric would otherwise take each process for a run of its own.
    """
    keep_freed_memory()
    if run.threads:
        torch.set_num_threads(run.threads)
    devices, nodes = int(run.devices) if run.devices.isdigit() else run.devices, run.nodes
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    try:
        fabric = Fabric(
            accelerator=run.accelerator,
            devices=devices,
            num_nodes=nodes,
            precision=run.precision,  # type: ignore[arg-type]
        )
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        raise ConfigError(
            f"run.accelerator={run.accelerator} with run.devices={run.devices} does not work here: {error}"
        ) from error
    fabric.launch()
    return fabric


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first of several, as its launcher's variables say."""
    if "RANK" in os.environ:  # torchrun
        return os.environ["RANK"] == "0"
    return os.environ.get("NODE_RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"
