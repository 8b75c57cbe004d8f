"""Kill the commands that write files with kill -9 at random moments, and check that they lose nothing.

Each command first runs undisturbed. Then it is started and killed several times, at random moments within the duration
of the undisturbed run, and finally runs to its end. After each kill, every file with a final name must be complete. At
the end, the result must equal that of the undisturbed run, and no temporary files may remain. The commands run in forks
of a process that has imported them, so that kills hit their work and not the start of Python. The result goes to
benchmarks/results/kill.json.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common import write_result
from killed_commands import COMMANDS, Command, Place, make_inputs
from rich.progress import Progress

MAX_KILLS_PER_RUN = 4


@dataclass
class Found:
    """Outcome of the runs of one command. seconds: duration of the undisturbed run."""

    kills: int = 0
    runs: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", nargs="+", choices=list(COMMANDS), help="default: all")
    parser.add_argument("--kills", type=int, default=100, help="total over all commands (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    args = parser.parse_args()
    names = args.command or list(COMMANDS)
    for module in (COMMANDS[name].module for name in names):
        __import__(module)
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        inputs = Path(folder) / "inputs"
        in_fork(lambda: make_inputs(inputs), Path(folder) / "inputs.log")
        for number, name in enumerate(names):
            kills = args.kills * (number + 1) // len(names) - args.kills * number // len(names)
            task = progress.add_task(name, total=kills)
            generator = random.Random(f"{args.seed}/{name}")
            on_kill = lambda task=task: progress.advance(task)  # noqa: E731
            found[name] = kill_command(COMMANDS[name], Path(folder) / name, inputs, kills, generator, on_kill)
            result = {"seed": args.seed, "kills": sum(one.kills for one in found.values())}
            written = write_result("kill", {**result, "commands": {key: vars(one) for key, one in found.items()}})
    print(written)
    for name, one in found.items():
        print(f"{name}: {one.kills} kills, {one.runs} runs resumed to the end, {len(one.faults)} faults")
        for fault in one.faults:
            print(f"  {fault}")
    return 1 if any(one.faults for one in found.values()) else 0


def kill_command(
    command: Command,
    folder: Path,
    inputs: Path,
    kills: int,
    generator: random.Random,
    on_kill: Callable[[], None] = lambda: None,
) -> Found:
    """Kill a command repeatedly and compare its final result with that of an undisturbed run.

    Args:
        command: from killed_commands.COMMANDS.
        folder: for the runs, each in a subfolder.
        inputs: folder written by make_inputs.
        kills: number of kills.
        generator: draws the moments.
        on_kill: called after each kill.
    """
    found = Found()
    undisturbed = Place(folder / "undisturbed", inputs)
    command.prepare(undisturbed)
    started = time.monotonic()
    if status := in_fork(lambda: command.run(undisturbed), folder / "undisturbed.log"):
        found.faults.append(f"the undisturbed run ends with status {status}: {_end_of(folder / 'undisturbed.log')}")
        return found
    found.seconds = time.monotonic() - started
    expected = command.figures(undisturbed)
    while found.kills < kills and len(found.faults) < 5:
        place = Place(folder / f"run{found.runs}", inputs)
        command.prepare(place)
        most = generator.randint(1, MAX_KILLS_PER_RUN)
        for _ in range(min(most, kills - found.kills)):
            moment_s = generator.uniform(0.0, found.seconds)
            status = in_fork(partial(command.run, place), folder / "killed.log", moment_s)
            if status == -signal.SIGKILL:
                found.kills += 1
                on_kill()
                _check(found, moment_s, partial(command.check, place))
        status = in_fork(partial(command.run, place), folder / "last.log")
        found.runs += 1
        if status:
            found.faults.append(f"the resumed run ends with status {status}: {_end_of(folder / 'last.log')}")
            continue
        _check(found, None, partial(_compare, command, place, expected))
        shutil.rmtree(place.folder)
    return found


def _end_of(log: Path) -> str:
    return log.read_text()[-500:]


def in_fork(work: Callable[[], Any], log: Path, kill_after_s: float | None = None) -> int:
    """Run `work` in a fork with its output in `log`; return its status. kill_after_s: kill it and its children then."""
    log.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        status = 1
        try:
            status = int(work() or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    if kill_after_s is not None:
        deadline = time.monotonic() + kill_after_s
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _check(found: Found, moment_s: float | None, check: Callable[[], None]) -> None:
    try:
        check()
    except Exception as error:
        when = "at the end" if moment_s is None else f"after a kill at {moment_s:.3f} of {found.seconds:.3f} s"
        found.faults.append(f"{when}, run {found.runs}: {type(error).__name__}: {error}")


def _compare(command: Command, place: Place, expected: Any) -> None:
    """Fail unless the result is complete, equals the expected one, and no temporary files are left."""
    command.check(place)
    actual = command.figures(place)
    assert actual == expected, f"other figures: {actual!r:.600} where {expected!r:.600} is expected"
    left = [str(path.relative_to(place.folder)) for path in place.folder.rglob("*") if is_leftover(path)]
    assert not left, f"left behind: {left}"


def is_leftover(path: Path) -> bool:
    """Return whether a path is a temporary one, which exists only while a command runs."""
    return path.name.endswith((".part", ".replaced")) or path.suffix == ".state"


if __name__ == "__main__":
    sys.exit(main())
