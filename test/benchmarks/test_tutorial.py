"""The newcomer of docs/tutorial.md, on a small size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from anomseg_ros.replay.process import free_domain_id, local_environment

ROOT = Path(__file__).resolve().parents[2]
SCRIPT, PAGE = ROOT / "benchmarks" / "tutorial.py", ROOT / "docs" / "tutorial.md"


@pytest.mark.slow
def test_newcomer_gets_to_a_node_with_classes_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2", exc_type=ImportError)
    page, result = tmp_path / "page.md", tmp_path / "result.json"
    page.write_text(PAGE.read_text())
    environment = {**os.environ, **local_environment(free_domain_id()), "PYTHONPATH": str(ROOT)}
    words = ["--small", "--work", "work", "--page", str(page), "--json", str(result)]
    command = [sys.executable, str(SCRIPT), *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads(result.read_text())["steps"]
    assert len(steps) == 10 and all(step["seconds"] > 0 for step in steps)
    assert "mIoU" in steps[5]["figure"] and "through the node" in steps[-1]["figure"]
    written = page.read_text()
    assert all(f"| {step['step']} |" in written for step in steps)
    contract = (tmp_path / "work" / "mine-int8" / "bundle.yaml").read_text()
    assert all(name in contract for name in ("drivable", "walkway", "vehicle", "green", "sky"))
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and "anomseg train" not in again.stdout, "a finished step runs again"


def test_page_has_the_commands_of_the_script() -> None:
    commands = set(re.findall(r"^anomseg ((?:bag |calibrate |datasets )?[\w-]+)", PAGE.read_text(), re.MULTILINE))
    assert commands - {"node"} == set(re.findall(r'\["((?:run|adapt|train|quantize))"', SCRIPT.read_text())) | {
        "calibrate threshold",
        "datasets import",
        "datasets check",
        "bag write",
        "bag evaluate",
    }
