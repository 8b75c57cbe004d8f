"""Change a bundle in processes that are killed, at every step and at random moments, and check it after each kill.

Prints the number of kills and how often the bundle was the old and the new one. Fails if it is neither.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from plain_bundles import contents, plain_bundle

from anomseg_ros.core.bundle import CONTRACT_FILE, GRAPH_FILE, Bundle, change_bundle, load_bundle
from anomseg_ros.core.labels import label_set

GRAPHS = {1.0: b"1" * 300_000, 2.0: b"2" * 300_000}
"""Temperature -> its graph."""
STEPS = ("open", "os.", "shutil.", "ctypes.dl", "tempfile.")
"""Prefixes of Python's audit events of file operations."""
RANDOM_KILLS = 10

Change = Callable[[Bundle], object]


def killed_in(change: Change, bundle: Bundle, *, at_step: int = 0, after_s: float = 0.0) -> bool:
    """Run a change in another process and kill it at a step or after a time; return whether it was killed."""
    child = os.fork()
    if child == 0:
        if at_step:
            _die_at(at_step)
        change(bundle)
        os._exit(0)
    if not at_step:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _die_at(step: int) -> None:
    steps = 0

    def hook(event: str, _: object) -> None:
        nonlocal steps
        steps += event.startswith(STEPS)
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(place: Path) -> None:
    folder = place / "bundle"
    sources = {temperature: place / f"{temperature:g}" for temperature in GRAPHS}
    for temperature, path in sources.items():
        path.write_bytes(GRAPHS[temperature])
    plain_bundle(folder, {GRAPH_FILE: GRAPHS[1.0]}, temperature=1.0, classes=label_set("camvid")[:1])
    kept = {**contents(folder), GRAPH_FILE: b"", CONTRACT_FILE: b""}
    found: Counter[str] = Counter()

    def both(bundle: Bundle) -> None:
        temperature = 3.0 - bundle.contract.temperature
        files = {GRAPH_FILE: sources[temperature]}
        change_bundle(bundle, lambda one: replace(one, temperature=temperature), files=files)

    def name_only(bundle: Bundle) -> None:
        change_bundle(bundle, lambda one: replace(one, name=one.name[::-1]))

    def check(before: Bundle) -> None:
        after = load_bundle(folder)  # digests are checked
        present = {name: data for name, data in contents(folder).items() if not name.endswith(".part")}
        assert present[GRAPH_FILE] == GRAPHS[after.contract.temperature], "temperature and graph are of two bundles"
        assert {**present, GRAPH_FILE: b"", CONTRACT_FILE: b""} == kept, "what lies beside was changed"
        found["old" if after == before else "new"] += 1

    for change in (both, name_only):
        step = 1
        while killed_in(change, before := load_bundle(folder), at_step=step):
            check(before)
            step += 1
        assert step > 5, f"{change.__name__} took only {step} steps"
    start = time.monotonic()
    both(load_bundle(folder))
    lasts_s, generator = time.monotonic() - start, random.Random(0)
    for _ in range(RANDOM_KILLS):
        before = load_bundle(folder)
        killed_in(both, before, after_s=generator.uniform(0, lasts_s))
        check(before)
    both(load_bundle(folder))
    left = [path.name for path in (*place.iterdir(), *folder.iterdir()) if path.name.endswith(".part")]
    assert not left, f"what killed processes left was not removed: {left}"
    print(found.total(), found["old"], found["new"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
