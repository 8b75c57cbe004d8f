"""A fuzzing target whose inputs cause every kind of fault, to test the supervision."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from random import Random

from fuzzing import inputs
from fuzzing.targets import Target

ENTRY = "fuzz_faults:Faults"


class Faults(Target):
    """Input 0 is accepted, 1 is refused, and the others cause different faults."""

    refusals = (ValueError,)

    def __init__(self, folder: Path, bundle: Path) -> None:
        super().__init__(folder, bundle)
        inputs.INPUT_LIMIT_MIB, inputs.INPUT_LIMIT_S = 16, 1.0  # in the supervised process
        self.faults = (
            lambda: (folder / "inside").write_text("may be"),
            lambda: int("x"),
            lambda: {}["a"],
            lambda: Path(f"{folder}-outside").write_text("may not be"),
            lambda: b"x" * (48 << 20),
            lambda: time.sleep(60),  # the alarm ends it
            hang,
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            lambda: None,
        )

    def make(self, rng: Random) -> int:
        return rng.randrange(2**32)

    def check(self, case: int) -> None:
        place = next(index for index in range(9) if case == inputs.generator_of(0, "faults", index).randrange(2**32))
        self.faults[place]()


def hang() -> None:
    """Block the alarm and hang, like a stuck library."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(60)
