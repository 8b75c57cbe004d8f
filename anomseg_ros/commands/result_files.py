"""Write the result files of a command, and print where sources delivered less or more data than they state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from anomseg_ros.core.delivered import Delivered, deviations, losses
from anomseg_ros.errors import OutputError


def write_each(*writes: Callable[[], object]) -> None:
    """Write every file, even after one fails. Raises OutputError with all failures."""
    failures: list[str] = []
    for write in writes:
        try:
            write()
        except OutputError as error:
            failures.append(str(error))
    if failures:
        raise OutputError("; ".join(failures))


def print_differences(deliveries: Iterable[Delivered]) -> int:
    """Print losses as errors and other differences as warnings; return the exit status, 1 for a loss."""
    deliveries = tuple(deliveries)
    for kind, messages in (("error", losses(deliveries)), ("warning", deviations(deliveries))):
        for message in messages:
            print(f"anomseg: {kind}: {message}", file=sys.stderr)
    return 1 if losses(deliveries) else 0
