"""A word on bundles whose graph has the form for a CPU, for commands that make something for a GPU."""

from __future__ import annotations

from rich.console import Console

from anomseg_ros.core.bundle import Contract

GPU = "gpu"


def tell_cpu_form(contract: Contract) -> None:
    """Print a warning on standard error if a bundle was not exported for a GPU."""
    if contract.target != GPU:
        Console(stderr=True).print(
            f"warning: the graph of {contract.name} has the form for a CPU and works in strips of rows, which is "
            "expected to be slower on a GPU; export it with --target gpu: anomseg export "
            f"--network {contract.network} --checkpoint FILE --target gpu --output FOLDER",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
