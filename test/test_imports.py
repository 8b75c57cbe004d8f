"""Allowed imports between packages (docs/architecture.md), and the run-time part without torch and ROS."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

MODULE_NAME = re.compile(r"anomseg_ros(\.\w+)+(:\w+)?")
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "anomseg_ros"

ALLOWED = {
    "core": set(),
    "scores": {"core"},
    "backends": {"core"},
    "catalog": {"core", "scores"},
    "bags": {"core"},
    "metrics": {"core"},
    "scenes": set(),
    "outliers": {"core"},
    "datasets": {"core", "scores", "bags", "outliers", "scenes"},
    "node": {"core", "scores", "backends", "command_table"},
    "replay": {"core", "bags", "node", "cli"},  # the node runs in a separate process
    "evaluation": {"core", "scores", "backends", "datasets", "metrics", "bags"},
    "networks": {"core", "scores"},
    "training": {"networks", "datasets", "outliers", "metrics", "core"},
    "bench": {"core", "backends", "scenes", "evaluation"},
    "compression": {"training", "networks", "datasets", "core", "scores", "backends", "evaluation", "export", "parity"},
    "tuning": {
        *("bench", "compression", "training", "networks", "export"),
        *("evaluation", "datasets", "scenes", "backends", "core"),
    },
    "parity": {"networks", "core", "scores", "backends"},
    "export": {"parity", "networks", "core", "scores", "backends"},
    "adaptation": {
        *("compression", "training", "networks", "export", "evaluation", "metrics"),
        *("datasets", "outliers", "scores", "backends", "core"),
    },
    "doctor": {"core", "backends", "evaluation", "node", "scenes"},
    "api": {"core", "scores", "backends", "evaluation", "export"},
    "deploy": {"export", "evaluation", "metrics", "datasets", "networks", "core", "scores"},
    "commands": {
        *("core", "scores", "backends", "catalog", "bags", "metrics", "scenes", "outliers", "datasets", "node"),
        *(
            "replay",
            "evaluation",
            "networks",
            "training",
            "bench",
            "compression",
            "tuning",
            "export",
            "deploy",
            "cli",
            *("adaptation", "api", "doctor", "command_table"),
        ),
    },
    "command_table": {"commands", "node"},
    "cli": {"command_table", "commands"},
    "errors": set(),
    "__init__": {"api", "core", "evaluation"},
}
"""Packages that each package may import, or name in a string for a later import, apart from itself and `errors`."""
EVERYWHERE = {"errors"}
TORCH = {
    "torch",
    "onnx",
    "onnxscript",
    "safetensors",
    "torchao",
    "torch_pruning",
    "timm",
    "transformers",
    "peft",
    "scipy",
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
MAY_TORCH = {"adaptation", "networks", "training", "compression", "parity", "export", "deploy"}
MAY_TORCH_IN_FUNCTIONS = {"scores"}
FLAG_FREE = {"bench", "compression", "tuning", "deploy"}
STARTS_PROGRAMS = {"picture_files.py", "power_sources.py"}  # other programs, which take options
MAY_ROS = {"node", "replay", "commands"}
TORCH_BACKEND = ("torch", "torch_device", "torch_graph", "torch_packages")
TORCH_FILES = {*(PACKAGE / "backends" / f"{name}.py" for name in TORCH_BACKEND), PACKAGE / "tuning" / "eager.py"}
OPTIONAL_BACKENDS = {"anomseg_ros.backends.openvino", *(f"anomseg_ros.backends.{name}" for name in TORCH_BACKEND)}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of_file(path: Path) -> set[str]:
    return imports_of(ast.parse(path.read_text()), path)


def imports_at_module_level(path: Path) -> set[str]:
    """Return the imports of a file, without those in functions and those for type checkers."""

    class WithoutFunctions(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else node

    return imports_of(WithoutFunctions().visit(ast.parse(path.read_text())), path)


def imports_of(tree: ast.AST, path: Path) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert [alias.name for alias in node.names] != ["*"], f"{path}: wildcard import"
            names.add(node.module or "")
    return names


def modules_named_in_strings(path: Path) -> set[str]:
    """Return the modules that a file names in strings, such as "anomseg_ros.networks.enet:ENet" in a table."""
    constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    names = {text.split(":")[0] for text in constants if isinstance(text, str) and MODULE_NAME.fullmatch(text)}
    return {
        name
        for name in names
        if (ROOT / name.replace(".", "/")).is_dir() or (ROOT / f"{name.replace('.', '/')}.py").is_file()
    }


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_allowed_packages(path: Path) -> None:
    part = part_of(path)
    names = imports_of_file(path)
    outside = {name.split(".")[0] for name in names}
    rooms = {name.split(".")[1] for name in names | modules_named_in_strings(path) if name.startswith("anomseg_ros.")}
    assert rooms <= ALLOWED[part] | EVERYWHERE | {part}
    if part in MAY_TORCH_IN_FUNCTIONS:
        assert not imports_at_module_level(path) & TORCH
    elif part not in MAY_TORCH and path not in TORCH_FILES and part != "commands":
        assert not outside & TORCH
    if part not in MAY_ROS:
        assert not outside & ROS


def calls_with_command_lines(tree: ast.Module) -> list[str]:
    """Return the calls that pass a command line, a list of strings, to a command's main function or to a parser."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and node.args
        and (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")) in LINE_TAKERS
        and not (isinstance(node.args[0], ast.Name) and node.args[0].id == "argv")
    ]


