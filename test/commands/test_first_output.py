"""Every command says something within two seconds, on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
from drives import write_pictures, write_unlabelled_bag
from label_exports import colors
from tiny_runs import write_frames

from anomseg_ros.cli import main
from anomseg_ros.command_table import COMMANDS
from anomseg_ros.replay.process import free_domain_id, local_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 2.0
QUIET_S = 0.05
"""Time of `python -c pass` on a machine that does nothing else; a slower one gets as much more time."""
GIVEN_UP_S = 60.0
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

BUNDLE = "enet-synthetic"
CHECKPOINT = ROOT / "models" / BUNDLE / "checkpoint.safetensors"
WITH_CHECKPOINT = f"--checkpoint {CHECKPOINT}"
REQUESTS = {
    "run": f"{BUNDLE} frames --output OUT",
    "demo": f"night --bundle {BUNDLE} --output OUT",
    "doctor": "",
    "models list": "",
    "models show": BUNDLE,
    "models verify": BUNDLE,
    "models fetch": "espnetv2-cityscapes --accept-licence --output OUT",
    "evaluate": f"{BUNDLE} --dataset synthetic=5:2",
    "compare": "results.json results.json",
    "bag evaluate": f"{BUNDLE} night",
    "bag write": "--images frames --output OUT",
    "bag play": "night",
    "datasets list": "",
    "datasets check": "camvid=CamVid:train",
    "train": "enet-camvid --data CamVid --output OUT",
    "datasets import": "colors exported --output OUT",
    "adapt": "enet-camvid --frames frames --output OUT",
    "datasets cut-paste": "synthetic=5:2 --output OUT",
    "datasets pseudo-label": f"--frames folder=frames --teacher {BUNDLE} --output OUT",
    "export": f"--network enet {WITH_CHECKPOINT} --num-classes 20 --void-class 19 --output OUT",
    "calibrate threshold": f"{BUNDLE} --frames frames --output OUT",
    "calibrate temperature": f"{BUNDLE} {WITH_CHECKPOINT} --dataset synthetic=5:2 --output OUT",
    "calibrate score": f"{BUNDLE} --score sml --dataset synthetic=5:2 --output OUT",
    "quantize": f"{BUNDLE} --frames frames --output OUT",
    "prune": f"{BUNDLE} --fraction 0.3 --frames frames --output OUT",
    "compress": f"prune30-int8 {BUNDLE} --frames frames --output OUT",
    "convert": f"{BUNDLE} --precision fp32 --output OUT",
    "bench": BUNDLE,
    "tune": f"{BUNDLE} --max-latency-ms 50 --frames frames --output OUT",
    "node": f"--bundle {BUNDLE}",
    "build": f"{BUNDLE} --check",
    "policy": "",
    "completion": "bash",
    "share": "config/fastdds.xml",
    "report": "results.json --html OUT.html",
    "papers": "--tables OUT.md",
}
"""A cheap request of each command; it is ended after its first line."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first-output")
    write_pictures(folder / "frames", 24)
    write_unlabelled_bag(folder / "night", 4)
    write_frames(folder / "CamVid")
    colors(folder / "exported")
    assert main(["evaluate", BUNDLE, "--dataset", "synthetic=5:2", "--json", str(folder / "results.json")]) == 0
    return folder


def test_first_line_comes_within_two_seconds(place: Path) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2", exc_type=ImportError)
    assert set(REQUESTS) == set(COMMANDS)
    environment = {
        **os.environ,
        **local_environment(free_domain_id()),
        "PYTHONPATH": str(ROOT),
        "https_proxy": "http://127.0.0.1:9",  # nothing is downloaded
    }
    rows, late = [], []
    for name, request in REQUESTS.items():
        words = request.replace("OUT", name.replace(" ", "-"))
        before_s = python_s(environment)
        command = [sys.executable, "-m", "anomseg_ros.cli", *name.split(), *words.split()]
        seconds, line = first_line(command, place, environment)
        allowed_s = LIMIT_S * max(1.0, median((before_s, python_s(environment))) / QUIET_S)
        rows.append(f"{name:<22}{seconds:6.2f} s of {allowed_s:.2f}  {line[:80]}")
        if seconds > allowed_s or not line:
            late.append(name)
    table = "\n".join(rows)
    print(table)
    assert not late, f"{', '.join(late)} said nothing for too long:\n{table}"


def python_s(environment: dict[str, str]) -> float:
    """Return the time in which Python starts and ends, seconds."""
    begin_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], env=environment, check=True)
    return time.monotonic() - begin_s


def first_line(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, str]:
    """Return the seconds until a process has written its first line to a terminal, and the line; end the process."""
    ours, theirs = pty.openpty()
    begin_s = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    text = ""
    try:
        while not visible(text) and time.monotonic() - begin_s < GIVEN_UP_S:
            if select.select([ours], [], [], 0.5)[0]:
                text += os.read(ours, 4096).decode(errors="replace")
    except OSError:  # the process has ended
        pass
    seconds = time.monotonic() - begin_s
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    os.close(ours)
    return seconds, visible(text)


def visible(text: str) -> str:
    """Return the first line with letters, without control sequences."""
    plain = CONTROL.sub("", text)
    return next((line.strip() for line in plain.splitlines() if any(map(str.isalpha, line))), "")
