"""A warning for bundles whose graph has the form for a CPU, for commands that make something for a GPU."""

from __future__ import annotations

from rich.console import Console

from anomseg_ros.core.bundle import GPU, Bundle
from anomseg_ros.core.resources import own_checkpoint


def tell_cpu_form(bundle: Bundle) -> None:
    """Print a warning on standard error if a bundle was not exported for a GPU."""
    if bundle.contract.target != GPU:
        checkpoint = "" if own_checkpoint(bundle) else " --checkpoint FILE"
        Console(stderr=True).print(
            f"warning: the graph of {bundle.contract.name} has the form for a CPU: it works in strips of rows, which "
            "is expected to be slower on a GPU, and TensorRT may refuse it; make one in the form for GPUs: anomseg "
            f"convert {bundle.directory.name} --precision fp32{checkpoint} --output FOLDER",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