LINE_TAKERS = {"main", "main_list", "main_show", "parse_args"}
PARSERS = {PACKAGE / "node" / "life.py", PACKAGE / "node" / "main.py", PACKAGE / "cli.py", PACKAGE / "command_table.py"}
"""Programs outside commands/."""


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_commands_use_command_lines(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if part_of(path) != "commands" and path not in PARSERS:
        assert "argparse" not in imports_of_file(path)
        assert not any(isinstance(node, ast.Attribute) and node.attr == "Namespace" for node in ast.walk(tree))
    if path not in PARSERS:
        assert calls_with_command_lines(tree) == []
    if part_of(path) in FLAG_FREE and path.name not in STARTS_PROGRAMS:
        strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        assert [text for text in strings if isinstance(text, str) and re.search(r"(^|[\s`])--[a-z]", text)] == []


@pytest.mark.parametrize(
    "call", ['main(["a"])', "quantize.main([str(x), *words])", "prune.main(words + more)", "parser.parse_args(words)"]
)
def test_calls_with_command_lines_are_detected(call: str) -> None:
    assert calls_with_command_lines(ast.parse(call)) == [ast.unparse(ast.parse(call))]


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
        for part in (
            "core",
            "scores",
            "backends",
            "catalog",
            "bags",
            "metrics",
            "scenes",
            "outliers",
            "datasets",
            "evaluation",
            "bench",
        )
        if (PACKAGE / part).is_dir()
    ]
    code = BLOCKED_RUN.format(blocked=blocked, parts=parts, left_out=OPTIONAL_BACKENDS)
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_detector_runs_without_torch_and_ros(tiny_bundle: Path, tmp_path: Path) -> None:
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 30, 3), np.uint8))
    arguments = ["run", str(tiny_bundle), str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    done = run_without(TORCH | ROS, arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a_labels.png").is_file()


@pytest.mark.slow
def test_bench_runs_without_torch_and_ros(tiny_bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "b.json"
    done = run_without(TORCH | ROS, ["bench", str(tiny_bundle), "--rounds", "3", "--json", str(report)])
    assert done.returncode == 0, done.stderr
    assert '"parameters": null' in report.read_text()


@pytest.mark.parametrize(("command", "extra"), [("node", "ros"), ("export", "offline"), ("bag play", "ros")])
def test_missing_package_error_names_the_extra(command: str, extra: str) -> None:
    rest = ["nothing.mcap"] if command == "bag play" else ["--help"]
    done = run_without(TORCH | ROS, [*command.split(), *rest])
    assert done.returncode == 1
    assert f"anomseg_ros[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
