"""benchmarks/kill.py: it reports partial and different files, and a real command survives the kills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CARELESS = """
import json, random, sys, time
from pathlib import Path
from kill import kill_command
from killed_commands import Command

class Careless(Command):
    def run(self, place):
        time.sleep(0.1)
        path = place.folder / "out.json"
        if not path.exists():
            path.write_text('{"half": ')
            time.sleep(0.3)
        path.write_text('{"half": 2}')
        (place.folder / f"{random.random()}.part").touch()
        return 0
    def check(self, place):
        path = place.folder / "out.json"
        if path.exists():
            json.loads(path.read_text())
    def figures(self, place):
        return json.loads((place.folder / "out.json").read_text())

found = kill_command(Careless(), Path(sys.argv[1]), Path(sys.argv[1]), 6, random.Random(0))
print(found.kills, found.runs, "|".join(found.faults))
"""
REAL = """
import random, sys
from pathlib import Path
from kill import in_fork, kill_command
from killed_commands import COMMANDS, make_inputs

place, name = Path(sys.argv[1]), sys.argv[2]
__import__(COMMANDS[name].module)
assert in_fork(lambda: make_inputs(place / "inputs"), place / "log") == 0, (place / "log").read_text()
found = kill_command(COMMANDS[name], place / "runs", place / "inputs", 2, random.Random(0))
print(found.kills, found.runs, "|".join(found.faults))
"""


def run(code: str, *words: object) -> str:
    """Return the last line that a program prints. It runs in a new process, because the tool forks."""
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_partial_and_leftover_files_are_reported(tmp_path: Path) -> None:
    output = run(CARELESS, tmp_path)
    assert "JSONDecodeError" in output and "left behind: ['0." in output


@pytest.mark.slow
@pytest.mark.parametrize("command", ["calibrate", "adapt"])
def test_killed_command_resumes_without_faults(command: str, tmp_path: Path) -> None:
    kills, runs, faults = run(REAL, tmp_path, command).split(" ", 2)
    assert (int(kills), faults) == (2, "") and int(runs) >= 1
