"""Who may import whom (docs/architecture.md), and that the run-time half lives without torch and ROS."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "anomseg_ros"

ALLOWED = {
    "core": set(),
    "backends": {"core"},
    "catalog": {"core"},
    "datasets": {"core"},
    "bags": {"core"},
    "metrics": {"core"},
    "node": {"core", "backends", "bags"},
    "evaluation": {"core", "backends", "datasets", "metrics", "bags"},
    "networks": {"core"},
    "training": {"networks", "datasets", "metrics", "core"},
    "bench": {"core", "backends", "datasets", "evaluation"},
    "compression": {
        "training",
        "networks",
        "datasets",
        "core",
        "backends",
        "evaluation",
        "metrics",
        "export",
        "bench",
    },
    "export": {"networks", "core", "backends"},
    "deploy": {"export", "evaluation", "metrics", "datasets", "networks", "core"},
}
EVERYWHERE = {"errors"}
TORCH = {
    "torch",
    "onnx",
    "onnxscript",
    "safetensors",
    "torchao",
    "torch_pruning",
    "timm",
    "lightning_fabric",
    "tensorboard",
}
ROS = {
    "rclpy",
    "sensor_msgs",
    "std_msgs",
    "diagnostic_msgs",
    "rcl_interfaces",
    "lifecycle_msgs",
    "rosgraph_msgs",
    "vision_msgs",
}
MAY_TORCH = {"networks", "training", "compression", "export", "deploy"}
TORCH_FILES = {PACKAGE / "backends" / "torch.py"}
OPTIONAL_BACKENDS = {"anomseg_ros.backends.openvino", "anomseg_ros.backends.torch"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert [alias.name for alias in node.names] != ["*"], f"{path}: wildcard import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path: Path) -> None:
    part = part_of(path)
    names = imported(path)
    outside = {name.split(".")[0] for name in names}
    if part in ALLOWED:
        own = {name.split(".")[1] for name in names if name.startswith("anomseg_ros.")}
        assert own <= ALLOWED[part] | EVERYWHERE | {part}
    if part not in MAY_TORCH and path not in TORCH_FILES and part != "commands":
        assert not outside & TORCH
    if part != "node" and part != "commands":
        assert not outside & ROS


BLOCKED_RUN = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked {{name}}", name=name)
sys.meta_path.insert(0, Refuse())
import anomseg_ros
for part in {parts!r}:
    package = importlib.import_module("anomseg_ros." + part)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in {left_out!r}:
            importlib.import_module(module.name)
from anomseg_ros import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def run_without(blocked: set[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    parts = [
        part
        for part in ("core", "backends", "catalog", "datasets", "bags", "metrics", "evaluation", "bench")
        if (PACKAGE / part).is_dir()
    ]
    code = BLOCKED_RUN.format(blocked=blocked, parts=parts, left_out=OPTIONAL_BACKENDS)
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_without_torch_and_ros_the_detector_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 30, 3), np.uint8))
    arguments = ["run", str(tiny_bundle), str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    done = run_without(TORCH | ROS, arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a_labels.png").is_file()


def test_without_torch_and_ros_bundles_are_timed(tiny_bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "b.json"
    done = run_without(TORCH | ROS, ["bench", str(tiny_bundle), "--rounds", "3", "--json", str(report)])
    assert done.returncode == 0, done.stderr
    assert '"parameters": null' in report.read_text()


@pytest.mark.parametrize(("command", "extra"), [("node", "ros"), ("export", "offline"), ("bag play", "ros")])
def test_what_is_missing_is_named(command: str, extra: str) -> None:
    rest = ["nothing.mcap"] if command == "bag play" else ["--help"]
    done = run_without(TORCH | ROS, [*command.split(), *rest])
    assert done.returncode == 1
    assert f"anomseg_ros[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
