"""Peak memory of one candidate, read in a process of its own, so that candidates do not see each other's.

`python -m anomseg_ros.bench.memory CANDIDATE` is that process; it prints one number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from anomseg_ros.bench.candidates import Candidate, candidate_from, open_runner
from anomseg_ros.errors import AnomsegError, BackendError

RUNS = 3
KIB_PER_MIB = 1024
STATUS = Path("/proc/self/status")
TIMEOUT_S = 300.0


def measure_memory(candidate: Candidate) -> float | None:
    """Return the peak resident MiB of a fresh process, libraries included, that loads the candidate and runs it.

    None where the system does not tell (anything but Linux). Raises BackendError with what the process said.
    """
    if not STATUS.is_file():
        return None
    package_parent = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "anomseg_ros.bench.memory", json.dumps(asdict(candidate))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env={**os.environ, "PYTHONPATH": search}
        )
    except subprocess.TimeoutExpired:
        raise BackendError(
            f"{candidate.title}: no answer within {TIMEOUT_S:g} s when its memory was measured"
        ) from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise BackendError(f"{candidate.title}: {said[-1] if said else f'ended with {done.returncode}'}")
    return int(done.stdout.split()[-1]) / KIB_PER_MIB


def main() -> None:
    """Load the candidate of the first argument, run it, print the peak resident memory in KiB."""
    candidate = candidate_from(json.loads(sys.argv[1]))
    frame = np.full((candidate.height_px, candidate.width_px, 3), 128, np.uint8)
    runner = open_runner(candidate)
    for _ in range(RUNS):
        runner(frame)
    print(peak_resident_kib())
    runner.close()


def peak_resident_kib() -> int:
    """Return the most that was resident of this process so far.

    Not getrusage: its peak outlives exec, and would be that of the process that started this one.
    """
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    try:
        main()
    except AnomsegError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
