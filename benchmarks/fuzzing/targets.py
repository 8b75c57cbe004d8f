"""The table of what is fuzzed: name -> a class that makes inputs and says what must hold of each.

An entry is a subclass of `Target` and one line here. What must hold for every one of them is checked where they are
run (inputs.py, workers.py): no exception but its refusals, an end in time, no memory beyond bounds, and no file
written outside its folder.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from random import Random
from typing import Any

TARGETS: dict[str, str] = {
    "image": "fuzzing.messages:Images",
    "compressed_image": "fuzzing.messages:CompressedImages",
    "camera_info": "fuzzing.messages:CameraInfos",
    "parameters": "fuzzing.parameters:Parameters",
    "bundle": "fuzzing.bundles:Contracts",
    "graph": "fuzzing.bundles:Graphs",
    "bag_mcap": "fuzzing.bags:McapBags",
    "bag_sqlite3": "fuzzing.bags:Sqlite3Bags",
    "safetensors": "fuzzing.checkpoints:SafetensorsFiles",
    "torch_file": "fuzzing.checkpoints:TorchFiles",
}


class Target:
    """Inputs of one kind. refusals: the errors by which a bad one may be refused."""

    refusals: tuple[type[Exception], ...] = ()

    def __init__(self, folder: Path, bundle: Path) -> None:
        """Make the valid seeds. folder: the only place where anything may be written; bundle: a small one."""
        self.folder = folder
        self.bundle = bundle

    def make(self, rng: Random) -> Any:
        """Return an input; equal generators give equal inputs."""
        raise NotImplementedError

    def check(self, case: Any) -> None:
        """Give the input to the package and check what came of it. Raises one of `refusals`; all else is a fault."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what was opened."""


def open_target(entry: str, folder: Path, bundle: Path) -> Target:
    """Return the target of an entry `module:Class`."""
    module, _, name = entry.partition(":")
    made: Target = getattr(importlib.import_module(module), name)(folder, bundle)
    return made
