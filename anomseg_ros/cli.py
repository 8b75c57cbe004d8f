"""`anomseg`: one command, its subcommands imported only when they are used, so that torch and ROS stay optional."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from anomseg_ros import __version__
from anomseg_ros.errors import AnomsegError, closest_first

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("anomseg_ros.commands.run:main", "detect anomalies in images, folders or videos"),
    "node": ("anomseg_ros.node.main:main", "start the ROS 2 detector node"),
    "demo": ("anomseg_ros.commands.demo:main", "play a bag through the node and make a page of pictures"),
    "bag write": ("anomseg_ros.commands.bag_write:main", "make an MCAP or sqlite3 bag from a folder of images"),
    "bag evaluate": ("anomseg_ros.commands.bag_evaluate:main", "measure a bundle, or recorded outputs, on a bag"),
    "bag play": ("anomseg_ros.commands.bag_play:main", "publish a bag's messages through ROS 2"),
    "datasets list": ("anomseg_ros.commands.datasets_check:main_list", "name the datasets, their splits and layouts"),
    "datasets check": ("anomseg_ros.commands.datasets_check:main", "read datasets and say what is wrong with them"),
    "models list": ("anomseg_ros.commands.models:main_list", "name the bundles and the published checkpoints"),
    "models show": ("anomseg_ros.commands.models:main_show", "print all that is known of a bundle or checkpoint"),
    "models verify": ("anomseg_ros.commands.models_verify:main", "check digests, and run one frame through each graph"),
    "models fetch": ("anomseg_ros.commands.models_fetch:main", "download a published checkpoint"),
    "datasets cut-paste": ("anomseg_ros.commands.datasets_cut_paste:main", "paste outliers into labelled frames"),
    "datasets pseudo-label": (
        "anomseg_ros.commands.datasets_pseudo_label:main",
        "label frames in Cityscapes' classes by networks that know them",
    ),
    "share": ("anomseg_ros.commands.share:main", "print where a file that ships with the package is"),
    "export": ("anomseg_ros.commands.export:main", "turn a checkpoint into a bundle"),
    "evaluate": ("anomseg_ros.commands.evaluate:main", "measure bundles on datasets: table, JSON and HTML report"),
    "calibrate threshold": (
        "anomseg_ros.commands.calibrate_threshold:main",
        "find the thresholds that keep false-positive rates, and write them into a bundle",
    ),
    "calibrate temperature": (
        "anomseg_ros.commands.calibrate_temperature:main",
        "learn the softmax temperature on labelled frames, and export with it",
    ),
    "train": ("anomseg_ros.commands.train:main", "train a network by a configuration, to a checkpoint and a bundle"),
    "papers": ("anomseg_ros.commands.papers:main", "measure the published checkpoints and write benchmarks/papers.md"),
    "report": ("anomseg_ros.commands.report:main", "make the HTML page of an evaluation's JSON"),
    "quantize": ("anomseg_ros.commands.quantize:main", "turn a float bundle into an 8-bit one, and say what it cost"),
    "prune": ("anomseg_ros.commands.prune:main", "remove channels of a network, or zero its weights, and fine-tune it"),
    "compress": ("anomseg_ros.commands.compress:main", "prune, fine-tune and quantize by one recipe"),
    "bench": ("anomseg_ros.commands.bench:main", "time bundles side by side, with memory, size and a picture"),
    "tune": ("anomseg_ros.commands.tune:main", "find the bundle that keeps a latency or an accuracy on this machine"),
    "compare": ("anomseg_ros.commands.compare:main", "say what changed between two evaluations"),
}

# What a missing module means to a user, by its top-level name.
REMEDIES = {
    "rclpy": "needs ROS 2: source your ROS installation, or pip install 'anomseg_ros[ros]'",
    "sensor_msgs": "needs ROS 2: source your ROS installation, or pip install 'anomseg_ros[ros]'",
    "rosbags": "needs the rosbags library: pip install 'anomseg_ros[bags]'",
    "torch": "needs the offline half: pip install 'anomseg_ros[offline]'",
    "onnx": "needs the offline half: pip install 'anomseg_ros[offline]'",
    "onnxscript": "needs the offline half: pip install 'anomseg_ros[offline]'",
    "ray": "needs Ray: pip install 'anomseg_ros[cluster]'",
    "lightning_fabric": "needs the offline half: pip install 'anomseg_ros[offline]'",
    "tensorboard": "needs the offline half: pip install 'anomseg_ros[offline]'",
    "safetensors": "needs the offline half: pip install 'anomseg_ros[offline]'",
    "torch_pruning": "needs the offline half: pip install 'anomseg_ros[offline]'",
    "timm": "needs timm: pip install 'anomseg_ros[backbones]'",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit status: 0 done, 1 an error explained in one line, 2 a wrong command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"anomseg {__version__}")
        return 0
    name = _command_name(words)
    if name is None:
        return _unknown_command(words)
    try:
        return _load(name)(words[len(name.split()) :])
    except AnomsegError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name not in REMEDIES:
            raise
        return _fail(f"`anomseg {name}` {REMEDIES[error.name]} (no module named {error.name!r})")
    except KeyboardInterrupt:
        return 130


def usage() -> str:
    """Return the overview of all subcommands."""
    width = max(map(len, COMMANDS)) + 2
    rows = [f"  {name:<{width}}{summary}" for name, (_, summary) in COMMANDS.items()]
    head = "usage: anomseg COMMAND [OPTION]…\n\nRoad-anomaly detection for ROS 2.\n\ncommands:"
    return "\n".join(
        [head, *rows, "", "`anomseg COMMAND --help` describes one; `anomseg --version` prints the version."]
    )


def _command_name(words: list[str]) -> str | None:
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name
    return None


def _unknown_command(words: list[str]) -> int:
    family = [name for name in COMMANDS if name.split()[0] == words[0]]
    if family:
        print(usage() if words[1:2] == ["--help"] else f"anomseg: {words[0]} has: {', '.join(family)}", file=sys.stderr)
        return 0 if words[1:2] == ["--help"] else 2
    given = " ".join(words[:2]) if len(words) > 1 else words[0]
    print(
        f"anomseg: unknown command {words[0]!r}; did you mean {closest_first(given, COMMANDS)[0]!r}?", file=sys.stderr
    )
    return 2


def _load(name: str) -> Callable[[list[str]], int]:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command: Callable[[list[str]], int] = getattr(importlib.import_module(module), attribute)
    return command


def _fail(message: str) -> int:
    print(f"anomseg: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
