"""Measure the peak memory of one candidate in a separate process, without that of other candidates.

`python -m anomseg_ros.bench.peak_memory CANDIDATE` is that process; it prints one number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from anomseg_ros.bench.candidates import Candidate, open_runner
from anomseg_ros.errors import AnomsegError, BackendError

RUNS = 3
KIB_PER_MIB = 1024
STATUS = Path("/proc/self/status")
TIMEOUT_S = 300.0


def measure_memory(candidate: Candidate) -> float | None:
    """Return the peak resident MiB, libraries included, of a new process that loads and runs the candidate.

    None on systems other than Linux. Raises BackendError with the last line of the process's errors.
    """
    if not STATUS.is_file():
        return None
    package_parent = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "anomseg_ros.bench.peak_memory", json.dumps(asdict(candidate))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env={**os.environ, "PYTHONPATH": search}
        )
    except subprocess.TimeoutExpired:
        raise BackendError(
            f"{candidate.title}: no answer within {TIMEOUT_S:g} s when its memory was measured"
        ) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise BackendError(f"{candidate.title}: {lines[-1] if lines else f'ended with {done.returncode}'}")
    return int(done.stdout.split()[-1]) / KIB_PER_MIB


def main() -> None:
    """Load the candidate of the first argument, run it, print the peak resident memory in KiB."""
    candidate = Candidate(**json.loads(sys.argv[1]))
    frame = np.full((candidate.height_px, candidate.width_px, 3), 128, np.uint8)
    runner = open_runner(candidate)
    for _ in range(RUNS):
        runner(frame)
    print(peak_resident_kib())
    runner.close()


def peak_resident_kib() -> int:
    """Return the peak resident memory of this process.

    getrusage would give that of the parent process, since its peak survives exec.
    """
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    try:
        main()
    except AnomsegError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
